#include "engine/memory/prefix_index.h"

#include <algorithm>
#include <list>
#include <random>
#include <set>
#include <string>

#include "gtest/gtest.h"

namespace cogumi {
namespace {

constexpr KvShape kShape{1, 1, 2, KvFormat::kF32};
const PrefixKey kTenant{"tenant", ""};

// A text whose bits are the hash of every beginning, as a model's are.
struct Text {
  std::vector<TokenId> tokens;
  std::vector<TokenRole> roles;
};

Text TextOf(int32_t length, TokenId first = 1, TokenRole role = TokenRole::kPrompt) {
  Text text;
  for (int32_t i = 0; i < length; ++i) text.tokens.push_back(i == 0 ? first : i % 50);
  text.roles.assign(static_cast<size_t>(length), role);
  return text;
}

// A sequence that computes and remembers a text.
struct Reader {
  explicit Reader(PrefixIndex* in, KvCache* pages, PrefixKey of = kTenant)
      : index(in), cache(pages), key(std::move(of)) {}

  int32_t Take(const Text& text, int32_t limit = 1 << 20) {
    index->Take(key, text.tokens, text.roles, limit, kv, pin);
    return kv.length;
  }
  void Compute(const Text& text) {
    ASSERT_TRUE(cache->Extend(kv, static_cast<int32_t>(text.tokens.size())).ok());
  }
  void Insert(const Text& text, bool resumable = true) {
    index->Insert(key, text.tokens, text.roles, resumable, kv, pin);
  }
  void End() {
    index->Unpin(pin);
    cache->Release(kv);
  }
  // Start to end.
  int32_t Read(const Text& text) {
    const int32_t taken = Take(text);
    Compute(text);
    Insert(text);
    End();
    return taken;
  }

  PrefixIndex* index;
  KvCache* cache;
  PrefixKey key;
  KvSequence kv;
  PrefixIndex::Pin pin;
};

class PrefixIndexTest : public ::testing::Test {
 protected:
  static constexpr int kPages = 16;
  static int64_t PageBytes(int64_t pages = 1) {
    return static_cast<int64_t>(kShape.WideBytes()) * pages;
  }
  int32_t Read(const Text& text, const PrefixKey& key = kTenant) {
    return Reader(&index_, cache_.get(), key).Read(text);
  }

