#include "services/gateway/session_store.h"

#include <fcntl.h>
#include <sqlite3.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <filesystem>
#include <mutex>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "engine/core/status_macros.h"

namespace cogumi::gateway {
namespace {

constexpr int kSchemaVersion = 1;
// "CgSS": tells our file from any other SQLite file.
constexpr int kApplicationId = 0x43675353;
// Expired sessions are swept at most this often, a few at a time.
constexpr double kSweepSeconds = 60;
constexpr int kSweepSessions = 64;

constexpr char kSchema[] = R"sql(
CREATE TABLE sessions(
  tenant TEXT NOT NULL, session TEXT NOT NULL,
  last_number INTEGER NOT NULL, updated_ms INTEGER NOT NULL,
  PRIMARY KEY(tenant, session));
CREATE INDEX sessions_updated ON sessions(updated_ms);
CREATE TABLE turns(
  tenant TEXT NOT NULL, session TEXT NOT NULL, number INTEGER NOT NULL,
  user TEXT NOT NULL, assistant TEXT NOT NULL, created_ms INTEGER NOT NULL,
  PRIMARY KEY(tenant, session, number));
)sql";

absl::Status ToStatus(int code, absl::string_view what, const char* detail) {
  const std::string message = absl::StrCat("session store: ", what, ": ", detail);
  switch (code & 0xff) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return absl::UnavailableError(absl::StrCat(message, " (another process holds it)"));
    case SQLITE_FULL:
      return absl::ResourceExhaustedError(message);
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return absl::DataLossError(message);
    case SQLITE_READONLY:
    case SQLITE_PERM:
    case SQLITE_CANTOPEN:
    case SQLITE_AUTH:
      return absl::FailedPreconditionError(message);
    case SQLITE_NOMEM:
    case SQLITE_TOOBIG:
      return absl::ResourceExhaustedError(message);
    default:
      return absl::InternalError(message);
  }
}

// One connection; used by one thread after it was opened.
class Database {
 public:
  Database() = default;
  ~Database() {
    for (auto& [sql, statement] : statements_) sqlite3_finalize(statement);
    sqlite3_close(handle_);
  }
  Database(const Database&) = delete;
  Database& operator=(const Database&) = delete;

  absl::Status Open(const std::string& path, int busy_timeout_ms, bool read_only) {
    const int flags =
        SQLITE_OPEN_NOMUTEX | (read_only ? SQLITE_OPEN_READONLY : SQLITE_OPEN_READWRITE);
    const int code = sqlite3_open_v2(path.c_str(), &handle_, flags, nullptr);
    if (code != SQLITE_OK) return Error(code, absl::StrCat("open ", path));
    sqlite3_extended_result_codes(handle_, 1);
    sqlite3_busy_timeout(handle_, busy_timeout_ms);
    // A cache of 512 KiB: the working set is a few rows, and the gateway is to stay small.
    RETURN_IF_ERROR(Execute("PRAGMA cache_size=-512"));
    if (read_only) return absl::OkStatus();
    RETURN_IF_ERROR(Execute("PRAGMA journal_mode=WAL"));
    RETURN_IF_ERROR(Execute("PRAGMA synchronous=FULL"));
    // What is erased is overwritten, not only unlinked.
    return Execute("PRAGMA secure_delete=ON");
  }

  absl::Status Execute(const char* sql) {
    const int code = sqlite3_exec(handle_, sql, nullptr, nullptr, nullptr);
    return code == SQLITE_OK ? absl::OkStatus() : Error(code, sql);
  }

  absl::StatusOr<int64_t> QueryInt(const char* sql) {
    ASSIGN_OR_RETURN(sqlite3_stmt * statement, Prepare(sql));
    const int code = sqlite3_step(statement);
    if (code != SQLITE_ROW) return Error(code, sql);
    const int64_t value = sqlite3_column_int64(statement, 0);
    sqlite3_reset(statement);
    return value;
  }

  // Cached by the address of the literal; reset and ready to bind.
  absl::StatusOr<sqlite3_stmt*> Prepare(const char* sql) {
    for (auto& [known, statement] : statements_) {
      if (known != sql) continue;
      sqlite3_reset(statement);
      sqlite3_clear_bindings(statement);
      return statement;
    }
    sqlite3_stmt* statement = nullptr;
    const int code =
        sqlite3_prepare_v3(handle_, sql, -1, SQLITE_PREPARE_PERSISTENT, &statement, nullptr);
    if (code != SQLITE_OK) return Error(code, "prepare");
    statements_.emplace_back(sql, statement);
    return statement;
  }

