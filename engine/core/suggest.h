// What somebody may have meant by a name that is not known.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace cogumi {

// Levenshtein distance: characters to insert, delete or replace.
size_t EditDistance(std::string_view a, std::string_view b);

// The candidate nearest to `word` by edit distance, or "" when none is near.
std::string Suggest(std::string_view word, const std::vector<std::string>& candidates);

}  // namespace cogumi
