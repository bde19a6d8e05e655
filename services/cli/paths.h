// Where things are: models, state, sockets, the other binaries.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace cogumi::cli {

inline constexpr char kDefaultModelFile[] = "SmolLM2-135M-Instruct.Q4_1.gguf";
inline constexpr char kDefaultModelDigest[] =
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

// $COGUMI_STATE_DIR, else ${XDG_STATE_HOME:-~/.local/state}/cogumi: clusters, sessions, adapters,
// chat history. Made when missing, readable by its owner only.
absl::StatusOr<std::string> StateFolder();
// When COGUMI_STATE_DIR is set: makes it the place of sessions and adapters too, through the
// variables that the services read, unless those are set.
absl::Status ShareStateFolder();
// A folder inside it.
absl::StatusOr<std::string> StateFolder(const std::string& name);
// ${XDG_CACHE_HOME:-~/.cache}/cogumi/models; need not exist.
std::string ModelFolder();
inline constexpr char kSocketFolderPrefix[] = "cogumi-";
// A new folder for sockets with a path short enough for one, readable by its owner only.
absl::StatusOr<std::string> MakeSocketFolder();
// Next to this program: "cogumi-decoder" and so on. NOT_FOUND with advice when it is not there.
absl::StatusOr<std::string> SiblingBinary(const std::string& name);

struct ModelFile {
  std::string name;  // the file's stem
  std::string path;  // absolute
  int64_t bytes = 0;
};
// Models by name: those of ModelFolder(), and COGUMI_MODEL when set.
std::vector<ModelFile> ListModels();
// The file of a listed name or of a path to a GGUF file; "" is COGUMI_MODEL or the default model.
// NOT_FOUND with a suggestion.
absl::StatusOr<ModelFile> FindModel(const std::string& name_or_path);
// True when the word can only mean a model: a listed name or an existing GGUF file.
bool NamesModel(const std::string& word);

// Writes by rename, so that a reader sees the old or the new content.
absl::Status WriteFileAtomically(const std::string& path, const std::string& content);
absl::StatusOr<std::string> ReadFile(const std::string& path);

}  // namespace cogumi::cli
