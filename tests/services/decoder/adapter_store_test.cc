// From a name to a resident adapter: what the catalogue tells, what is believed of its bytes, and
// what is served while it is out of reach.
#include "services/decoder/adapter_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <condition_variable>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "engine/core/sha256.h"
#include "services/common/status.h"
#include "services/decoder/adapter_bytes.h"
#include "tests/services/support/fake_engine.h"

namespace cogumi::services {
namespace {

using test::FakeEngine;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

using Files = std::map<std::string, std::string>;

const std::string& Base() {
  static const std::string digest(64, 'a');  // of the fake engine's model
  return digest;
}

Files FilesOf(const std::string& weights) {
  return {{"adapter_config.json", "config"},
          {"adapter_model.safetensors", weights},
          {"card.json", "card"}};
}

v1::Adapter Described(const std::string& name, const Files& files, const std::string& base) {
  v1::Adapter adapter;
  adapter.set_name(name);
  adapter.set_base_model(base);
  std::string listing;
  for (const auto& [file, bytes] : files) {
    v1::AdapterFile* added = adapter.add_files();
    added->set_name(file);
    added->set_bytes(static_cast<int64_t>(bytes.size()));
    added->set_digest(Sha256::Hex(bytes));
    adapter.set_bytes(adapter.bytes() + added->bytes());
    listing += added->digest() + "  " + file + "\n";
  }
  adapter.set_digest(Sha256::Hex(listing));
  return adapter;
}

v1::WatchResponse Change(v1::ChangeType type, const v1::Adapter& adapter = {}) {
  v1::WatchResponse change;
  change.set_type(type);
  *change.mutable_adapter() = adapter;
  return change;
}

// The modifiers service by script. The store owns it; tests hold a pointer.
class FakeSupplier : public AdapterSupplier {
 public:
  absl::StatusOr<v1::Adapter> Get(const std::string& key) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!reachable_) return absl::UnavailableError("gone");
    ++gets_;
    for (const auto& [name, adapter] : adapters_) {
      if (name == key || adapter.digest() == key) return adapter;
    }
    return absl::NotFoundError("no");
  }

  absl::Status Fetch(
      const std::string& digest,
      const std::function<absl::Status(const v1::FetchResponse&)>& on_piece) override {
    Files files;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      ++fetches_;
      changed_.notify_all();
      changed_.wait(lock, [this] { return !held_ || stopped_; });
      if (stopped_) return absl::CancelledError("stopped");
      if (!reachable_) return absl::UnavailableError("gone");
      files = bytes_[digest];
    }
    for (const auto& [name, bytes] : files) {
      for (size_t at = 0; at < bytes.size(); at += 3) {
        v1::FetchResponse piece;
        piece.set_file(name);
        piece.set_offset(static_cast<int64_t>(at));
        piece.set_data(bytes.substr(at, 3));
        const absl::Status status = on_piece(piece);
        if (!status.ok()) return status;
      }
    }
    return absl::OkStatus();
  }

  absl::Status Watch(const std::function<void(const v1::WatchResponse&)>& on_change) override {
    std::unique_lock<std::mutex> lock(mutex_);
    if (!reachable_ || stopped_) return absl::UnavailableError("gone");
    std::vector<v1::WatchResponse> changes;
    for (const auto& [name, adapter] : adapters_) {
      changes.push_back(Change(v1::CHANGE_TYPE_ADDED, adapter));
    }
    changes.push_back(Change(v1::CHANGE_TYPE_SYNCED));
    queue_.clear();
    while (true) {
      for (const auto& change : changes) {
        lock.unlock();
        on_change(change);
        lock.lock();
      }
      told_ += changes.size();
      changed_.notify_all();
      changed_.wait(lock, [this] { return !queue_.empty() || !reachable_ || stopped_; });
      if (!reachable_ || stopped_) return absl::UnavailableError("gone");
      changes.swap(queue_);
      queue_.clear();
    }
  }

  void Stop() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopped_ = true;
    changed_.notify_all();
  }

  void Put(const v1::Adapter& adapter, const Files& files) {
    std::unique_lock<std::mutex> lock(mutex_);
    adapters_[adapter.name()] = adapter;
    bytes_[adapter.digest()] = files;
    Tell(lock, Change(v1::CHANGE_TYPE_ADDED, adapter));
  }
  // Before the stream tells of it.
  void PutUntold(const v1::Adapter& adapter, const Files& files) {
    const std::lock_guard<std::mutex> lock(mutex_);
    adapters_[adapter.name()] = adapter;
    bytes_[adapter.digest()] = files;
  }
  void Remove(const std::string& name) {
    std::unique_lock<std::mutex> lock(mutex_);
    const v1::Adapter adapter = adapters_[name];
    adapters_.erase(name);
    Tell(lock, Change(v1::CHANGE_TYPE_REMOVED, adapter));
  }
  void SetReachable(bool reachable) {
    const std::lock_guard<std::mutex> lock(mutex_);
    reachable_ = reachable;
    changed_.notify_all();
  }
  // While held, fetches wait.
  void Hold(bool held) {
    const std::lock_guard<std::mutex> lock(mutex_);
    held_ = held;
    changed_.notify_all();
  }
  void AwaitFetches(int count) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return fetches_ >= count; });
  }
  void AwaitTold() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return told_ > 0; });
  }
  int fetches() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return fetches_;
  }
  int gets() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return gets_;
  }

 private:
  // Waits until the store has heard of it, when it listens.
  void Tell(std::unique_lock<std::mutex>& lock, v1::WatchResponse change) {
    if (!reachable_ || told_ == 0) return;
    queue_.push_back(std::move(change));
    const size_t before = told_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return told_ > before; });
  }

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, v1::Adapter> adapters_;
  std::map<std::string, Files> bytes_;
  std::vector<v1::WatchResponse> queue_;
  size_t told_ = 0;
  int fetches_ = 0;
  int gets_ = 0;
  bool reachable_ = true;
  bool held_ = false;
  bool stopped_ = false;
};

