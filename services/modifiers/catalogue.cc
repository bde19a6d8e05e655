#include "services/modifiers/catalogue.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <system_error>
#include <utility>

#include "engine/core/status_macros.h"
#include "engine/io/json.h"
#include "services/common/logging.h"
#include "services/common/request_context.h"
#include "services/common/status.h"
#include "services/common/text.h"

namespace cogumi::services {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kIndexFormat = 1;
constexpr uint64_t kMaxIndexBytes = 1 << 20;

absl::Status MakeFolder(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error) return absl::UnavailableError(Cat("creating ", path, ": ", error.message()));
  fs::permissions(path, fs::perms::owner_all, error);
  return absl::OkStatus();
}

// Removes the folder at the end of its block unless it was renamed away.
class Staging {
 public:
  explicit Staging(std::string path) : path_(std::move(path)) {}
  ~Staging() {
    std::error_code error;
    fs::remove_all(path_, error);
  }
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// Sizes and times of the files: other bytes make another text.
std::string StateOfFiles(const std::string& folder) {
  std::string text;
  for (const char* name : kAdapterFiles) {
    struct stat status = {};
    if (::stat(Cat(folder, "/", name).c_str(), &status) != 0) continue;
    text +=
        Cat(name, " ", status.st_ino, " ", status.st_size, " ", status.st_mtim.tv_sec, ".",
            status.st_mtim.tv_nsec, " ", status.st_ctim.tv_sec, ".", status.st_ctim.tv_nsec, "\n");
  }
  return text;
}

bool IsInside(const fs::path& path, const fs::path& folder) {
  const auto end = std::mismatch(folder.begin(), folder.end(), path.begin(), path.end());
  return end.first == folder.end();
}

}  // namespace

Catalogue::Catalogue(const CatalogueOptions& options)
    : options_(options), clock_(options.clock != nullptr ? options.clock : Clock::Real()) {}

Catalogue::~Catalogue() {
  CloseListeners();
  if (lock_descriptor_ >= 0) ::close(lock_descriptor_);
}

absl::StatusOr<std::unique_ptr<Catalogue>> Catalogue::Create(const CatalogueOptions& options) {
  std::unique_ptr<Catalogue> catalogue(new Catalogue(options));
  RETURN_IF_ERROR(catalogue->Load());
  catalogue->ScanFolder();
  return catalogue;
}

absl::Status Catalogue::Load() {
  const std::string& state = options_.state_dir;
  if (state.empty()) return FieldError("state_dir", "a folder is wanted");
  RETURN_IF_ERROR(MakeFolder(state));
  const std::string lock = state + "/lock";
  lock_descriptor_ = ::open(lock.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, S_IRUSR | S_IWUSR);
  if (lock_descriptor_ < 0) return ErrnoError("opening", lock);
  if (::flock(lock_descriptor_, LOCK_EX | LOCK_NB) != 0) {
    return absl::UnavailableError(
        Cat(state, " is used by another process; give each its own state_dir"));
  }
  std::error_code error;
  fs::remove_all(state + "/incoming", error);
  RETURN_IF_ERROR(MakeFolder(state + "/incoming"));
  RETURN_IF_ERROR(MakeFolder(state + "/adapters"));
  RETURN_IF_ERROR(ReadIndex());
  DeleteOrphans();
  return absl::OkStatus();
}

// Bytes whose registration never reached the index.
void Catalogue::DeleteOrphans() {
  std::vector<fs::path> orphans;
  std::error_code error;
  for (fs::directory_iterator it(options_.state_dir + "/adapters", error), end; !error && it != end;
       it.increment(error)) {
    const std::string digest = it->path().filename().string();
    const auto has_digest = [&digest](const auto& entry) {
      return entry.second.digest() == digest;
    };
    if (std::none_of(state_.adapters.begin(), state_.adapters.end(), has_digest) &&
        std::none_of(left_out_.begin(), left_out_.end(), has_digest)) {
      orphans.push_back(it->path());
    }
  }
  for (const fs::path& orphan : orphans) fs::remove_all(orphan, error);
}

