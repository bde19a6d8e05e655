// Early return on errors.
#pragma once

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define COGUMI_CONCAT_INNER(a, b) a##b
#define COGUMI_CONCAT(a, b) COGUMI_CONCAT_INNER(a, b)

// Returns from the function when `expr` is not OK.
#define RETURN_IF_ERROR(expr)                   \
  do {                                          \
    if (auto status_ = (expr); !status_.ok()) { \
      return status_;                           \
    }                                           \
  } while (false)

// ASSIGN_OR_RETURN(auto x, F()): x is the value, or the function returns the error.
#define ASSIGN_OR_RETURN(lhs, expr) \
  COGUMI_ASSIGN_OR_RETURN_INNER(COGUMI_CONCAT(status_or_, __LINE__), lhs, expr)
// NOLINTBEGIN(bugprone-macro-parentheses): a declaration cannot stand in parentheses
#define COGUMI_ASSIGN_OR_RETURN_INNER(tmp, lhs, expr) \
  auto tmp = (expr);                                  \
  if (!tmp.ok()) return std::move(tmp).status();      \
  lhs = std::move(tmp).value()
// NOLINTEND(bugprone-macro-parentheses)