class AdapterStoreTest : public testing::Test {
 protected:
  void Start(bool reachable = true) {
    auto supplier = std::make_unique<FakeSupplier>();
    supplier_ = supplier.get();
    supplier_->SetReachable(reachable);
    AdapterStoreOptions options;
    options.clock = &clock_;
    options.pause = [this](double seconds) { Paused(seconds); };
    store_ = std::make_unique<AdapterStore>(engine_, std::move(supplier), options);
    if (reachable) supplier_->AwaitTold();
  }
  void TearDown() override {
    LetFollow(1 << 20);
    store_.reset();
  }

  // Attempts to follow the catalogue after a break wait here until they may go on.
  void Paused(double seconds) {
    std::unique_lock<std::mutex> lock(pause_mutex_);
    pauses_.push_back(seconds);
    pause_changed_.notify_all();
    pause_changed_.wait(lock, [this] { return allowed_ > 0; });
    --allowed_;
  }
  void LetFollow(int times) {
    const std::lock_guard<std::mutex> lock(pause_mutex_);
    allowed_ += times;
    pause_changed_.notify_all();
  }
  std::vector<double> AwaitPauses(size_t count) {
    std::unique_lock<std::mutex> lock(pause_mutex_);
    pause_changed_.wait(lock, [&] { return pauses_.size() >= count; });
    return pauses_;
  }

  absl::StatusOr<AdapterInUse> Resolve(const std::string& key) {
    std::promise<absl::StatusOr<AdapterInUse>> promise;
    store_->Resolve(key, [&promise](absl::StatusOr<AdapterInUse> result) {
      promise.set_value(std::move(result));
    });
    return promise.get_future().get();
  }
  static std::string Message(const absl::StatusOr<AdapterInUse>& result) {
    return std::string(result.status().message());
  }

  FakeClock clock_;
  FakeEngine engine_;
  std::mutex pause_mutex_;
  std::condition_variable pause_changed_;
  std::vector<double> pauses_;
  int allowed_ = 0;
  FakeSupplier* supplier_ = nullptr;
  std::unique_ptr<AdapterStore> store_;
};