absl::Status Catalogue::ReadIndex() {
  const std::string path = options_.state_dir + "/index.json";
  auto file = File::Open(path, kMaxIndexBytes);
  if (absl::IsNotFound(file.status())) return absl::OkStatus();
  RETURN_IF_ERROR(file.status());
  ASSIGN_OR_RETURN(const std::string text, file->ReadAll());
  JsonLimits limits;
  limits.max_bytes = kMaxIndexBytes;
  const auto root = ParseJson(text, limits);
  const auto damaged = [&path](const std::string& what) {
    return absl::DataLossError(
        Cat(path, ": ", what, "; restore it, or move it away to start with an empty catalogue"));
  };
  if (!root.ok()) return damaged(std::string(root.status().message()));
  const Json* format = root->Find("format");
  const Json* revision = root->Find("revision");
  const Json* adapters = root->Find("adapters");
  if (format == nullptr || format->integer() == nullptr || *format->integer() != kIndexFormat) {
    return damaged("unknown format");
  }
  if (revision == nullptr || revision->integer() == nullptr || adapters == nullptr ||
      adapters->array() == nullptr) {
    return damaged("revision or adapters are missing");
  }
  state_.revision = *revision->integer();
  if (const Json* removed = root->Find("removed"); removed != nullptr) {
    if (removed->array() == nullptr) return damaged("a malformed list of removed adapters");
    for (const Json& entry : *removed->array()) {
      const Json* name = entry.Find("name");
      const Json* digest = entry.Find("digest");
      if (name == nullptr || name->string() == nullptr || digest == nullptr ||
          digest->string() == nullptr) {
        return damaged("a malformed removed adapter");
      }
      state_.removed[*name->string()] = *digest->string();
    }
  }
  for (const Json& entry : *adapters->array()) {
    const Json* name = entry.Find("name");
    const Json* digest = entry.Find("digest");
    const Json* registered = entry.Find("registered_ms");
    if (name == nullptr || name->string() == nullptr || !IsValidAdapterName(*name->string()) ||
        digest == nullptr || digest->string() == nullptr || !IsValidDigest(*digest->string()) ||
        registered == nullptr || registered->integer() == nullptr) {
      return damaged("a malformed adapter");
    }
    const Json* from_folder = entry.Find("from_folder");
    if (from_folder != nullptr && from_folder->boolean() != nullptr && *from_folder->boolean()) {
      state_.from_folder.insert(*name->string());
    }
    const auto base = Base();
    auto adapter = base.ok() ? InspectAdapter(FolderOf(*digest->string()), *base)
                             : absl::StatusOr<v1::Adapter>(base.status());
    if (adapter.ok() && adapter->digest() != *digest->string()) {
      adapter = absl::DataLossError("its bytes have another digest than they were stored by");
    }
    if (!adapter.ok()) {
      v1::Adapter& kept = left_out_[*name->string()];
      kept.set_digest(*digest->string());
      kept.set_registered_ms(*registered->integer());
      LogLine("modifiers",
              Cat("adapter ", *name->string(), " is left out: ", adapter.status().message()));
      continue;
    }
    adapter->set_name(*name->string());
    adapter->set_registered_ms(*registered->integer());
    state_.adapters[*name->string()] = *std::move(adapter);
  }
  return absl::OkStatus();
}

// Not at the start: a cluster without adapters needs no digest of its model.
absl::StatusOr<BaseModel> Catalogue::Base() {
  if (options_.base_model.empty()) return options_.base;
  if (!base_) base_ = ReadBaseModel(options_.base_model);
  return *base_;
}

void Catalogue::ScanFolder() {
  if (options_.folder.empty()) return;
  std::map<std::string, std::string> found;  // names, and what their files look like
  std::error_code error;
  for (fs::directory_iterator it(options_.folder, error), end; !error && it != end;
       it.increment(error)) {
    const std::string name = it->path().filename().string();
    std::error_code ignored;
    if (IsValidAdapterName(name) && fs::exists(it->path() / kConfigFile, ignored)) {
      found[name] = StateOfFiles(it->path().string());
    }
  }
  std::lock_guard<std::mutex> one_writer(write_mutex_);
  if (error) {
    // Not a word about the adapters: it may be back soon.
    if (seen_.contains("")) return;
    LogLine("modifiers", Cat("reading ", options_.folder, ": ", error.message()));
    seen_[""] = error.message();
    return;
  }
  for (auto& [name, state] : found) {
    const auto seen = seen_.find(name);
    if (seen != seen_.end() && seen->second == state) continue;
    const auto result = RegisterLocked(name, options_.folder + "/" + name, Origin::kFolder);
    if (result.ok()) continue;
    LogLine("modifiers", Cat("adapter ", name, " of the folder: ", result.status().message()));
    // What is wrong with the adapter is looked at once; what is wrong with the disk may pass.
    const bool refused = absl::IsInvalidArgument(result.status()) ||
                         absl::IsFailedPrecondition(result.status()) ||
                         absl::IsNotFound(result.status());
    if (!refused) state.clear();
  }
  for (const std::string& name : Copy().from_folder) {
    if (found.contains(name)) continue;
    const auto result = RemoveLocked(name, Origin::kFolder);
    LogLine("modifiers", Cat("adapter ", name, " is no longer in the folder",
                             result.ok() ? "" : Cat(": ", result.status().message())));
  }
  seen_ = std::move(found);
}

