// Adapters for requests: a name becomes a digest, and the digest a resident adapter of the engine.
//
// One thread follows the catalogue; one fetches, verifies and loads what is not resident. While the
// catalogue is out of reach, what is resident is served. A request keeps the version that its name
// stood for when it began.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cogumi/engine.h"
#include "engine/core/clock.h"
#include "services/common/worker.h"
#include "services/decoder/adapter_catalogue.h"
#include "services/decoder/adapter_supplier.h"

namespace cogumi::services {

// An adapter that a request uses; counted as running until the last copy goes.
struct AdapterInUse {
  std::string name;  // as it was asked for: a name or a digest
  std::string digest;
  AdapterLease lease;
  std::shared_ptr<void> counted;
};

struct AdapterStoreFigures {
  AdapterStats engine;
  bool current = false;  // the catalogue
  double age = 0;        // seconds since it was
  int64_t known = 0;     // adapters in it
  uint64_t fetches = 0;
  uint64_t fetch_errors = 0;
  std::vector<std::string> running;  // names, ascending
  std::vector<std::string> waiting;  // for their bytes
};

struct AdapterStoreOptions {
  const Clock* clock = nullptr;  // null: the real one
  // Waits before the next attempt to follow the catalogue. Null: real time.
  std::function<void(double seconds)> pause;
};

// Thread-safe.
class AdapterStore {
 public:
  using Callback = std::function<void(absl::StatusOr<AdapterInUse>)>;

  // The engine outlives the store.
  AdapterStore(Engine& engine, std::unique_ptr<AdapterSupplier> supplier,
               AdapterStoreOptions options);
  // What waits is told UNAVAILABLE.
  ~AdapterStore();
  AdapterStore(const AdapterStore&) = delete;
  AdapterStore& operator=(const AdapterStore&) = delete;

  // `done` comes at once for what is resident, else from the loading thread. A name that the
  // catalogue's stream has not told is asked for, so that one just registered is known. Errors:
  // NOT_FOUND naming it, UNAVAILABLE (the catalogue is out of reach and it is not resident),
  // FAILED_PRECONDITION (another base, or other bytes than its digest says; naming both digests),
  // RESOURCE_EXHAUSTED (adapter_bytes, or too many wait).
  void Resolve(const std::string& name_or_digest, Callback done);

  std::vector<v1::Adapter> List() const { return catalogue_.List(); }
  AdapterStoreFigures Figures() const;

 private:
  void Follow();
  void Pause(double seconds);
  // On the worker.
  void Load(const std::string& key);
  absl::StatusOr<AdapterInUse> LoadNow(const std::string& key);
  absl::StatusOr<AdapterLease> Fetch(const v1::Adapter& described);
  AdapterInUse InUse(const std::string& key, const std::string& digest, AdapterLease lease);

  struct Counts {
    std::mutex mutex;
    std::map<std::string, int> running;  // by name
  };

  Engine& engine_;
  const std::unique_ptr<AdapterSupplier> supplier_;
  const AdapterStoreOptions options_;
  const Clock& clock_;
  AdapterCatalogue catalogue_;
  const std::shared_ptr<Counts> counts_ = std::make_shared<Counts>();

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;
  std::map<std::string, std::vector<Callback>> waiting_;  // by what was asked for
  uint64_t fetches_ = 0;
  uint64_t fetch_errors_ = 0;

  std::unique_ptr<Worker> loader_;
  std::thread follower_;
};

}  // namespace cogumi::services
