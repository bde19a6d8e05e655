#include "services/common/text.h"

namespace cogumi::services {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

// Length that the lead byte promises and the range its second byte may have; 0: no lead byte.
struct Lead {
  size_t length;
  unsigned char low;
  unsigned char high;
};

Lead LeadOf(unsigned char byte) {
  if (byte < 0x80) return {1, 0, 0};
  if (byte < 0xC2) return {0, 0, 0};
  if (byte < 0xE0) return {2, 0x80, 0xBF};
  if (byte == 0xE0) return {3, 0xA0, 0xBF};
  if (byte == 0xED) return {3, 0x80, 0x9F};
  if (byte < 0xF0) return {3, 0x80, 0xBF};
  if (byte == 0xF0) return {4, 0x90, 0xBF};
  if (byte < 0xF4) return {4, 0x80, 0xBF};
  if (byte == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

// Bytes of the longest prefix of a character; equals the lead's length when it is complete.
size_t PrefixLength(std::string_view text, const Lead& lead) {
  size_t have = 1;
  while (have < lead.length && have < text.size()) {
    const auto byte = static_cast<unsigned char>(text[have]);
    const unsigned char low = have == 1 ? lead.low : 0x80;
    const unsigned char high = have == 1 ? lead.high : 0xBF;
    if (byte < low || byte > high) break;
    ++have;
  }
  return have;
}

}  // namespace

size_t Utf8CharacterLength(std::string_view text) {
  if (text.empty()) return 0;
  const Lead lead = LeadOf(static_cast<unsigned char>(text[0]));
  if (lead.length == 0) return 0;
  return PrefixLength(text, lead) == lead.length ? lead.length : 0;
}

bool IsValidUtf8(std::string_view text) {
  while (!text.empty()) {
    const size_t length = Utf8CharacterLength(text);
    if (length == 0) return false;
    text.remove_prefix(length);
  }
  return true;
}

std::string ToValidUtf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    size_t length = Utf8CharacterLength(text);
    if (length > 0) {
      out.append(text.substr(0, length));
    } else {
      const Lead lead = LeadOf(static_cast<unsigned char>(text[0]));
      length = lead.length == 0 ? 1 : PrefixLength(text, lead);
      out.append(kReplacement);
    }
    text.remove_prefix(length);
  }
  return out;
}

std::string_view TruncateUtf8(std::string_view text, size_t max_bytes) {
  if (text.size() <= max_bytes) return text;
  size_t end = max_bytes;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return text.substr(0, end);
}

}  // namespace cogumi::services