  const std::unique_ptr<KvCache> cache_ = *KvCache::Create(kShape, PageBytes(kPages));
  PrefixIndex index_{cache_.get()};
};

TEST_F(PrefixIndexTest, AnEqualBeginningOfFullPagesIsFound) {
  EXPECT_EQ(Read(TextOf(200)), 0);
  EXPECT_EQ(index_.pages(), 3);
  EXPECT_EQ(index_.evictable_bytes(), PageBytes(3));
  EXPECT_EQ(cache_->used_bytes(), PageBytes(3));  // the part of a page is gone
  EXPECT_EQ(Read(TextOf(200)), 192);
  EXPECT_EQ(Read(TextOf(130)), 128);
  EXPECT_EQ(Read(TextOf(63)), 0);
  Text other = TextOf(200);
  other.tokens[70] = 99;
  EXPECT_EQ(Read(other), 64);
  EXPECT_EQ(index_.pages(), 5);
}

TEST_F(PrefixIndexTest, NoMoreThanTheLimitIsTaken) {
  Read(TextOf(192));
  Reader reader(&index_, cache_.get());
  EXPECT_EQ(index_.Match(kTenant, TextOf(192).tokens, TextOf(192).roles, 191), 128);
  EXPECT_EQ(reader.Take(TextOf(192), 191), 128);
  EXPECT_EQ(reader.kv.pages.size(), 2u);
  EXPECT_EQ(reader.Take(TextOf(192), 192), 192);  // in place of the first
  EXPECT_EQ(index_.evictable_bytes(), 0);
  reader.End();
  EXPECT_EQ(index_.evictable_bytes(), PageBytes(3));
}

TEST_F(PrefixIndexTest, TenantAdapterAndRolesKeepBeginningsApart) {
  Read(TextOf(100));
  EXPECT_EQ(Read(TextOf(100), {"other", ""}), 0);
  EXPECT_EQ(Read(TextOf(100), {"tenant", "digest"}), 0);
  EXPECT_EQ(Read(TextOf(100, 1, TokenRole::kGenerated)), 0);
  Text one = TextOf(100);
  one.roles[63] = TokenRole::kGenerated;
  EXPECT_EQ(Read(one), 0);
  EXPECT_EQ(Read(one), 64);
  EXPECT_EQ(Read(TextOf(100), {"other", ""}), 64);
}

TEST_F(PrefixIndexTest, TheLeastRecentlyUsedLeafGoesFirst) {
  Read(TextOf(130, 1));
  Read(TextOf(130, 2));
  Read(TextOf(130, 1));  // used again
  EXPECT_TRUE(index_.EvictOne());
  EXPECT_EQ(index_.Match(kTenant, TextOf(130, 2).tokens, TextOf(130, 2).roles, 130), 64);
  EXPECT_TRUE(index_.EvictOne());
  EXPECT_EQ(index_.Match(kTenant, TextOf(130, 2).tokens, TextOf(130, 2).roles, 130), 0);
  EXPECT_EQ(index_.Match(kTenant, TextOf(130, 1).tokens, TextOf(130, 1).roles, 130), 128);
  EXPECT_TRUE(index_.EvictOne());
  EXPECT_TRUE(index_.EvictOne());
  EXPECT_FALSE(index_.EvictOne());
  EXPECT_EQ(index_.pages(), 0);
  EXPECT_EQ(index_.evictions(), 4u);
  EXPECT_EQ(cache_->used_bytes(), 0);
}

TEST_F(PrefixIndexTest, WhatASequenceUsesStays) {
  Read(TextOf(130, 1));
  Reader reader(&index_, cache_.get());
  Reader second(&index_, cache_.get());
  EXPECT_EQ(reader.Take(TextOf(100, 1)), 64);  // the first page of two
  second.kv = cache_->Share(reader.kv, 64);
  second.pin = index_.PinAlso(reader.pin, 1);
  EXPECT_EQ(index_.evictable_bytes(), PageBytes(1));
  EXPECT_TRUE(index_.EvictOne());
  EXPECT_FALSE(index_.EvictOne());
  reader.End();
  EXPECT_FALSE(index_.EvictOne());
  second.End();
  EXPECT_TRUE(index_.EvictOne());
  EXPECT_EQ(cache_->used_bytes(), 0);
}

TEST_F(PrefixIndexTest, PagesComputedTwiceAreKeptOnce) {
  Reader a(&index_, cache_.get());
  Reader b(&index_, cache_.get());
  for (Reader* reader : {&a, &b}) reader->Compute(TextOf(150));
  EXPECT_EQ(cache_->used_bytes(), PageBytes(6));
  a.Insert(TextOf(150));
  b.Insert(TextOf(150));
  EXPECT_EQ(cache_->used_bytes(), PageBytes(4));
  EXPECT_EQ(a.kv.pages[1], b.kv.pages[1]);
  EXPECT_NE(a.kv.pages[2], b.kv.pages[2]);
  a.End();
  b.End();
  EXPECT_EQ(cache_->used_bytes(), PageBytes(2));
}

TEST_F(PrefixIndexTest, ASequenceThatGrowsAddsItsNewPages) {
  Reader reader(&index_, cache_.get());
  for (const int32_t length : {10, 64, 65, 200, 260}) {
    reader.Compute(TextOf(length));
    reader.Insert(TextOf(length), false);
    EXPECT_EQ(index_.pages(), length / 64);
    EXPECT_EQ(index_.evictable_bytes(), 0);
  }
  reader.End();
  EXPECT_EQ(index_.evictable_bytes(), PageBytes(4));
}

TEST(PrefixIndex, TheEndGivesEverythingBack) {
  const auto cache = *KvCache::Create(kShape, 1 << 20);
  {
    PrefixIndex index(cache.get());
    Reader(&index, cache.get()).Read(TextOf(300));
  }
  EXPECT_EQ(cache->used_bytes(), 0);
}

// Formats with narrow blocks. The model's part: blocks that a step makes narrow are marked.
class NarrowIndexTest : public ::testing::TestWithParam<KvFormat> {
 protected:
  // A sequence of a text, a chunk a step, as the scheduler does it.
  int32_t Read(const Text& text, int32_t chunk) {
    Reader reader(&index_, cache_.get());
    const int32_t length = static_cast<int32_t>(text.tokens.size());
    const int32_t taken = reader.Take(text, length - 1);
    EXPECT_TRUE(KvCache::CanResume(reader.kv.pages, taken, GetParam()));
    while (reader.kv.length < length) {
      const int32_t to = std::min(length, reader.kv.length + chunk);
      EXPECT_TRUE(cache_->Extend(reader.kv, to).ok());
      for (const KvPage& page : reader.kv.pages) {
        if (page.narrow != kNoBlock) cache_->SetNarrowMade(page);
      }
      reader.Insert(text, to == length);
      cache_->Commit(reader.kv, to);
    }
    reader.End();
    EXPECT_EQ(index_.evictable_bytes(), cache_->used_bytes());
    return taken;
  }