TEST_F(AdapterStoreTest, FetchesOnceAndServesFromMemory) {
  Start();
  const Files files = FilesOf("weights");
  const v1::Adapter poet = Described("poet", files, Base());
  supplier_->Put(poet, files);
  const auto first = Resolve("poet");
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(first->digest, poet.digest());
  EXPECT_NE(first->lease, nullptr);
  EXPECT_TRUE(Resolve("poet").ok());
  EXPECT_TRUE(Resolve(poet.digest()).ok());
  EXPECT_EQ(supplier_->fetches(), 1);
  EXPECT_THAT(store_->Figures().running, ElementsAre("poet")) << "one is still in use";
  EXPECT_EQ(store_->Figures().fetches, 1u);
}

TEST_F(AdapterStoreTest, CallersOfOneAdapterWaitTogether) {
  Start();
  const Files files = FilesOf("weights");
  supplier_->Put(Described("poet", files, Base()), files);
  supplier_->Hold(true);
  std::vector<std::promise<bool>> done(3);
  for (auto& promise : done) {
    store_->Resolve("poet", [&promise](const auto& result) { promise.set_value(result.ok()); });
  }
  supplier_->AwaitFetches(1);
  EXPECT_THAT(store_->Figures().waiting, ElementsAre("poet"));
  supplier_->Hold(false);
  for (auto& promise : done) EXPECT_TRUE(promise.get_future().get());
  EXPECT_EQ(supplier_->fetches(), 1);
  EXPECT_THAT(store_->Figures().waiting, IsEmpty());
}

TEST_F(AdapterStoreTest, WhatIsRemovedWhileItLoadsIsServedNoMore) {
  Start();
  const Files files = FilesOf("weights");
  const v1::Adapter poet = Described("poet", files, Base());
  supplier_->Put(poet, files);
  supplier_->Hold(true);
  std::promise<absl::StatusOr<AdapterInUse>> promise;
  store_->Resolve("poet", [&promise](auto result) { promise.set_value(std::move(result)); });
  supplier_->AwaitFetches(1);
  supplier_->Remove("poet");
  supplier_->Hold(false);
  const auto began = promise.get_future().get();
  ASSERT_TRUE(began.ok()) << began.status();
  EXPECT_EQ(began->digest, poet.digest());
  EXPECT_EQ(engine_.FindAdapter(poet.digest()), nullptr);
  EXPECT_TRUE(absl::IsNotFound(Resolve("poet").status()));
  EXPECT_TRUE(absl::IsNotFound(Resolve(poet.digest()).status()));
}

TEST_F(AdapterStoreTest, UnknownNamesAreNotFound) {
  Start();
  const auto result = Resolve("nobody");
  EXPECT_TRUE(absl::IsNotFound(result.status()));
  EXPECT_THAT(Message(result), HasSubstr("\"nobody\""));
  EXPECT_EQ(FieldOf(result.status()), "adapter");
  EXPECT_TRUE(absl::IsNotFound(Resolve(std::string(64, '0')).status()));
  EXPECT_EQ(supplier_->fetches(), 0);
}

TEST_F(AdapterStoreTest, WhatTheStreamHasNotToldYetIsAskedFor) {
  Start();
  const Files files = FilesOf("weights");
  const v1::Adapter poet = Described("poet", files, Base());
  supplier_->PutUntold(poet, files);
  const auto result = Resolve("poet");
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->digest, poet.digest());
  EXPECT_EQ(supplier_->gets(), 1);
}

TEST_F(AdapterStoreTest, WrongBytesAreRefusedNamingBothDigests) {
  Start();
  const Files files = FilesOf("weights");
  const v1::Adapter poet = Described("poet", files, Base());
  supplier_->Put(poet, FilesOf("wEights"));
  const auto result = Resolve("poet");
  EXPECT_TRUE(absl::IsFailedPrecondition(result.status()));
  EXPECT_THAT(Message(result),
              AllOf(HasSubstr(Sha256::Hex("weights")), HasSubstr(Sha256::Hex("wEights"))));
  EXPECT_EQ(engine_.AdapterUse().resident, 0);
  EXPECT_EQ(store_->Figures().fetch_errors, 1u);
  // The right bytes are taken at the next request.
  supplier_->Put(poet, files);
  EXPECT_TRUE(Resolve("poet").ok());
}

