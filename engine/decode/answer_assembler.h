// What is told of an answer, chunk by chunk: its text, and its tokens with the text they complete.
//
// A stop string is never told, neither as text nor as the tokens that spell it: while text is held
// back because it may become one, so are its tokens. A token goes out with the text that contains
// its last character. When a stop string is complete, tokens that have a part in it are dropped,
// also one that begins before it, whose earlier characters then come as text without a token: told
// tokens always spell a beginning of the text. Without stop strings a token is told at once, even
// if its last character is not complete yet.
#pragma once

#include <cstddef>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cogumi/types.h"
#include "engine/decode/text_assembler.h"

namespace cogumi {

class AnswerAssembler {
 public:
  explicit AnswerAssembler(const std::vector<std::string>& stops)
      : text_(stops), holds_(!stops.empty()) {}

  // Adds a token with the bytes of its text, none for an end token. Nothing may follow stopped().
  Chunk Append(TokenInfo info, std::string_view bytes);
  // The end of the answer: adds what was held back to its last chunk.
  void Finish(Chunk& chunk);

  bool stopped() const { return text_.stopped(); }
  std::string_view matched_stop() const { return text_.matched_stop(); }

 private:
  struct Waiting {
    TokenInfo info;
    std::optional<size_t> end;  // in the text; none while its last character is not complete
  };

  // Text that is known to be the answer's, told or held back, up to the last complete character.
  size_t Known() const { return told_ + text_.held().size(); }
  // The tokens that `text` lets go; before it `known` bytes were known.
  void Settle(std::string_view text, size_t known, Chunk& chunk);

  TextAssembler text_;
  const bool holds_;
  size_t told_ = 0;  // bytes of text
  std::deque<Waiting> waiting_;
};

}  // namespace cogumi
