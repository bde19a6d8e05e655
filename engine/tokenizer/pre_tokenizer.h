// Splits text into the pieces that byte-pair encoding then works on: the regular expressions of the
// known pre-tokenizers, written out by hand (re2 has no lookahead).
//
//   gpt-2      's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//   smollm     every \p{N} on its own, then gpt-2's on what lies between
//   llama-bpe  (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|
//              ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
//
// An invalid byte counts as a character that is neither letter, number nor white space.
#pragma once

#include <cstddef>
#include <optional>
#include <string_view>

namespace cogumi {

enum class PreTokenizer { kGpt2, kSmollm, kLlamaBpe };

// By the name in tokenizer.ggml.pre; nullopt when unknown.
std::optional<PreTokenizer> FindPreTokenizer(std::string_view name);

// Bytes of the first piece of `text`, which is not empty. Takes time in proportion to the piece
// and the one character after it, so that splitting a text is linear.
size_t FirstPiece(PreTokenizer kind, std::string_view text);

}  // namespace cogumi
