#include "services/gateway/session_store.h"

#include <fcntl.h>
#include <signal.h>
#include <sqlite3.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <future>
#include <mutex>
#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/services/gateway/eventually.h"
#include "tests/services/gateway/temp_folder.h"

namespace cogumi::gateway {
namespace {

using test::TempFolder;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

absl::StatusOr<std::vector<StoredTurn>> Load(SessionStore& store, const std::string& tenant,
                                             const std::string& session) {
  std::promise<absl::StatusOr<std::vector<StoredTurn>>> promise;
  store.Load(tenant, session, [&](auto turns) { promise.set_value(std::move(turns)); });
  return promise.get_future().get();
}

absl::StatusOr<int64_t> Commit(SessionStore& store, const std::string& tenant,
                               const std::string& session, const std::string& user,
                               const std::string& assistant) {
  std::promise<absl::StatusOr<int64_t>> promise;
  store.Commit(tenant, session, user, assistant, [&](auto number) { promise.set_value(number); });
  return promise.get_future().get();
}

absl::StatusOr<int64_t> Erase(SessionStore& store, const std::string& tenant,
                              const std::string& session) {
  std::promise<absl::StatusOr<int64_t>> promise;
  store.Erase(tenant, session, [&](auto number) { promise.set_value(number); });
  return promise.get_future().get();
}

std::vector<std::string> Users(const absl::StatusOr<std::vector<StoredTurn>>& turns) {
  std::vector<std::string> users;
  for (const StoredTurn& turn : turns.value()) users.push_back(turn.user);
  return users;
}

class SessionStoreTest : public ::testing::Test {
 protected:
  std::unique_ptr<SessionStore> Open() {
    auto store = SessionStore::Create(options_);
    EXPECT_TRUE(store.ok()) << store.status();
    return store.ok() ? *std::move(store) : nullptr;
  }

  // Runs SQL with a connection of its own.
  void Sql(const std::string& sql) {
    sqlite3* handle = nullptr;
    ASSERT_EQ(sqlite3_open(options_.path.c_str(), &handle), SQLITE_OK);
    ASSERT_EQ(sqlite3_exec(handle, sql.c_str(), nullptr, nullptr, nullptr), SQLITE_OK)
        << sqlite3_errmsg(handle);
    sqlite3_close(handle);
  }