TEST_F(AdapterStoreTest, AnotherBaseIsRefusedNamingBothDigests) {
  Start();
  const std::string other(64, 'e');
  const Files files = FilesOf("weights");
  supplier_->Put(Described("poet", files, other), files);
  const auto result = Resolve("poet");
  EXPECT_TRUE(absl::IsFailedPrecondition(result.status()));
  EXPECT_THAT(Message(result), AllOf(HasSubstr(other), HasSubstr(Base())));
  EXPECT_EQ(supplier_->fetches(), 0);
}

TEST_F(AdapterStoreTest, WhatDoesNotFitTheBudgetIsNotFetched) {
  Start();
  const Files files = FilesOf(std::string(4500, 'w'));  // the fake engine's budget is 1,000
  supplier_->Put(Described("poet", files, Base()), files);
  EXPECT_TRUE(absl::IsResourceExhausted(Resolve("poet").status()));
  EXPECT_EQ(supplier_->fetches(), 0);
  // Of 32 bits in the file 8 stay: this may fit, and the engine says whether it does.
  const Files floats = FilesOf(std::string(3500, 'w'));
  supplier_->Put(Described("short", floats, Base()), floats);
  (void)Resolve("short");
  EXPECT_EQ(supplier_->fetches(), 1);
}

TEST_F(AdapterStoreTest, ARequestKeepsTheVersionThatItBeganWith) {
  Start();
  const Files old_files = FilesOf("old");
  const v1::Adapter old_poet = Described("poet", old_files, Base());
  supplier_->Put(old_poet, old_files);
  const auto began = Resolve("poet");
  ASSERT_TRUE(began.ok());
  const Files new_files = FilesOf("new");
  const v1::Adapter new_poet = Described("poet", new_files, Base());
  supplier_->Put(new_poet, new_files);
  EXPECT_EQ(began->digest, old_poet.digest());
  EXPECT_NE(began->lease, nullptr);
  EXPECT_EQ(engine_.FindAdapter(old_poet.digest()), nullptr) << "no new request gets it";
  EXPECT_EQ(Resolve("poet")->digest, new_poet.digest());
  supplier_->Remove("poet");
  EXPECT_TRUE(absl::IsNotFound(Resolve("poet").status()));
  EXPECT_EQ(engine_.AdapterUse().resident, 0);
}

TEST_F(AdapterStoreTest, BytesStayWhileAnotherNameStandsForThem) {
  Start();
  const Files files = FilesOf("weights");
  supplier_->Put(Described("one", files, Base()), files);
  supplier_->Put(Described("two", files, Base()), files);
  ASSERT_TRUE(Resolve("one").ok());
  supplier_->Remove("one");
  EXPECT_TRUE(Resolve("two").ok());
  EXPECT_EQ(supplier_->fetches(), 1);
}

TEST_F(AdapterStoreTest, ServesWhatIsResidentWhileTheCatalogueIsOutOfReach) {
  Start();
  const Files files = FilesOf("weights");
  const Files more = FilesOf("more");
  supplier_->Put(Described("poet", files, Base()), files);
  supplier_->Put(Described("coder", more, Base()), more);
  ASSERT_TRUE(Resolve("poet").ok());
  EXPECT_TRUE(store_->Figures().current);
  clock_.Advance(100);
  EXPECT_EQ(store_->Figures().age, 0);

  supplier_->SetReachable(false);
  AwaitPauses(1);
  clock_.Advance(7);
  EXPECT_FALSE(store_->Figures().current);
  EXPECT_EQ(store_->Figures().age, 7);
  EXPECT_TRUE(Resolve("poet").ok());
  const auto result = Resolve("coder");
  EXPECT_TRUE(absl::IsUnavailable(result.status()));
  EXPECT_THAT(Message(result), HasSubstr("\"coder\" is not resident"));
  EXPECT_TRUE(absl::IsUnavailable(Resolve("nobody").status())) << "it may exist by now";

  // It comes back without one of them.
  supplier_->Remove("poet");
  supplier_->SetReachable(true);
  LetFollow(1);
  while (!store_->Figures().current) std::this_thread::yield();
  EXPECT_TRUE(absl::IsNotFound(Resolve("poet").status()));
  EXPECT_TRUE(Resolve("coder").ok());
  EXPECT_EQ(engine_.AdapterUse().resident, 1);
}