  const std::unique_ptr<KvCache> cache_ =
      *KvCache::Create(KvShape{1, 1, 16, GetParam()}, int64_t{1} << 20);
  PrefixIndex index_{cache_.get()};
};

TEST_P(NarrowIndexTest, ALongTextKeepsFewWideBlocksAndIsFoundAtItsEnd) {
  for (const int32_t chunk : {1, 17, 64, 1000}) {
    EXPECT_EQ(Read(TextOf(700), chunk), 0);
    EXPECT_EQ(index_.pages(), 10);
    // The first page and the last, behind which the next one goes on.
    EXPECT_EQ(index_.evictable_wide(), 2) << chunk;
    EXPECT_EQ(index_.evictable_narrow(), 8) << chunk;
    EXPECT_EQ(Read(TextOf(701), chunk), 640);
    while (index_.EvictOne()) {
    }
    EXPECT_EQ(cache_->used_bytes(), 0);
  }
}

TEST_P(NarrowIndexTest, TheSamePromptOfWholePagesIsFoundAPageEarlier) {
  Read(TextOf(640), 64);
  EXPECT_EQ(Read(TextOf(640), 64), 576);
}

TEST_P(NarrowIndexTest, WherePathsPartTheThirdGoesOn) {
  Text first = TextOf(700);
  Read(first, 64);
  Text second = first;
  Text third = first;
  for (size_t i = 320; i < 700; ++i) second.tokens[i] = 60;
  for (size_t i = 320; i < 700; ++i) third.tokens[i] = 61;
  EXPECT_EQ(Read(second, 64), 64);  // the wide blocks before the parting are gone, but the first
  EXPECT_EQ(Read(third, 64), 320);
  EXPECT_EQ(Read(second, 64), 640);
}

INSTANTIATE_TEST_SUITE_P(Formats, NarrowIndexTest,
                         ::testing::Values(KvFormat::kInt4, KvFormat::kK8V4));

// Random sequences over few texts, held against what every page must contain, and against the
// blocks that somebody holds.
class RandomIndex {
 public:
  explicit RandomIndex(uint64_t seed) : random_(seed) {}

  void Run() {
    for (int i = 0; i < 150 && !testing::Test::HasFatalFailure(); ++i) {
      const int choice = Below(8);
      if (choice < 2 || live_.empty()) {
        Begin();
      } else if (choice < 4) {
        Grow();
      } else if (choice < 5) {
        index_.EvictOne();
      } else if (choice < 6) {
        Fork();
      } else {
        End(Below(2) == 0);
      }
      Check();
    }
    while (!live_.empty()) End(true);
    Check();
    EXPECT_EQ(index_.evictable_bytes(), cache_->used_bytes());
    while (index_.EvictOne()) {
    }
    EXPECT_EQ(index_.pages(), 0);
    EXPECT_EQ(cache_->used_bytes(), 0);
  }

  int hits = 0;

 private:
  struct Live {
    Reader reader;
    Text text;
  };

  int Below(int bound) { return static_cast<int>(random_() % static_cast<uint64_t>(bound)); }