  TempFolder folder_;
  FakeClock clock_;
  SessionStoreOptions options_{.path = folder_.File("deep/down/sessions.db"), .clock = &clock_};
};

TEST_F(SessionStoreTest, KeepsTheLastFiveTurnsAndCountsOn) {
  auto store = Open();
  for (int i = 1; i <= 7; ++i) {
    const std::string n = std::to_string(i);
    const auto number = Commit(*store, "acme", "s", "question " + n, "answer " + n);
    ASSERT_TRUE(number.ok()) << number.status();
    EXPECT_EQ(*number, i);
  }
  const auto turns = Load(*store, "acme", "s");
  EXPECT_THAT(Users(turns),
              ElementsAre("question 3", "question 4", "question 5", "question 6", "question 7"));
  EXPECT_EQ(turns->front().number, 3);
  EXPECT_EQ(turns->back().assistant, "answer 7");
  EXPECT_EQ(turns->back().created_ms, static_cast<int64_t>(clock_.UnixNow() * 1000));
  EXPECT_EQ(store->Stats().commits, 7u);
}

TEST_F(SessionStoreTest, KeepsTextAsItIs) {
  auto store = Open();
  constexpr char kOdd[] = "quotes ' \" and \0 nul, \xF0\x9F\x98\x80 and\nlines";
  const std::string odd(kOdd, sizeof(kOdd) - 1);
  ASSERT_TRUE(Commit(*store, "t", "s", odd, "").ok());
  const auto turns = Load(*store, "t", "s");
  ASSERT_EQ(turns->size(), 1u);
  EXPECT_EQ(turns->front().user, odd);
  EXPECT_EQ(turns->front().assistant, "");
}

TEST_F(SessionStoreTest, TenantsDoNotShareSessions) {
  auto store = Open();
  ASSERT_TRUE(Commit(*store, "a", "s", "of a", "x").ok());
  ASSERT_TRUE(Commit(*store, "b", "s", "of b", "x").ok());
  EXPECT_THAT(Users(Load(*store, "a", "s")), ElementsAre("of a"));
  EXPECT_THAT(Users(Load(*store, "b", "s")), ElementsAre("of b"));
  EXPECT_EQ(Erase(*store, "a", "s").value(), 1);
  EXPECT_THAT(Users(Load(*store, "a", "s")), IsEmpty());
  EXPECT_THAT(Users(Load(*store, "b", "s")), ElementsAre("of b"));
}

TEST_F(SessionStoreTest, ErasedTextLeavesTheFiles) {
  auto store = Open();
  ASSERT_TRUE(Commit(*store, "a", "s", "CANARY-QUESTION", "CANARY-ANSWER").ok());
  EXPECT_EQ(Erase(*store, "a", "s").value(), 1);
  EXPECT_EQ(Erase(*store, "a", "s").value(), 0);
  for (const char* suffix : {"", "-wal"}) {
    std::ifstream file(options_.path + suffix, std::ios::binary);
    const std::string bytes((std::istreambuf_iterator<char>(file)), {});
    EXPECT_EQ(bytes.find("CANARY"), std::string::npos) << suffix;
  }
  // The numbers begin anew.
  EXPECT_EQ(Commit(*store, "a", "s", "x", "y").value(), 1);
}

TEST_F(SessionStoreTest, ForgetsAfterItsTime) {
  options_.ttl_seconds = 100;
  auto store = Open();
  ASSERT_TRUE(Commit(*store, "a", "old", "x", "y").ok());
  clock_.Advance(60);
  ASSERT_TRUE(Commit(*store, "a", "young", "x", "y").ok());
  EXPECT_THAT(Users(Load(*store, "a", "old")), ElementsAre("x"));
  clock_.Advance(60);
  EXPECT_THAT(Users(Load(*store, "a", "old")), IsEmpty());
  EXPECT_THAT(Users(Load(*store, "a", "young")), ElementsAre("x"));
  // A late turn begins a new session, and the sweep removes what nobody touches.
  EXPECT_EQ(Commit(*store, "a", "old", "again", "y").value(), 1);
  EXPECT_THAT(Users(Load(*store, "a", "old")), ElementsAre("again"));
  // Behind the writer's own sweep, which must not see the time that follows.
  EXPECT_EQ(Erase(*store, "a", "nobody").value(), 0);
  clock_.Advance(1000);
  store = nullptr;
  store = Open();
  EXPECT_TRUE(test::Eventually([&] { return store->Stats().expired_sessions == 2u; }));
}

TEST_F(SessionStoreTest, SurvivesARestart) {
  ASSERT_TRUE(Commit(*Open(), "a", "s", "x", "y").ok());
  auto store = Open();
  EXPECT_THAT(Users(Load(*store, "a", "s")), ElementsAre("x"));
  EXPECT_EQ(Commit(*store, "a", "s", "z", "y").value(), 2);
}

TEST_F(SessionStoreTest, FilesAreForTheOwnerOnly) {
  auto store = Open();
  ASSERT_TRUE(Commit(*store, "a", "s", "x", "y").ok());
  for (const char* suffix : {"", "-wal", "-shm"}) {
    struct stat info {};
    ASSERT_EQ(stat((options_.path + suffix).c_str(), &info), 0) << suffix;
    EXPECT_EQ(info.st_mode & 0777, 0600u) << suffix;
  }
  store = nullptr;
  chmod(options_.path.c_str(), 0644);
  store = Open();
  struct stat info {};
  ASSERT_EQ(stat(options_.path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
}

TEST_F(SessionStoreTest, RefusesANewerSchema) {
  Open();
  Sql("PRAGMA user_version=99");
  const auto store = SessionStore::Create(options_);
  EXPECT_EQ(store.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(store.status().message()), HasSubstr("99"));
}

TEST_F(SessionStoreTest, RefusesAnotherProgramsFile) {
  options_.path = folder_.File("other.db");
  Sql("CREATE TABLE notes(text TEXT)");
  EXPECT_EQ(SessionStore::Create(options_).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(SessionStoreTest, ADamagedFileIsNamedAsThat) {
  options_.path = folder_.File("damaged.db");
  std::ofstream(options_.path) << std::string(4096, 'x');
  const auto store = SessionStore::Create(options_);
  EXPECT_EQ(store.status().code(), absl::StatusCode::kDataLoss) << store.status();
}

TEST_F(SessionStoreTest, AnotherWriterMakesItUnavailableNotWrong) {
  options_.busy_timeout_ms = 20;
  auto store = Open();
  sqlite3* other = nullptr;
  ASSERT_EQ(sqlite3_open(options_.path.c_str(), &other), SQLITE_OK);
  ASSERT_EQ(sqlite3_exec(other, "BEGIN IMMEDIATE", nullptr, nullptr, nullptr), SQLITE_OK);
  const auto refused = Commit(*store, "a", "s", "x", "y");
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kUnavailable) << refused.status();
  EXPECT_EQ(store->Stats().commit_errors, 1u);
  ASSERT_EQ(sqlite3_exec(other, "COMMIT", nullptr, nullptr, nullptr), SQLITE_OK);
  sqlite3_close(other);
  EXPECT_EQ(Commit(*store, "a", "s", "x", "y").value(), 1);
}

// A disk that takes no more: the turn is refused, the others stay, and it goes on afterwards.
TEST_F(SessionStoreTest, AFullDiskRefusesTheTurnAndKeepsTheRest) {
  auto store = Open();
  ASSERT_TRUE(Commit(*store, "a", "s", "before", "y").ok());
  signal(SIGXFSZ, SIG_IGN);
  rlimit old{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old), 0);
  rlimit small = old;
  small.rlim_cur = 64 << 10;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const auto refused = Commit(*store, "a", "s", std::string(200000, 'x'), "y");
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &old), 0);
  EXPECT_FALSE(refused.ok());
  EXPECT_EQ(store->Stats().commit_errors, 1u);
  EXPECT_THAT(Users(Load(*store, "a", "s")), ElementsAre("before"));
  EXPECT_EQ(Commit(*store, "a", "s", "after", "y").value(), 2);
  EXPECT_THAT(Users(Load(*store, "a", "s")), ElementsAre("before", "after"));
}

TEST_F(SessionStoreTest, AFullQueueRefuses) {
  options_.max_queued = 2;
  auto store = Open();
  // The writer is held inside a callback while the queue fills.
  std::promise<void> entered;
  std::promise<void> release;
  store->Commit("a", "s", "x", "y", [&](auto) {
    entered.set_value();
    release.get_future().wait();
  });
  entered.get_future().wait();
  std::promise<void> done;
  store->Commit("a", "s", "x", "y", [](auto number) { EXPECT_TRUE(number.ok()); });
  store->Commit("a", "s", "x", "y", [&](auto number) {
    EXPECT_TRUE(number.ok());
    done.set_value();
  });
  EXPECT_EQ(Commit(*store, "a", "s", "x", "y").status().code(),
            absl::StatusCode::kResourceExhausted);
  release.set_value();
  done.get_future().wait();
}

TEST_F(SessionStoreTest, QueuedTurnsAreCommittedBeforeTheEnd) {
  std::atomic<int> acknowledged{0};
  auto store = Open();
  for (int i = 0; i < 20; ++i) {
    store->Commit("a", "s", "x", "y", [&](auto number) { acknowledged += number.ok() ? 1 : 0; });
  }
  store = nullptr;
  EXPECT_EQ(acknowledged, 20);
  EXPECT_EQ(Load(*Open(), "a", "s").value().back().number, 20);
}

TEST_F(SessionStoreTest, BadOptionsAreRefused) {
  EXPECT_FALSE(SessionStore::Create({.path = ""}).ok());
  EXPECT_FALSE(SessionStore::Create({.path = folder_.File("a"), .kept_turns = 0}).ok());
  EXPECT_FALSE(SessionStore::Create({.path = folder_.File("a"), .max_queued = 0}).ok());
  std::ofstream(folder_.File("file")) << "x";
  EXPECT_EQ(SessionStore::Create({.path = folder_.File("file/sessions.db")}).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

// The promise behind "an acknowledged turn is never lost": a process that commits turns and says so
// is killed in the middle; whatever it said is there afterwards.
TEST_F(SessionStoreTest, AcknowledgedTurnsSurviveAKilledProcess) {
  constexpr int kRounds = 5;
  int64_t acknowledged = 0;
  for (int round = 0; round < kRounds; ++round) {
    int channel[2];
    ASSERT_EQ(pipe(channel), 0);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      close(channel[0]);
      auto store = SessionStore::Create(options_);
      if (!store.ok()) _exit(1);
      // For ever: the parent decides when it ends.
      while (true) {
        const auto number = Commit(**store, "a", "s", "question", "answer");
        if (!number.ok()) _exit(2);
        const int64_t value = *number;
        if (write(channel[1], &value, sizeof(value)) != sizeof(value)) _exit(3);
      }
    }
    close(channel[1]);
    int64_t last = 0;
    int64_t value = 0;
    const int64_t enough = acknowledged + 10 + round * 3;
    while (last < enough && read(channel[0], &value, sizeof(value)) == sizeof(value)) last = value;
    kill(child, SIGKILL);
    // What it said before the signal arrived counts, too.
    while (read(channel[0], &value, sizeof(value)) == sizeof(value)) last = value;
    close(channel[0]);
    int status = 0;
    waitpid(child, &status, 0);
    ASSERT_TRUE(WIFSIGNALED(status)) << WEXITSTATUS(status);
    ASSERT_GE(last, enough);
    acknowledged = last;

    auto store = Open();
    const auto turns = Load(*store, "a", "s");
    ASSERT_TRUE(turns.ok()) << turns.status();
    ASSERT_EQ(turns->size(), 5u);
    EXPECT_GE(turns->back().number, acknowledged);
    // At most the one that was on its way is beyond.
    EXPECT_LE(turns->back().number, acknowledged + 1);
    acknowledged = turns->back().number;
  }
}

}  // namespace
}  // namespace cogumi::gateway
