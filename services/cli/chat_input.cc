#include "services/cli/chat_input.h"

#include <utility>

namespace cogumi::cli {
namespace {

constexpr char kQuotes[] = "\"\"\"";

std::string Trim(const std::string& text) {
  const size_t first = text.find_first_not_of(" \t\r\n");
  if (first == std::string::npos) return "";
  return text.substr(first, text.find_last_not_of(" \t\r\n") - first + 1);
}

}  // namespace

std::optional<std::string> ChatInput::Add(const std::string& line) {
  is_command_ = false;
  std::string rest = line;
  if (!quoted_ && !continued_) {
    text_.clear();
    const std::string trimmed = Trim(line);
    if (!trimmed.empty() && trimmed[0] == '/') {
      is_command_ = true;
      return trimmed;
    }
    if (trimmed.rfind(kQuotes, 0) == 0) {
      quoted_ = true;
      rest = trimmed.substr(3);
    }
  }
  if (quoted_) {
    const size_t end = rest.find(kQuotes);
    if (end == std::string::npos) {
      // The line break after opening quotes alone is none of the text.
      if (!(text_.empty() && Trim(rest).empty())) text_ += rest + "\n";
      return std::nullopt;
    }
    quoted_ = false;
    text_ += rest.substr(0, end);
    return Trim(std::exchange(text_, ""));
  }
  continued_ = !rest.empty() && rest.back() == '\\';
  if (continued_) {
    rest.back() = '\n';
    text_ += rest;
    return std::nullopt;
  }
  text_ += rest;
  return Trim(std::exchange(text_, ""));
}

}  // namespace cogumi::cli
