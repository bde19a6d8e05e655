// Answers in OpenAI's formats: whole bodies, server-sent events, errors and the list of models.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "cogumi/v1/common.pb.h"
#include "cogumi/v1/decoder.pb.h"

namespace cogumi::gateway {

// What all events and the body of one answer share.
struct AnswerFrame {
  bool chat = false;
  std::string id;       // "chatcmpl-..." or "cmpl-..."
  int64_t created = 0;  // Unix seconds
  std::string model;
  std::string fingerprint;     // empty: null
  bool logprobs = false;       // asked for
  bool include_usage = false;  // streams: a last event with the usage
};

// Formats the events of a stream. One per answer; not thread-safe.
class EventFormat {
 public:
  EventFormat(AnswerFrame frame, int choices);

  // The events of a chunk: for a chat's first one the role, too. Nothing when the chunk has nothing
  // to show yet.
  void AppendChunk(int choice, const cogumi::v1::GenerateChunk& chunk, std::string* out);
  // What really answered: the events from here on say so.
  void SetReceipt(const cogumi::v1::Receipt& receipt);
  void AppendFinish(int choice, cogumi::v1::FinishReason reason, std::string* out);
  // The usage, when asked for, and the end mark.
  void AppendDone(const cogumi::v1::Usage& usage, std::string* out) const;

 private:
  void AppendRole(int choice, std::string* out);
  void AppendHead(int choice, std::string* out) const;

  void SetHead();

  AnswerFrame frame_;
  std::string head_;  // from "data: " to the choice's index
  std::string tail_;  // after the choice
  struct Choice {
    bool begun = false;
    int64_t offset = 0;  // characters of the text so far
  };
  std::vector<Choice> choices_;
};

// Gathers a whole answer.
class BodyFormat {
 public:
  BodyFormat(AnswerFrame frame, int choices);
  void AddChunk(int choice, const cogumi::v1::GenerateChunk& chunk);
  void Finish(int choice, const cogumi::v1::GenerateComplete& complete);
  std::string Body(const cogumi::v1::Usage& usage) const;

 private:
  AnswerFrame frame_;
  struct Choice {
    std::string text;
    std::vector<cogumi::v1::TokenLogprob> logprobs;
    cogumi::v1::FinishReason reason = cogumi::v1::FINISH_REASON_UNSPECIFIED;
  };
  std::vector<Choice> choices_;
};

// {"error":{"message","type","param","code"}} and the HTTP status that goes with it. Fields are
// named as OpenAI's interface does.
std::string ErrorBody(const absl::Status& status, bool chat = true);
int HttpStatusOf(const absl::Status& status);
// For errors of HTTP itself, for example 404 for an unknown path.
std::string HttpErrorBody(int status, std::string_view message);

std::string ModelBody(const cogumi::v1::ModelDescription& model);
std::string ModelListBody(const std::vector<cogumi::v1::ModelDescription>& models);

}  // namespace cogumi::gateway
