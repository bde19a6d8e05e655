// Writing JSON by hand: a chunk of an answer is a fixed frame around escaped text, and building a
// document tree for each would cost more than the chunk itself.
#pragma once

#include <string>
#include <string_view>

namespace cogumi::gateway {

// Appends `text` (valid UTF-8) as the inside of a JSON string.
void AppendEscaped(std::string_view text, std::string* out);
// The same with its quotes.
void AppendQuoted(std::string_view text, std::string* out);
// The shortest decimal that reads back as the same float; null when not finite.
void AppendNumber(float value, std::string* out);

}  // namespace cogumi::gateway
