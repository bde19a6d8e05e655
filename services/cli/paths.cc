#include "services/cli/paths.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "services/cli/verb.h"

namespace cogumi::cli {
namespace {

namespace fs = std::filesystem;

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// $variable, else the home folder with `fallback` below it.
fs::path BaseFolder(const char* variable, const char* fallback) {
  if (std::string value = Environment(variable); !value.empty()) return value;
  const std::string home = Environment("HOME");
  return fs::path(home.empty() ? "/tmp" : home) / fallback;
}

absl::Status MakeFolder(const fs::path& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error) {
    return WithAdvice(
        absl::PermissionDeniedError(absl::StrCat(path.string(), ": ", error.message())),
        "set COGUMI_STATE_DIR to a folder that can be written");
  }
  ::chmod(path.c_str(), 0700);
  return absl::OkStatus();
}

ModelFile Describe(const fs::path& path) {
  std::error_code error;
  const fs::path absolute = fs::weakly_canonical(path, error);
  ModelFile model;
  model.path = (error ? path : absolute).string();
  model.name = path.stem().string();
  const auto bytes = fs::file_size(path, error);
  model.bytes = error ? 0 : static_cast<int64_t>(bytes);
  return model;
}

bool IsGguf(const fs::path& path) {
  std::error_code error;
  return path.extension() == ".gguf" && fs::is_regular_file(path, error);
}

}  // namespace

absl::StatusOr<std::string> StateFolder() {
  fs::path folder = Environment("COGUMI_STATE_DIR");
  if (folder.empty()) folder = BaseFolder("XDG_STATE_HOME", ".local/state") / "cogumi";
  folder = fs::absolute(folder);
  RETURN_IF_ERROR(MakeFolder(folder));
  return folder.string();
}

absl::StatusOr<std::string> StateFolder(const std::string& name) {
  ASSIGN_OR_RETURN(const std::string parent, StateFolder());
  const fs::path folder = fs::path(parent) / name;
  RETURN_IF_ERROR(MakeFolder(folder));
  return folder.string();
}

absl::Status ShareStateFolder() {
  if (Environment("COGUMI_STATE_DIR").empty()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::string folder, StateFolder());
  ::setenv("COGUMI_GATEWAY_SESSIONS", (folder + "/sessions.db").c_str(), /*replace=*/0);
  ::setenv("COGUMI_MODIFIERS_STATE_DIR", (folder + "/modifiers").c_str(), /*replace=*/0);
  return absl::OkStatus();
}

std::string ModelFolder() {
  return (BaseFolder("XDG_CACHE_HOME", ".cache") / "cogumi" / "models").string();
}

absl::StatusOr<std::string> MakeSocketFolder() {
  // sun_path holds 107 bytes, so a state folder deep in a tree will not do.
  std::string parent = Environment("XDG_RUNTIME_DIR");
  if (parent.empty() || parent.size() > 60 || ::access(parent.c_str(), W_OK) != 0) parent = "/tmp";
  std::string pattern = absl::StrCat(parent, "/", kSocketFolderPrefix, "XXXXXX");
  if (::mkdtemp(pattern.data()) == nullptr) {
    return absl::PermissionDeniedError(absl::StrCat(pattern, ": ", std::strerror(errno)));
  }
  return pattern;
}

absl::StatusOr<std::string> SiblingBinary(const std::string& name) {
  std::error_code error;
  const fs::path self = fs::read_symlink("/proc/self/exe", error);
  const fs::path path = self.parent_path() / name;
  if (error || ::access(path.c_str(), X_OK) != 0) {
    return WithAdvice(absl::NotFoundError(absl::StrCat(path.string(), " is missing")),
                      "build it: ./run builds everything, or ninja -C build cogumi_services");
  }
  return path.string();
}

std::vector<ModelFile> ListModels() {
  std::vector<ModelFile> models;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(ModelFolder(), error)) {
    if (IsGguf(entry.path())) models.push_back(Describe(entry.path()));
  }
  if (const std::string named = Environment("COGUMI_MODEL"); !named.empty() && IsGguf(named)) {
    const ModelFile model = Describe(named);
    const bool known = std::any_of(models.begin(), models.end(),
                                   [&](const ModelFile& m) { return m.path == model.path; });
    if (!known) models.push_back(model);
  }
  std::sort(models.begin(), models.end(),
            [](const ModelFile& a, const ModelFile& b) { return a.name < b.name; });
  return models;
}

bool NamesModel(const std::string& word) {
  if (IsGguf(word)) return true;
  const auto models = ListModels();
  return std::any_of(models.begin(), models.end(),
                     [&](const ModelFile& m) { return absl::EqualsIgnoreCase(m.name, word); });
}

absl::StatusOr<ModelFile> FindModel(const std::string& name_or_path) {
  std::string wanted = name_or_path;
  if (wanted.empty()) wanted = Environment("COGUMI_MODEL");
  if (wanted.empty()) wanted = (fs::path(ModelFolder()) / kDefaultModelFile).string();
  std::error_code error;
  if (fs::is_regular_file(wanted, error)) return Describe(wanted);
  const auto models = ListModels();
  for (const ModelFile& model : models) {
    if (absl::EqualsIgnoreCase(model.name, wanted)) return model;
  }
  if (name_or_path.empty()) {
    return WithAdvice(absl::NotFoundError(absl::StrCat("there is no model at ", wanted)),
                      "./run fetches the default model; or set COGUMI_MODEL to a GGUF file");
  }
  std::vector<std::string> names;
  names.reserve(models.size());
  for (const ModelFile& model : models) names.push_back(model.name);
  const std::string near = services::Suggest(wanted, names);
  return WithAdvice(
      absl::NotFoundError(absl::StrCat("'", wanted, "' is neither a listed model nor a GGUF file")),
      near.empty() ? "`cogumi list` shows the models of this machine"
                   : absl::StrCat("is it ", near, "? `cogumi list` shows the models"));
}

absl::Status WriteFileAtomically(const std::string& path, const std::string& content) {
  const std::string temporary = absl::StrCat(path, ".", ::getpid());
  {
    std::ofstream file(temporary, std::ios::binary);
    file << content;
    file.close();
    if (!file) return absl::InternalError(absl::StrCat(temporary, " cannot be written"));
  }
  if (std::rename(temporary.c_str(), path.c_str()) != 0) {
    return absl::InternalError(absl::StrCat(path, ": ", std::strerror(errno)));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream content;
  content << file.rdbuf();
  if (!file) return absl::NotFoundError(absl::StrCat(path, " cannot be read"));
  return std::move(content).str();
}

}  // namespace cogumi::cli
