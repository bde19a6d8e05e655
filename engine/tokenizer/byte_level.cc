#include "engine/tokenizer/byte_level.h"

#include <array>
#include <cstdint>

#include "engine/tokenizer/utf8.h"

namespace cogumi {
namespace {

// Bytes that are printable in Latin-1 stand for themselves; the others take U+0100, U+0101, ... in
// their order.
constexpr bool StandsForItself(int byte) {
  return (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) ||
         (byte >= 0xae && byte <= 0xff);
}

constexpr uint32_t kCharacters = 0x100 + 68;  // one past the largest code point in use

// Byte by code point; -1 for none.
constexpr std::array<int16_t, kCharacters> MakeTable() {
  std::array<int16_t, kCharacters> table{};
  for (int16_t& entry : table) entry = -1;
  size_t next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const size_t code_point = StandsForItself(byte) ? static_cast<size_t>(byte) : next++;
    table[code_point] = static_cast<int16_t>(byte);
  }
  return table;
}

constexpr std::array<int16_t, kCharacters> kByteOf = MakeTable();

}  // namespace

bool AppendByteLevelDecoded(std::string_view spelled, std::string* bytes) {
  const size_t before = bytes->size();
  for (size_t position = 0; position < spelled.size();) {
    const Utf8Char c = DecodeUtf8(spelled, position);
    const int byte = c.code_point < kCharacters ? kByteOf[c.code_point] : -1;
    if (byte < 0) {
      bytes->resize(before);
      return false;
    }
    bytes->push_back(static_cast<char>(byte));
    position += c.size;
  }
  return true;
}

}  // namespace cogumi