absl::StatusOr<std::string> Catalogue::ResolvePath(const std::string& path) const {
  if (path.empty() || path.size() > 4096 || path.find('\0') != std::string::npos) {
    return FieldError("path", "a folder of at most 4096 bytes is wanted");
  }
  const fs::path given(path);
  if (std::any_of(given.begin(), given.end(), [](const fs::path& p) { return p == ".."; })) {
    return FieldError("path", "\"..\" is not taken");
  }
  std::error_code error;
  if (options_.folder.empty()) {
    if (!given.is_absolute()) return FieldError("path", "an absolute path is wanted");
    return path;
  }
  const fs::path folder = fs::canonical(options_.folder, error);
  if (error) return absl::UnavailableError(Cat(options_.folder, ": ", error.message()));
  const fs::path resolved = fs::canonical(given.is_absolute() ? given : folder / given, error);
  if (error) return FieldError("path", error.message());
  if (!IsInside(resolved, folder)) {
    return FieldError("path", Cat("it lies outside ", options_.folder));
  }
  return resolved.string();
}

absl::StatusOr<Registration> Catalogue::Register(const std::string& name, const std::string& path) {
  if (!IsValidAdapterName(name)) {
    return FieldError("name", "^[a-z0-9][a-z0-9._-]{0,63}$ is wanted");
  }
  ASSIGN_OR_RETURN(const std::string folder, ResolvePath(path));
  std::lock_guard<std::mutex> one_writer(write_mutex_);
  return RegisterLocked(name, folder, Origin::kCaller);
}

// Whether `path` is what a scan would register by this name.
bool Catalogue::IsOfFolder(const std::string& name, const std::string& path) const {
  if (options_.folder.empty()) return false;
  std::error_code error;
  return fs::equivalent(fs::path(options_.folder) / name, path, error) && !error;
}

absl::StatusOr<v1::Adapter> Catalogue::Import(const std::string& folder) {
  // Checked is the copy: the source may change under our eyes.
  const Staging staging(Cat(options_.state_dir, "/incoming/", NewRequestId()));
  RETURN_IF_ERROR(MakeFolder(staging.path()));
  for (const char* name : kAdapterFiles) {
    const bool weights = std::string_view(name) == kWeightsFile;
    ASSIGN_OR_RETURN(const File source, File::Open(Cat(folder, "/", name),
                                                   weights ? kMaxWeightsBytes : kMaxJsonBytes));
    RETURN_IF_ERROR(CopyAndSync(source, Cat(staging.path(), "/", name)));
  }
  ASSIGN_OR_RETURN(const BaseModel base, Base());
  ASSIGN_OR_RETURN(v1::Adapter adapter, InspectAdapter(staging.path(), base));
  RETURN_IF_ERROR(SyncFolder(staging.path()));
  const std::string target = FolderOf(adapter.digest());
  // What lies there already may be damaged, and is the same otherwise.
  std::error_code error;
  fs::remove_all(target, error);
  if (std::rename(staging.path().c_str(), target.c_str()) != 0) {
    return ErrnoError("renaming", staging.path());
  }
  RETURN_IF_ERROR(SyncFolder(options_.state_dir + "/adapters"));
  return adapter;
}

