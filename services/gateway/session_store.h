// Session memory: the last turns of each conversation in one SQLite file.
//
// One writer thread, one transaction a turn, WAL with synchronous=FULL: when a commit's callback
// says OK, the turn survives kill -9 and a loss of power. Reads have their own thread and
// connection, so that loading a session never waits for another session's fsync. Keys are
// (tenant, session): no call reaches another tenant's rows.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/core/clock.h"

namespace cogumi::gateway {

struct StoredTurn {
  int64_t number = 0;  // counts from 1 over the life of the session
  std::string user;
  std::string assistant;
  int64_t created_ms = 0;  // Unix epoch
};

struct SessionStoreOptions {
  std::string path;
  int kept_turns = 5;
  // A session that was not written for this long is forgotten; 0: never.
  double ttl_seconds = 30.0 * 24 * 3600;
  // Operations that may wait per thread; more are refused with RESOURCE_EXHAUSTED.
  int max_queued = 1024;
  // How long another process may hold the write lock before an operation is UNAVAILABLE.
  int busy_timeout_ms = 2000;
  const Clock* clock = Clock::Real();
};

struct SessionStoreStats {
  uint64_t commits = 0;
  uint64_t commit_errors = 0;
  uint64_t load_errors = 0;
  uint64_t erased_turns = 0;
  uint64_t expired_sessions = 0;
};

// Thread-safe and asynchronous: callbacks run on the store's threads and must not block. Errors:
// UNAVAILABLE (locked by another process, or shutting down), RESOURCE_EXHAUSTED (disk or queue
// full), DATA_LOSS (damaged file), FAILED_PRECONDITION (read-only), INTERNAL (I/O errors).
class SessionStore {
 public:
  using TurnsCallback = std::function<void(absl::StatusOr<std::vector<StoredTurn>>)>;
  using NumberCallback = std::function<void(absl::StatusOr<int64_t>)>;

  // Creates the file (mode 0600) and its folder when missing. FAILED_PRECONDITION for a file whose
  // schema is newer than this program's, or that belongs to another program.
  static absl::StatusOr<std::unique_ptr<SessionStore>> Create(const SessionStoreOptions& options);
  // Runs what was queued, then closes.
  virtual ~SessionStore() = default;

  // The kept turns, oldest first; none for an unknown or expired session.
  virtual void Load(std::string tenant, std::string session, TurnsCallback done) = 0;
  // Appends a turn, trims to `kept_turns` in the same transaction and answers its number.
  virtual void Commit(std::string tenant, std::string session, std::string user,
                      std::string assistant, NumberCallback done) = 0;
  // Forgets the session and answers how many turns it had.
  virtual void Erase(std::string tenant, std::string session, NumberCallback done) = 0;

  virtual SessionStoreStats Stats() const = 0;
};

}  // namespace cogumi::gateway