TEST_F(AdapterStoreTest, AsksBeforeTheCatalogueWasTold) {
  Start(/*reachable=*/false);
  AwaitPauses(1);
  const Files files = FilesOf("weights");
  supplier_->SetReachable(true);
  supplier_->Put(Described("poet", files, Base()), files);
  EXPECT_TRUE(Resolve("poet").ok());
  EXPECT_EQ(supplier_->gets(), 1);
  EXPECT_TRUE(absl::IsNotFound(Resolve("nobody").status()));
}

TEST_F(AdapterStoreTest, PausesGrowUntilItIsTold) {
  Start(/*reachable=*/false);
  LetFollow(7);
  EXPECT_THAT(AwaitPauses(8), ElementsAre(0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5));
  supplier_->SetReachable(true);
  LetFollow(1);
  supplier_->AwaitTold();
  supplier_->SetReachable(false);
  EXPECT_EQ(AwaitPauses(9).back(), 0.1);
}

TEST_F(AdapterStoreTest, WhatWaitsAtTheEndIsTold) {
  Start();
  const Files files = FilesOf("weights");
  supplier_->Put(Described("poet", files, Base()), files);
  supplier_->Hold(true);
  std::promise<absl::Status> ended;
  store_->Resolve("poet", [&ended](const auto& result) { ended.set_value(result.status()); });
  supplier_->AwaitFetches(1);
  LetFollow(1 << 20);
  store_.reset();
  EXPECT_TRUE(absl::IsUnavailable(ended.get_future().get()));
}

// --- what is believed of bytes -------------------------------------------------------------------

v1::FetchResponse Piece(const std::string& file, int64_t offset, const std::string& data) {
  v1::FetchResponse piece;
  piece.set_file(file);
  piece.set_offset(offset);
  piece.set_data(data);
  return piece;
}

TEST(AdapterBytesTest, TakesNothingButWhatWasDescribed) {
  const v1::Adapter right = Described("poet", FilesOf("weights"), Base());
  v1::Adapter other = right;
  other.set_digest(std::string(64, '1'));
  const absl::Status mismatch = AdapterBytes::Expect(other).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(mismatch));
  EXPECT_THAT(std::string(mismatch.message()),
              AllOf(HasSubstr(other.digest()), HasSubstr(right.digest())));
  other = right;
  other.mutable_files()->RemoveLast();
  EXPECT_FALSE(AdapterBytes::Expect(other).ok());
  other = right;
  other.add_files()->set_name("pickle.bin");
  EXPECT_FALSE(AdapterBytes::Expect(other).ok());
  for (int i = 0; i < 3; ++i) {
    other = right;
    other.mutable_files(i)->set_bytes(kMaxAdapterWeightBytes + 1);
    EXPECT_THAT(std::string(AdapterBytes::Expect(other).status().message()), HasSubstr("at most"));
  }

  AdapterBytes bytes = *AdapterBytes::Expect(right);
  EXPECT_FALSE(bytes.Add(Piece("../passwd", 0, "x")).ok());
  EXPECT_FALSE(bytes.Add(Piece("card.json", 1, "ard")).ok()) << "a gap";
  EXPECT_FALSE(bytes.Add(Piece("card.json", 0, "cards")).ok()) << "too long";
  EXPECT_TRUE(bytes.Add(Piece("card.json", 0, "ca")).ok());
  EXPECT_FALSE(bytes.Add(Piece("card.json", 0, "ca")).ok()) << "again";
  EXPECT_TRUE(bytes.Add(Piece("card.json", 2, "rd")).ok());
  AdapterBytes early = bytes;
  EXPECT_TRUE(absl::IsFailedPrecondition(std::move(early).Finish().status())) << "not all is here";
  EXPECT_TRUE(bytes.Add(Piece("adapter_config.json", 0, "config")).ok());
  EXPECT_TRUE(bytes.Add(Piece("adapter_model.safetensors", 0, "weights")).ok());
  const auto files = std::move(bytes).Finish();
  ASSERT_TRUE(files.ok()) << files.status();
  EXPECT_EQ(files->config, "config");
  EXPECT_EQ(files->weights, "weights");
}

}  // namespace
}  // namespace cogumi::services