  // The bits of a page: a hash of all before.
  uint64_t Bits(const Text& text, const PrefixKey& key, int32_t page) const {
    uint64_t hash = std::hash<std::string>()(key.tenant + "/" + key.adapter);
    for (size_t i = 0; i < static_cast<size_t>(page + 1) * kKvPageTokens; ++i) {
      hash = (hash ^ static_cast<uint64_t>(text.tokens[i] * 2 + static_cast<int>(text.roles[i]))) *
             0x9E3779B97F4A7C15;
      hash ^= hash >> 31;
    }
    return hash;
  }
  uint64_t* Slot(const Reader& reader, int32_t page) const {
    return reinterpret_cast<uint64_t*>(
        cache_->Head(reader.kv.pages[static_cast<size_t>(page)].wide, 0, 0));
  }

  void Begin() {
    Text text;
    for (int page = 0; page < 5; ++page) {
      const TokenId token = Below(2);
      const auto role = static_cast<TokenRole>(Below(4) == 0);
      text.tokens.insert(text.tokens.end(), kKvPageTokens, token);
      text.roles.insert(text.roles.end(), kKvPageTokens, role);
    }
    const PrefixKey key{Below(3) == 0 ? "a" : "b", Below(4) == 0 ? "adapter" : ""};
    live_.push_back({Reader(&index_, cache_.get(), key), text});
    Reader& reader = live_.back().reader;
    hits += reader.Take(text, Below(320)) > 0;
  }
  void Grow() {
    Live& live = *Choose();
    Reader& reader = live.reader;
    const int32_t length = std::min(320, reader.kv.length + Below(150));
    const int32_t before = reader.kv.length;
    if (!cache_->Extend(reader.kv, length).ok()) return;
    // A page that was begun is finished by its sequence; what is shared must not change.
    for (int32_t page = before / 64; page < length / 64; ++page) {
      *Slot(reader, page) = Bits(live.text, reader.key, page);
    }
    reader.Insert(live.text, Below(2) == 0);
  }
  void Fork() {
    if (live_.size() > 12) return;
    Live& live = *Choose();
    const int32_t length = live.reader.kv.length == 0 ? 0 : Below(live.reader.kv.length + 1);
    Live fork{Reader(&index_, cache_.get(), live.reader.key), live.text};
    fork.reader.kv = cache_->Share(live.reader.kv, length);
    fork.reader.pin = index_.PinAlso(live.reader.pin, length / kKvPageTokens);
    // A part of a page becomes its own at once.
    if (length % kKvPageTokens != 0 && !cache_->Extend(fork.reader.kv, length + 1).ok()) {
      return fork.reader.End();
    }
    live_.push_back(std::move(fork));
  }
  void End(bool insert) {
    const auto it = Choose();
    if (insert) it->reader.Insert(it->text);
    it->reader.End();
    live_.erase(it);
  }
  std::list<Live>::iterator Choose() {
    auto it = live_.begin();
    std::advance(it, Below(static_cast<int>(live_.size())));
    return it;
  }

  void Check() {
    std::set<BlockId> held;
    for (const Live& live : live_) {
      for (int32_t page = 0; page < live.reader.kv.length / 64; ++page) {
        ASSERT_EQ(*Slot(live.reader, page), Bits(live.text, live.reader.key, page));
      }
      for (const KvPage& page : live.reader.kv.pages) held.insert(page.wide);
    }
    ASSERT_EQ(cache_->used_bytes() - index_.evictable_bytes(),
              static_cast<int64_t>(held.size() * kShape.WideBytes()));
  }

  std::mt19937_64 random_;
  const std::unique_ptr<KvCache> cache_ =
      *KvCache::Create(kShape, static_cast<int64_t>(kShape.WideBytes()) * 24);
  PrefixIndex index_{cache_.get()};
  std::list<Live> live_;
};

TEST(PrefixIndex, RandomSequencesFindTheirBits) {
  int hits = 0;
  for (uint64_t seed = 1; seed <= 300 && !HasFailure(); ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    RandomIndex run(seed);
    run.Run();
    hits += run.hits;
  }
  EXPECT_GT(hits, 3000);
}

}  // namespace
}  // namespace cogumi
