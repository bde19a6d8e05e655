#include "engine/decode/answer_assembler.h"

#include <utility>

namespace cogumi {
namespace {

size_t CharacterBytes(char first) {
  const auto byte = static_cast<unsigned char>(first);
  return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

}  // namespace

Chunk AnswerAssembler::Append(TokenInfo info, std::string_view bytes) {
  Chunk chunk;
  if (!holds_) {
    chunk.text = text_.Append(bytes);
    chunk.tokens.push_back(std::move(info));
    return chunk;
  }
  const size_t known = Known();
  chunk.text = text_.Append(bytes);
  waiting_.push_back({std::move(info), std::nullopt});
  Settle(chunk.text, known, chunk);
  return chunk;
}

void AnswerAssembler::Finish(Chunk& chunk) {
  const size_t known = Known();
  const std::string text = text_.Flush();
  chunk.text += text;
  if (holds_) Settle(text, known, chunk);
}

void AnswerAssembler::Settle(std::string_view text, size_t known, Chunk& chunk) {
  // The first new character ends what earlier tokens had begun of it.
  std::string fresh(text);
  fresh += text_.held();
  const size_t before = known - told_;
  told_ += text.size();
  if (fresh.size() > before) {
    const size_t end = known + CharacterBytes(fresh[before]);
    for (Waiting& token : waiting_) {
      // Not the token that was added last: it may have begun another one.
      if (!token.end.has_value() && &token != &waiting_.back()) token.end = end;
    }
  }
  if (!waiting_.empty() && !waiting_.back().end.has_value() && !text_.stopped() &&
      !text_.incomplete()) {
    waiting_.back().end = Known();
  }
  while (!waiting_.empty() && waiting_.front().end.value_or(told_ + 1) <= told_) {
    chunk.tokens.push_back(std::move(waiting_.front().info));
    waiting_.pop_front();
  }
  if (text_.stopped()) waiting_.clear();
}

}  // namespace cogumi
