// Tokenises records for the Python tests.
//
// Usage: cogumi-tokenize-lines MODEL plain|special|chat
// Input: records, each a 4-byte little-endian length and that many bytes. Output: one line each,
// the ids separated by spaces, a tab, and the count of dropped bytes. plain and special encode the
// record as text, without and with special-token parsing; chat renders it as a user's message
// through the model's own chat template.
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/statusor.h"
#include "engine/core/status_macros.h"
#include "engine/io/gguf.h"
#include "engine/tokenizer/chat_template.h"
#include "engine/tokenizer/tokenizer.h"

namespace {

bool ReadRecord(std::string* record) {
  uint32_t size = 0;
  if (std::fread(&size, sizeof(size), 1, stdin) != 1) return false;
  record->resize(size);
  return std::fread(record->data(), 1, size, stdin) == size;
}

absl::Status Run(const std::string& path, std::string_view mode) {
  ASSIGN_OR_RETURN(const std::unique_ptr<cogumi::GgufFile> file, cogumi::GgufFile::Open(path));
  ASSIGN_OR_RETURN(const std::unique_ptr<cogumi::Tokenizer> tokenizer,
                   cogumi::Tokenizer::Create(*file));
  ASSIGN_OR_RETURN(const std::unique_ptr<cogumi::ChatTemplate> chat,
                   cogumi::ChatTemplate::Create(*file, ""));
  std::string record;
  while (ReadRecord(&record)) {
    cogumi::Tokenizer::Encoded encoded;
    if (mode == "chat") {
      ASSIGN_OR_RETURN(cogumi::ChatTemplate::Rendered rendered,
                       chat->Render({{cogumi::MessageRole::kUser, record}}, *tokenizer));
      encoded = {std::move(rendered.ids), rendered.dropped_bytes};
    } else {
      encoded = tokenizer->Encode(record, mode == "special");
    }
    const char* separator = "";
    for (const cogumi::TokenId id : encoded.ids) {
      std::printf("%s%d", separator, id);
      separator = " ";
    }
    std::printf("\t%d\n", encoded.dropped_bytes);
  }
  return absl::OkStatus();
}

}  // namespace

int main(int argc, char** argv) {
  const std::string_view mode = argc == 3 ? argv[2] : "";
  if (mode != "plain" && mode != "special" && mode != "chat") {
    std::fprintf(stderr, "usage: %s MODEL plain|special|chat < records\n", argv[0]);
    return 2;
  }
  const absl::Status status = Run(argv[1], mode);
  if (!status.ok()) {
    std::fprintf(stderr, "%s\n", status.ToString().c_str());
    return 1;
  }
  return 0;
}