absl::StatusOr<Registration> Catalogue::RegisterLocked(const std::string& name,
                                                       const std::string& folder, Origin origin) {
  State next = Copy();
  if (next.adapters.size() >= kMaxAdapters && !next.adapters.contains(name)) {
    return absl::ResourceExhaustedError(Cat("the catalogue holds ", kMaxAdapters, " adapters"));
  }
  auto imported = Import(folder);
  if (!imported.ok()) {
    std::lock_guard<std::mutex> lock(mutex_);
    ++figures_.refused;
    return imported.status();
  }
  Registration result;
  result.adapter = *std::move(imported);
  const std::string digest = result.adapter.digest();
  if (origin == Origin::kFolder) {
    if (const auto gone = next.removed.find(name);
        gone != next.removed.end() && gone->second == digest) {
      DeleteUnused(digest);
      result.unchanged = true;
      return result;
    }
  }
  const bool followed = next.from_folder.contains(name);
  next.removed.erase(name);
  if (origin == Origin::kFolder || IsOfFolder(name, folder)) {
    next.from_folder.insert(name);
  } else {
    next.from_folder.erase(name);  // the folder's namesake is another one from now on
  }
  std::optional<v1::Adapter> replaced;
  if (const auto old = next.adapters.find(name); old != next.adapters.end()) {
    if (old->second.digest() == digest) {
      result.adapter = old->second;
      result.unchanged = true;
      if (followed == next.from_folder.contains(name)) return result;
    } else {
      replaced = old->second;
    }
  }
  if (!result.unchanged) {
    result.adapter.set_name(name);
    result.adapter.set_registered_ms(static_cast<int64_t>(clock_->UnixNow() * 1000));
    next.adapters[name] = result.adapter;
    next.revision += replaced ? 2 : 1;
  }
  RETURN_IF_ERROR(WriteIndex(next));
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const int64_t revision = next.revision;
    state_ = std::move(next);
    left_out_.erase(name);  // the index was written without it
    if (!result.unchanged) {
      ++figures_.registered;
      if (replaced) Notify(v1::CHANGE_TYPE_REMOVED, *replaced, revision - 1);
      Notify(v1::CHANGE_TYPE_ADDED, result.adapter, revision);
    }
  }
  if (replaced) DeleteUnused(replaced->digest());
  return result;
}

absl::StatusOr<v1::Adapter> Catalogue::Remove(const std::string& name) {
  if (!IsValidAdapterName(name)) {
    return FieldError("name", "^[a-z0-9][a-z0-9._-]{0,63}$ is wanted");
  }
  std::lock_guard<std::mutex> one_writer(write_mutex_);
  return RemoveLocked(name, Origin::kCaller);
}

absl::StatusOr<v1::Adapter> Catalogue::RemoveLocked(const std::string& name, Origin origin) {
  State next = Copy();
  const bool followed = next.from_folder.erase(name) > 0;
  v1::Adapter adapter;
  const auto it = next.adapters.find(name);
  const bool known = it != next.adapters.end();
  if (known) {
    adapter = it->second;
    next.adapters.erase(it);
    ++next.revision;
    if (followed && origin == Origin::kCaller) next.removed[name] = adapter.digest();
  } else if (origin == Origin::kCaller) {
    return absl::NotFoundError(Cat("no adapter is named ", name));
  } else {
    std::lock_guard<std::mutex> lock(mutex_);
    left_out_.erase(name);
  }
  RETURN_IF_ERROR(WriteIndex(next));
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const int64_t revision = next.revision;
    state_ = std::move(next);
    if (known) {
      ++figures_.removed;
      Notify(v1::CHANGE_TYPE_REMOVED, adapter, revision);
    }
  }
  if (known) DeleteUnused(adapter.digest());
  return adapter;
}

Catalogue::State Catalogue::Copy() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return state_;
}

absl::Status Catalogue::WriteIndex(const State& state) {
  std::map<std::string, v1::Adapter> all = state.adapters;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    all.insert(left_out_.begin(), left_out_.end());
  }
  std::string text =
      Cat("{\"format\":", kIndexFormat, ",\"revision\":", state.revision, ",\"adapters\":[");
  const char* separator = "";
  for (const auto& [name, adapter] : all) {
    text += Cat(separator, "\n{\"name\":", JsonString(name),
                ",\"digest\":", JsonString(adapter.digest()),
                ",\"registered_ms\":", adapter.registered_ms(),
                state.from_folder.contains(name) ? ",\"from_folder\":true}" : "}");
    separator = ",";
  }
  text += "],\"removed\":[";
  separator = "";
  for (const auto& [name, digest] : state.removed) {
    text +=
        Cat(separator, "\n{\"name\":", JsonString(name), ",\"digest\":", JsonString(digest), "}");
    separator = ",";
  }
  return WriteAtomically(options_.state_dir + "/index.json", text + "]}\n");
}