  // Binds text and integers from parameter 1 on, runs to the end and resets.
  template <typename... Args>
  absl::Status Run(const char* sql, const Args&... args) {
    ASSIGN_OR_RETURN(sqlite3_stmt * statement, Prepare(sql));
    int index = 0;
    (Bind(statement, ++index, args), ...);
    int code = SQLITE_ROW;
    while (code == SQLITE_ROW) code = sqlite3_step(statement);
    absl::Status status = code == SQLITE_DONE ? absl::OkStatus() : Error(code, "statement");
    sqlite3_reset(statement);
    return status;
  }

  static void Bind(sqlite3_stmt* statement, int index, std::string_view text) {
    sqlite3_bind_text64(statement, index, text.data(), text.size(), SQLITE_STATIC, SQLITE_UTF8);
  }
  static void Bind(sqlite3_stmt* statement, int index, int64_t value) {
    sqlite3_bind_int64(statement, index, value);
  }

  static std::string Text(sqlite3_stmt* statement, int column) {
    const void* data = sqlite3_column_blob(statement, column);
    const int bytes = sqlite3_column_bytes(statement, column);
    return data == nullptr
               ? std::string()
               : std::string(static_cast<const char*>(data), static_cast<size_t>(bytes));
  }

  int Changes() const { return sqlite3_changes(handle_); }

  absl::Status Error(int code, absl::string_view what) const {
    return ToStatus(code, what,
                    handle_ == nullptr ? sqlite3_errstr(code) : sqlite3_errmsg(handle_));
  }

 private:
  sqlite3* handle_ = nullptr;
  std::vector<std::pair<const char*, sqlite3_stmt*>> statements_;
};

// Rolls back unless committed: an error leaves no open transaction behind.
class Transaction {
 public:
  explicit Transaction(Database& database) : database_(database) {}
  ~Transaction() {
    if (open_) database_.Execute("ROLLBACK").IgnoreError();
  }
  Transaction(const Transaction&) = delete;
  Transaction& operator=(const Transaction&) = delete;

  absl::Status Begin() {
    RETURN_IF_ERROR(database_.Execute("BEGIN IMMEDIATE"));
    open_ = true;
    return absl::OkStatus();
  }
  absl::Status Commit() {
    RETURN_IF_ERROR(database_.Execute("COMMIT"));
    open_ = false;
    return absl::OkStatus();
  }

 private:
  Database& database_;
  bool open_ = false;
};

// A thread with a bounded queue that is emptied before the thread ends.
class Worker {
 public:
  explicit Worker(size_t limit) : limit_(limit), thread_([this] { Loop(); }) {}
  ~Worker() {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_one();
    thread_.join();
  }

  absl::Status Post(std::function<void()> task) {
    {
      std::lock_guard lock(mutex_);
      if (stopping_) return absl::UnavailableError("session store: shutting down");
      if (tasks_.size() >= limit_) {
        return absl::ResourceExhaustedError(
            absl::StrCat("session store: ", limit_, " operations are waiting, which is the limit"));
      }
      tasks_.push_back(std::move(task));
    }
    wake_.notify_one();
    return absl::OkStatus();
  }

 private:
  void Loop() {
    std::unique_lock lock(mutex_);
    while (true) {
      wake_.wait(lock, [this] { return stopping_ || !tasks_.empty(); });
      if (tasks_.empty()) return;
      std::function<void()> task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      task();
      task = nullptr;
      lock.lock();
    }
  }

  const size_t limit_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> tasks_;
  bool stopping_ = false;
  std::thread thread_;
};

