// One spelling for the many ways to write the same Jinja template, so that a fingerprint is a plain
// search. Nothing is executed.
//
// White space that Jinja ignores goes: inside tags (one space stays between two words), and between
// tags as `-` in braces and the options trim_blocks and lstrip_blocks, which chat templates are
// rendered with, say. What remains between tags is output like any other: text, and expressions
// that follow each other, become one expression {{'text'+name}}; adjacent literals become one.
// x['role'] becomes x.role. Comments go.
//
// String literals stand in single quotes with their escapes resolved, line breaks as such, and
// their white space untouched. A quote, brace, plus or backslash inside one is written \q \o \c \p
// \\, so outside of literals these characters always mean what they mean to Jinja.
#pragma once

#include <string>
#include <string_view>

namespace cogumi {

std::string CanonicalJinja(std::string_view source);

// The text of a canonical literal, without its quotes.
std::string LiteralText(std::string_view canonical);

}  // namespace cogumi