void Catalogue::Notify(v1::ChangeType type, const v1::Adapter& adapter, int64_t revision) {
  std::erase_if(listeners_, [](const auto& listener) { return listener.expired(); });
  for (const auto& weak : listeners_) {
    if (const auto listener = weak.lock()) listener->OnChange(type, &adapter, revision);
  }
}

void Catalogue::DeleteUnused(const std::string& digest) {
  if (GetByDigest(digest).ok()) return;
  std::error_code error;
  fs::remove_all(FolderOf(digest), error);
  if (error) LogLine("modifiers", Cat("deleting ", FolderOf(digest), ": ", error.message()));
}

std::string Catalogue::FolderOf(const std::string& digest) const {
  return Cat(options_.state_dir, "/adapters/", digest);
}

std::vector<v1::Adapter> Catalogue::List(int64_t* revision) const {
  std::lock_guard<std::mutex> lock(mutex_);
  if (revision != nullptr) *revision = state_.revision;
  std::vector<v1::Adapter> adapters;
  for (const auto& [name, adapter] : state_.adapters) adapters.push_back(adapter);
  return adapters;
}

absl::StatusOr<v1::Adapter> Catalogue::GetByName(const std::string& name) const {
  if (!IsValidAdapterName(name)) {
    return FieldError("name", "^[a-z0-9][a-z0-9._-]{0,63}$ is wanted");
  }
  std::lock_guard<std::mutex> lock(mutex_);
  const auto it = state_.adapters.find(name);
  if (it == state_.adapters.end()) return absl::NotFoundError(Cat("no adapter is named ", name));
  return it->second;
}

absl::StatusOr<v1::Adapter> Catalogue::GetByDigest(const std::string& digest) const {
  if (!IsValidDigest(digest)) {
    return FieldError("digest", "64 lower-case hexadecimal digits are wanted");
  }
  std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& [name, adapter] : state_.adapters) {
    if (adapter.digest() == digest) return adapter;
  }
  return absl::NotFoundError(Cat("no adapter has the digest ", digest));
}

absl::StatusOr<std::vector<File>> Catalogue::OpenFiles(const std::string& digest) const {
  RETURN_IF_ERROR(GetByDigest(digest).status());
  std::vector<File> files;
  for (const char* name : kAdapterFiles) {
    ASSIGN_OR_RETURN(File file, File::Open(Cat(FolderOf(digest), "/", name), kMaxWeightsBytes));
    files.push_back(std::move(file));
  }
  return files;
}

absl::Status Catalogue::Subscribe(const std::shared_ptr<CatalogueListener>& listener) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (closed_) return absl::UnavailableError("the catalogue is closing");
  for (const auto& [name, adapter] : state_.adapters) {
    listener->OnChange(v1::CHANGE_TYPE_ADDED, &adapter, state_.revision);
  }
  listener->OnChange(v1::CHANGE_TYPE_SYNCED, nullptr, state_.revision);
  std::erase_if(listeners_, [](const auto& other) { return other.expired(); });
  listeners_.push_back(listener);
  return absl::OkStatus();
}

void Catalogue::CloseListeners() {
  std::vector<std::weak_ptr<CatalogueListener>> listeners;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
    listeners.swap(listeners_);
  }
  for (const auto& weak : listeners) {
    if (const auto listener = weak.lock()) listener->OnClosed();
  }
}

CatalogueFigures Catalogue::Figures() const {
  std::lock_guard<std::mutex> lock(mutex_);
  CatalogueFigures figures = figures_;
  figures.adapters = static_cast<int64_t>(state_.adapters.size());
  figures.left_out = static_cast<int64_t>(left_out_.size());
  for (const auto& [name, adapter] : state_.adapters) {
    figures.bytes += adapter.bytes();
    figures.newest_unix_seconds =
        std::max(figures.newest_unix_seconds, static_cast<double>(adapter.registered_ms()) / 1e3);
  }
  return figures;
}

}  // namespace cogumi::services