// Makes the file with mode 0600 before SQLite sees it: its -wal and -shm files inherit the mode.
absl::Status PrepareFile(const std::string& path) {
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  std::error_code error;
  if (!folder.empty()) {
    std::filesystem::create_directories(folder, error);
    if (error) {
      return absl::FailedPreconditionError(absl::StrCat("session store: cannot create folder ",
                                                        folder.string(), ": ", error.message()));
    }
  }
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, S_IRUSR | S_IWUSR);
  if (fd < 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("session store: cannot open ", path, ": ", std::strerror(errno)));
  }
  const bool private_mode = fchmod(fd, S_IRUSR | S_IWUSR) == 0;
  const int mode_error = errno;
  close(fd);
  if (!private_mode) {
    return absl::FailedPreconditionError(
        absl::StrCat("session store: cannot make ", path, " private: ", std::strerror(mode_error)));
  }
  // The folder's entry of a new file is to survive a loss of power, too.
  const int folder_fd = open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_CLOEXEC);
  if (folder_fd >= 0) {
    fsync(folder_fd);
    close(folder_fd);
  }
  return absl::OkStatus();
}

absl::Status PrepareSchema(Database& database, const std::string& path) {
  Transaction transaction(database);
  RETURN_IF_ERROR(transaction.Begin());
  ASSIGN_OR_RETURN(const int64_t application, database.QueryInt("PRAGMA application_id"));
  ASSIGN_OR_RETURN(const int64_t version, database.QueryInt("PRAGMA user_version"));
  if (application == 0 && version == 0) {
    ASSIGN_OR_RETURN(const int64_t tables, database.QueryInt("SELECT count(*) FROM sqlite_master"));
    if (tables != 0) {
      return absl::FailedPreconditionError(
          absl::StrCat("session store: ", path, " is a SQLite file of another program"));
    }
    RETURN_IF_ERROR(database.Execute(kSchema));
    RETURN_IF_ERROR(
        database.Execute(absl::StrCat("PRAGMA application_id=", kApplicationId).c_str()));
    RETURN_IF_ERROR(database.Execute(absl::StrCat("PRAGMA user_version=", kSchemaVersion).c_str()));
    return transaction.Commit();
  }
  if (application != kApplicationId) {
    return absl::FailedPreconditionError(
        absl::StrCat("session store: ", path, " is a SQLite file of another program"));
  }
  if (version != kSchemaVersion) {
    return absl::FailedPreconditionError(absl::StrCat(
        "session store: ", path, " has schema version ", version, ", this program knows up to ",
        kSchemaVersion, "; use the newer program or another file"));
  }
  return transaction.Commit();
}

class SqliteSessionStore : public SessionStore {
 public:
  explicit SqliteSessionStore(const SessionStoreOptions& options) : options_(options) {}

  ~SqliteSessionStore() override {
    // Threads first: their tasks use the connections.
    writer_.reset();
    reader_.reset();
  }

  absl::Status Open() {
    RETURN_IF_ERROR(PrepareFile(options_.path));
    RETURN_IF_ERROR(write_.Open(options_.path, options_.busy_timeout_ms, /*read_only=*/false));
    RETURN_IF_ERROR(PrepareSchema(write_, options_.path));
    RETURN_IF_ERROR(Sweep());
    RETURN_IF_ERROR(read_.Open(options_.path, options_.busy_timeout_ms, /*read_only=*/true));
    writer_ = std::make_unique<Worker>(static_cast<size_t>(options_.max_queued));
    reader_ = std::make_unique<Worker>(static_cast<size_t>(options_.max_queued));
    return absl::OkStatus();
  }

  void Load(std::string tenant, std::string session, TurnsCallback done) override {
    // Shared: when the queue is full the callback is still needed here.
    auto callback = std::make_shared<TurnsCallback>(std::move(done));
    const absl::Status posted =
        reader_->Post([this, tenant = std::move(tenant), session = std::move(session), callback] {
          auto turns = LoadNow(tenant, session);
          if (!turns.ok()) ++load_errors_;
          (*callback)(std::move(turns));
        });
    if (posted.ok()) return;
    ++load_errors_;
    (*callback)(posted);
  }

  void Commit(std::string tenant, std::string session, std::string user, std::string assistant,
              NumberCallback done) override {
    auto callback = std::make_shared<NumberCallback>(std::move(done));
    const absl::Status posted =
        writer_->Post([this, tenant = std::move(tenant), session = std::move(session),
                       user = std::move(user), assistant = std::move(assistant), callback] {
          auto number = CommitNow(tenant, session, user, assistant);
          ++(number.ok() ? commits_ : commit_errors_);
          (*callback)(std::move(number));
          if (options_.clock->Now() - last_sweep_ >= kSweepSeconds) Sweep().IgnoreError();
        });
    if (posted.ok()) return;
    ++commit_errors_;
    (*callback)(posted);
  }

