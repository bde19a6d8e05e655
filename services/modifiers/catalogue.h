// The catalogue of adapters on disk: validated, stored by digest, safe against a power cut.
//
//   <state>/adapters/<digest>/{adapter_config.json, adapter_model.safetensors, card.json}
//   <state>/index.json    names, digests, times, what was removed from the folder, and the
//                         revision; replaced as a whole
//   <state>/incoming/     copies under validation; emptied at the start
//   <state>/lock          one process at a time
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cogumi/v1/modifiers.pb.h"
#include "engine/core/clock.h"
#include "services/modifiers/adapter.h"
#include "services/modifiers/files.h"

namespace cogumi::services {

inline constexpr size_t kMaxAdapters = 1024;

// Hears of changes in their order; called with the catalogue's lock held: hand over and return.
class CatalogueListener {
 public:
  virtual ~CatalogueListener() = default;
  virtual void OnChange(v1::ChangeType type, const v1::Adapter* adapter, int64_t revision) = 0;
  // No more changes: the service stops.
  virtual void OnClosed() = 0;
};

struct CatalogueOptions {
  std::string state_dir;
  // Folder of adapter folders, read at the start and by ScanFolder; "" for none. When set, Register
  // takes only what lies inside.
  std::string folder;
  // GGUF file of the base, read when the first adapter is checked; "": `base` says what it is.
  std::string base_model;
  BaseModel base;
  const Clock* clock = nullptr;  // null: the real one
};

struct Registration {
  v1::Adapter adapter;
  bool unchanged = false;
};

struct CatalogueFigures {
  int64_t adapters = 0;
  int64_t bytes = 0;
  double newest_unix_seconds = 0;  // 0: none
  int64_t registered = 0;          // since the start
  int64_t removed = 0;
  int64_t refused = 0;  // by validation
  int64_t left_out = 0;  // stored adapters that are damaged or made for another base
};

// Thread-safe; Register and Remove wait for the disk.
class Catalogue {
 public:
  // Reads the index and checks every stored byte again. What is damaged or made for another base is
  // left out and logged, but stays in the index.
  // Errors: UNAVAILABLE (another process holds the state), DATA_LOSS (an unreadable index).
  static absl::StatusOr<std::unique_ptr<Catalogue>> Create(const CatalogueOptions& options);
  ~Catalogue();

  // Copies, checks and adds the folder `path`; an adapter of that name is replaced.
  // INVALID_ARGUMENT (name, path, what is wrong in which file), FAILED_PRECONDITION (another base),
  // RESOURCE_EXHAUSTED (too many adapters, disk full).
  absl::StatusOr<Registration> Register(const std::string& name, const std::string& path);
  // NOT_FOUND. Bytes that no other name uses are deleted. An adapter of the folder stays removed,
  // also after a restart, until its bytes there change or it is registered.
  absl::StatusOr<v1::Adapter> Remove(const std::string& name);
  // Follows the folder: adds what is new, replaces what has changed, removes what is gone. Looks at
  // files' sizes and times only, unless these have changed since the last scan.
  void ScanFolder();

  std::vector<v1::Adapter> List(int64_t* revision) const;
  absl::StatusOr<v1::Adapter> GetByName(const std::string& name) const;
  absl::StatusOr<v1::Adapter> GetByDigest(const std::string& digest) const;
  // Open files of an adapter, in the order of kAdapterFiles: they stay readable when it is removed.
  absl::StatusOr<std::vector<File>> OpenFiles(const std::string& digest) const;

  // Tells the listener of every adapter, then SYNCED, then each change while it lives.
  absl::Status Subscribe(const std::shared_ptr<CatalogueListener>& listener);
  // Closes all listeners and refuses new ones.
  void CloseListeners();

  CatalogueFigures Figures() const;

 private:
  // What the index holds, but for what is left out.
  struct State {
    std::map<std::string, v1::Adapter> adapters;  // by name
    std::set<std::string> from_folder;            // names that follow the folder
    std::map<std::string, std::string> removed;   // of the folder: name and digest
    int64_t revision = 0;
  };
  enum class Origin { kCaller, kFolder };

  explicit Catalogue(const CatalogueOptions& options);

  absl::Status Load();
  absl::Status ReadIndex();
  void DeleteOrphans();
  absl::StatusOr<BaseModel> Base();
  absl::StatusOr<std::string> ResolvePath(const std::string& path) const;
  bool IsOfFolder(const std::string& name, const std::string& path) const;
  // These have the write mutex.
  absl::StatusOr<Registration> RegisterLocked(const std::string& name, const std::string& folder,
                                              Origin origin);
  absl::StatusOr<v1::Adapter> RemoveLocked(const std::string& name, Origin origin);
  absl::StatusOr<v1::Adapter> Import(const std::string& folder);
  absl::Status WriteIndex(const State& state);
  State Copy() const;

  void Notify(v1::ChangeType type, const v1::Adapter& adapter, int64_t revision);
  void DeleteUnused(const std::string& digest);
  std::string FolderOf(const std::string& digest) const;

  const CatalogueOptions options_;
  const Clock* const clock_;
  int lock_descriptor_ = -1;

  std::mutex write_mutex_;  // one change at a time; taken before mutex_
  std::optional<absl::StatusOr<BaseModel>> base_;
  std::map<std::string, std::string> seen_;  // of the folder: names, and their files' last state
  mutable std::mutex mutex_;
  State state_;
  std::map<std::string, v1::Adapter> left_out_;  // by name: digest and time only
  std::vector<std::weak_ptr<CatalogueListener>> listeners_;
  bool closed_ = false;
  CatalogueFigures figures_;
};

}  // namespace cogumi::services
