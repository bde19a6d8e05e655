#include "engine/decode/text_assembler.h"

#include <algorithm>
#include <utility>

namespace cogumi {

TextAssembler::TextAssembler(const std::vector<std::string>& stops) {
  stops_.reserve(stops.size());  // matched_ points into it
  for (const std::string& text : stops) {
    Stop stop{text, std::vector<size_t>(text.size(), 0)};
    for (size_t i = 1, border = 0; i < text.size(); ++i) {
      while (border > 0 && text[i] != text[border]) border = stop.border[border - 1];
      if (text[i] == text[border]) ++border;
      stop.border[i] = border;
    }
    stops_.push_back(std::move(stop));
  }
}

std::string TextAssembler::Append(std::string_view bytes) {
  if (stopped()) return {};
  std::string text;
  utf8_.Append(bytes, text);
  if (stops_.empty()) return text;
  return Release(text);
}

std::string TextAssembler::Flush() {
  if (stopped()) return {};
  std::string tail;
  utf8_.Flush(tail);
  std::string text = Release(tail);
  if (!stopped()) text += held_;
  held_.clear();
  return text;
}

std::string TextAssembler::Release(std::string_view text) {
  for (const char byte : text) {
    held_.push_back(byte);
    for (Stop& stop : stops_) {
      while (stop.matched > 0 && stop.text[stop.matched] != byte) {
        stop.matched = stop.border[stop.matched - 1];
      }
      if (stop.text[stop.matched] == byte) ++stop.matched;
      if (stop.matched < stop.text.size()) continue;
      if (matched_ == nullptr || stop.text.size() > matched_->size()) matched_ = &stop.text;
      stop.matched = 0;
    }
    if (stopped()) {
      held_.resize(held_.size() - matched_->size());
      return std::exchange(held_, {});
    }
  }
  size_t keep = 0;
  for (const Stop& stop : stops_) keep = std::max(keep, stop.matched);
  std::string certain = held_.substr(0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return certain;
}

}  // namespace cogumi