  void Erase(std::string tenant, std::string session, NumberCallback done) override {
    auto callback = std::make_shared<NumberCallback>(std::move(done));
    const absl::Status posted =
        writer_->Post([this, tenant = std::move(tenant), session = std::move(session), callback] {
          auto erased = EraseNow(tenant, session);
          if (erased.ok()) erased_turns_ += static_cast<uint64_t>(*erased);
          (*callback)(std::move(erased));
        });
    if (!posted.ok()) (*callback)(posted);
  }

  SessionStoreStats Stats() const override {
    return {.commits = commits_,
            .commit_errors = commit_errors_,
            .load_errors = load_errors_,
            .erased_turns = erased_turns_,
            .expired_sessions = expired_sessions_};
  }

 private:
  int64_t NowMs() const { return static_cast<int64_t>(options_.clock->UnixNow() * 1000); }
  // Sessions last written before this are expired.
  int64_t ExpiryMs() const {
    return options_.ttl_seconds <= 0 ? INT64_MIN
                                     : NowMs() - static_cast<int64_t>(options_.ttl_seconds * 1000);
  }

  absl::StatusOr<std::vector<StoredTurn>> LoadNow(const std::string& tenant,
                                                  const std::string& session) {
    static constexpr char kSql[] =
        "SELECT number, user, assistant, created_ms FROM turns WHERE tenant=?1 AND session=?2 "
        "AND EXISTS(SELECT 1 FROM sessions WHERE tenant=?1 AND session=?2 AND updated_ms>=?3) "
        "ORDER BY number DESC LIMIT ?4";
    ASSIGN_OR_RETURN(sqlite3_stmt * statement, read_.Prepare(kSql));
    Database::Bind(statement, 1, tenant);
    Database::Bind(statement, 2, session);
    Database::Bind(statement, 3, ExpiryMs());
    Database::Bind(statement, 4, int64_t{options_.kept_turns});
    std::vector<StoredTurn> turns;
    int code = SQLITE_ROW;
    while ((code = sqlite3_step(statement)) == SQLITE_ROW) {
      turns.push_back({.number = sqlite3_column_int64(statement, 0),
                       .user = Database::Text(statement, 1),
                       .assistant = Database::Text(statement, 2),
                       .created_ms = sqlite3_column_int64(statement, 3)});
    }
    const absl::Status status = code == SQLITE_DONE ? absl::OkStatus() : read_.Error(code, "load");
    sqlite3_reset(statement);
    RETURN_IF_ERROR(status);
    return std::vector<StoredTurn>(std::make_move_iterator(turns.rbegin()),
                                   std::make_move_iterator(turns.rend()));
  }

  absl::StatusOr<int64_t> CommitNow(const std::string& tenant, const std::string& session,
                                    const std::string& user, const std::string& assistant) {
    Transaction transaction(write_);
    RETURN_IF_ERROR(transaction.Begin());
    // An expired session begins anew.
    static constexpr char kExpireTurns[] =
        "DELETE FROM turns WHERE tenant=?1 AND session=?2 AND EXISTS(SELECT 1 FROM sessions "
        "WHERE tenant=?1 AND session=?2 AND updated_ms<?3)";
    static constexpr char kExpireSession[] =
        "DELETE FROM sessions WHERE tenant=?1 AND session=?2 AND updated_ms<?3";
    RETURN_IF_ERROR(write_.Run(kExpireTurns, tenant, session, ExpiryMs()));
    RETURN_IF_ERROR(write_.Run(kExpireSession, tenant, session, ExpiryMs()));

    static constexpr char kUpsert[] =
        "INSERT INTO sessions(tenant, session, last_number, updated_ms) VALUES(?1, ?2, 1, ?3) "
        "ON CONFLICT(tenant, session) DO UPDATE SET last_number=last_number+1, updated_ms=?3";
    RETURN_IF_ERROR(write_.Run(kUpsert, tenant, session, NowMs()));
    ASSIGN_OR_RETURN(const int64_t number, LastNumber(tenant, session));
    static constexpr char kInsert[] =
        "INSERT INTO turns(tenant, session, number, user, assistant, created_ms) "
        "VALUES(?1, ?2, ?3, ?4, ?5, ?6)";
    RETURN_IF_ERROR(write_.Run(kInsert, tenant, session, number, user, assistant, NowMs()));
    static constexpr char kTrim[] =
        "DELETE FROM turns WHERE tenant=?1 AND session=?2 AND number<=?3";
    RETURN_IF_ERROR(write_.Run(kTrim, tenant, session, number - options_.kept_turns));
    RETURN_IF_ERROR(transaction.Commit());
    return number;
  }

