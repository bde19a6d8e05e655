// Log lines to stderr: one JSON object per request, never with a person's text, and plain lines at
// start and stop. Lines are written by a thread of their own from a bounded queue, so that a slow
// terminal never holds up a gRPC callback or a step; lines beyond the bound are counted and lost.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace cogumi::services {

// What one request's line says.
struct RequestLogEntry {
  std::string_view service;
  std::string_view method;
  std::string_view request_id;
  std::string_view tenant;
  std::string_view status;  // name of the code
  std::string_view reason;  // of the error; empty when OK
  int64_t prompt_tokens = -1;  // negative: not said
  int64_t completion_tokens = -1;
  double seconds = 0;
  double queue_seconds = -1;
  double first_token_seconds = -1;
};

void LogRequest(const RequestLogEntry& entry);
// "<time> <service>: <message>"; for start, stop and what an operator must know.
void LogLine(std::string_view service, std::string_view message);
// Waits until every line so far is written, but not for ever for a reader that takes nothing: one
// second at most.
void FlushLog();

// `text` as a JSON string with its quotes; invalid UTF-8 becomes U+FFFD.
std::string JsonString(std::string_view text);
// The JSON line of an entry, without the newline.
std::string FormatRequestLog(const RequestLogEntry& entry, double unix_seconds);

}  // namespace cogumi::services
