#include "engine/tokenizer/pre_tokenizer.h"

#include <unicode/uchar.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <iterator>

#include "engine/tokenizer/utf8.h"

namespace cogumi {
namespace {

enum class Class : uint8_t { kLetter, kNumber, kSpace, kOther };

Class LookUp(uint32_t code_point) {
  if (code_point == Utf8Char::kInvalid) return Class::kOther;
  const auto c = static_cast<UChar32>(code_point);
  const uint32_t category = U_GET_GC_MASK(c);
  if ((category & U_GC_L_MASK) != 0) return Class::kLetter;
  if ((category & U_GC_N_MASK) != 0) return Class::kNumber;
  return u_isUWhiteSpace(c) != 0 ? Class::kSpace : Class::kOther;
}

Class ClassOf(uint32_t code_point) {
  static const std::array<Class, 128> kAscii = [] {
    std::array<Class, 128> table{};
    for (uint32_t c = 0; c < table.size(); ++c) table[c] = LookUp(c);
    return table;
  }();
  return code_point < kAscii.size() ? kAscii[code_point] : LookUp(code_point);
}

// Numbers that Unicode 16 and 17 added. The regular expressions of the `tokenizers` library follow
// Unicode 15, as ICU 72 does; its splitter of single digits follows the newest version.
bool IsNewNumber(uint32_t code_point) {
  struct Range {
    uint32_t first;
    uint32_t last;
  };
  static constexpr Range kRanges[] = {{0x10d40, 0x10d49}, {0x116d0, 0x116e3}, {0x11bf0, 0x11bf9},
                                      {0x11de0, 0x11de9}, {0x16130, 0x16139}, {0x16d70, 0x16d79},
                                      {0x16ff4, 0x16ff6}, {0x1ccf0, 0x1ccf9}, {0x1e5f1, 0x1e5fa}};
  if (code_point < kRanges[0].first || code_point > 0x1ffff) return false;
  return std::any_of(std::begin(kRanges), std::end(kRanges), [&](const Range& range) {
    return code_point >= range.first && code_point <= range.last;
  });
}

bool IsNewline(uint32_t code_point) { return code_point == '\r' || code_point == '\n'; }

struct Character {
  Class kind;
  uint32_t code_point;
  size_t end;  // position of the next one
};

class Matcher {
 public:
  Matcher(PreTokenizer kind, std::string_view text) : kind_(kind), text_(text) {}

  size_t FirstPiece() const {
    const Character first = At(0);
    return kind_ == PreTokenizer::kLlamaBpe ? Llama(first) : Gpt2(first);
  }

 private:
  Character At(size_t position) const {
    const Utf8Char c = DecodeUtf8(text_, position);
    const bool new_number = kind_ == PreTokenizer::kSmollm && IsNewNumber(c.code_point);
    return {new_number ? Class::kNumber : ClassOf(c.code_point), c.code_point, position + c.size};
  }

  // End of the run of `kind` that starts at `position`; at most `limit` characters.
  size_t Run(size_t position, Class kind, size_t limit = SIZE_MAX) const {
    for (size_t count = 0; position < text_.size() && count < limit; ++count) {
      const Character c = At(position);
      if (c.kind != kind) break;
      position = c.end;
    }
    return position;
  }

  // 's|'t|'re|'ve|'m|'ll|'d, 0 when there is none.
  size_t Contraction(bool ignore_case) const {
    if (text_.size() < 2 || text_[0] != '\'') return 0;
    const auto lower = [&](size_t i) {
      const char c = i < text_.size() ? text_[i] : '\0';
      return ignore_case && c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    };
    const char a = lower(1);
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    const char b = lower(2);
    if ((a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l')) return 3;
    // U+017F, the long s, folds to s.
    if (ignore_case && text_.substr(1, 2) == "\xc5\xbf") return 3;
    return 0;
  }

  // \s+(?!\S)|\s+ over the white space at the front: all of it at the end of the text (or, when
  // digits stand alone, before one), else all but the last character, which belongs to what
  // follows; a single one is taken.
  size_t WhiteSpace() const {
    size_t end = 0;
    size_t last = 0;  // where the last character of the run starts
    while (end < text_.size()) {
      const Character c = At(end);
      if (c.kind != Class::kSpace) {
        const bool text_ends = kind_ == PreTokenizer::kSmollm && c.kind == Class::kNumber;
        return text_ends || last == 0 ? end : last;
      }
      last = end;
      end = c.end;
    }
    return end;
  }

  size_t Gpt2(const Character& first) const {
    const bool single_digits = kind_ == PreTokenizer::kSmollm;
    if (single_digits && first.kind == Class::kNumber) return first.end;
    if (const size_t end = Contraction(false)) return end;
    if (first.kind != Class::kSpace) return Run(0, first.kind);
    if (first.code_point == ' ' && first.end < text_.size()) {
      const Class next = At(first.end).kind;
      if (next != Class::kSpace && !(single_digits && next == Class::kNumber)) {
        return Run(first.end, next);
      }
    }
    return WhiteSpace();
  }

  size_t Llama(const Character& first) const {
    if (const size_t end = Contraction(true)) return end;
    if (first.kind == Class::kLetter) return Run(0, Class::kLetter);
    if (first.kind == Class::kNumber) return Run(0, Class::kNumber, 3);
    if (!IsNewline(first.code_point) && first.end < text_.size()) {
      const Class next = At(first.end).kind;
      if (next == Class::kLetter) return Run(first.end, Class::kLetter);
      if (first.code_point == ' ' && next == Class::kOther) return Symbols(first.end);
    }
    if (first.kind == Class::kOther) return Symbols(0);
    // \s*[\r\n]+ ends behind the last newline of the run.
    size_t newline_end = 0;
    for (size_t position = 0; position < text_.size();) {
      const Character c = At(position);
      if (c.kind != Class::kSpace) break;
      position = c.end;
      if (IsNewline(c.code_point)) newline_end = position;
    }
    return newline_end != 0 ? newline_end : WhiteSpace();
  }

  // [^\s\p{L}\p{N}]+[\r\n]*
  size_t Symbols(size_t position) const {
    position = Run(position, Class::kOther);
    while (position < text_.size() && IsNewline(static_cast<uint8_t>(text_[position]))) ++position;
    return position;
  }

  PreTokenizer kind_;
  std::string_view text_;
};

}  // namespace

std::optional<PreTokenizer> FindPreTokenizer(std::string_view name) {
  if (name == "gpt-2") return PreTokenizer::kGpt2;
  if (name == "smollm") return PreTokenizer::kSmollm;
  if (name == "llama-bpe") return PreTokenizer::kLlamaBpe;
  return std::nullopt;
}

size_t FirstPiece(PreTokenizer kind, std::string_view text) {
  return Matcher(kind, text).FirstPiece();
}

}  // namespace cogumi