  absl::StatusOr<int64_t> LastNumber(const std::string& tenant, const std::string& session) {
    static constexpr char kSql[] =
        "SELECT last_number FROM sessions WHERE tenant=?1 AND session=?2";
    ASSIGN_OR_RETURN(sqlite3_stmt * statement, write_.Prepare(kSql));
    Database::Bind(statement, 1, tenant);
    Database::Bind(statement, 2, session);
    const int code = sqlite3_step(statement);
    if (code != SQLITE_ROW) {
      const absl::Status status = write_.Error(code, "last number");
      sqlite3_reset(statement);
      return status;
    }
    const int64_t number = sqlite3_column_int64(statement, 0);
    sqlite3_reset(statement);
    return number;
  }

  absl::StatusOr<int64_t> EraseNow(const std::string& tenant, const std::string& session) {
    Transaction transaction(write_);
    RETURN_IF_ERROR(transaction.Begin());
    static constexpr char kTurns[] = "DELETE FROM turns WHERE tenant=?1 AND session=?2";
    static constexpr char kSession[] = "DELETE FROM sessions WHERE tenant=?1 AND session=?2";
    RETURN_IF_ERROR(write_.Run(kTurns, tenant, session));
    const int64_t erased = write_.Changes();
    RETURN_IF_ERROR(write_.Run(kSession, tenant, session));
    RETURN_IF_ERROR(transaction.Commit());
    // The text still stands in the WAL; a truncating checkpoint removes it there. When a reader is
    // in the way, SQLite does it with a later checkpoint.
    if (erased > 0) write_.Execute("PRAGMA wal_checkpoint(TRUNCATE)").IgnoreError();
    return erased;
  }

  absl::Status Sweep() {
    last_sweep_ = options_.clock->Now();
    if (options_.ttl_seconds <= 0) return absl::OkStatus();
    Transaction transaction(write_);
    RETURN_IF_ERROR(transaction.Begin());
    static constexpr char kTurns[] =
        "DELETE FROM turns WHERE EXISTS(SELECT 1 FROM (SELECT tenant AS t, session AS s FROM "
        "sessions WHERE updated_ms<?1 ORDER BY updated_ms LIMIT ?2) WHERE t=tenant AND s=session)";
    static constexpr char kSessions[] =
        "DELETE FROM sessions WHERE rowid IN (SELECT rowid FROM sessions WHERE updated_ms<?1 "
        "ORDER BY updated_ms LIMIT ?2)";
    const int64_t expiry = ExpiryMs();
    RETURN_IF_ERROR(write_.Run(kTurns, expiry, int64_t{kSweepSessions}));
    RETURN_IF_ERROR(write_.Run(kSessions, expiry, int64_t{kSweepSessions}));
    expired_sessions_ += static_cast<uint64_t>(write_.Changes());
    return transaction.Commit();
  }

  const SessionStoreOptions options_;
  Database write_;  // the opening thread, then the writer's
  Database read_;   // the reader's
  double last_sweep_ = 0;
  std::atomic<uint64_t> commits_{0};
  std::atomic<uint64_t> commit_errors_{0};
  std::atomic<uint64_t> load_errors_{0};
  std::atomic<uint64_t> erased_turns_{0};
  std::atomic<uint64_t> expired_sessions_{0};
  std::unique_ptr<Worker> writer_;
  std::unique_ptr<Worker> reader_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<SessionStore>> SessionStore::Create(
    const SessionStoreOptions& options) {
  if (options.path.empty()) return absl::InvalidArgumentError("session store: path is empty");
  if (options.kept_turns < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("session store: kept_turns is ", options.kept_turns, ", must be at least 1"));
  }
  if (options.max_queued < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("session store: max_queued is ", options.max_queued, ", must be at least 1"));
  }
  auto store = std::make_unique<SqliteSessionStore>(options);
  RETURN_IF_ERROR(store->Open());
  return store;
}

}  // namespace cogumi::gateway
