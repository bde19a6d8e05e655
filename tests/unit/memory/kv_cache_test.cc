#include "engine/memory/kv_cache.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <set>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/long_tests.h"

namespace cogumi {
namespace {

// A page of 2 layers, 2 heads, 4 dimensions.
constexpr KvShape kShape{2, 2, 4, KvFormat::kF32};

std::unique_ptr<KvCache> MakeCache(int pages) {
  auto cache = KvCache::Create(kShape, static_cast<int64_t>(kShape.WideBytes()) * pages);
  EXPECT_TRUE(cache.ok()) << cache.status();
  return *std::move(cache);
}

// One number per token, in the last byte range of the page, so that whole pages must be copied.
uint32_t* Slot(const KvCache& cache, const KvSequence& sequence, int32_t position) {
  const KvPage& page = sequence.pages[static_cast<size_t>(position / kKvPageTokens)];
  std::byte* head = cache.Head(page.wide, 1, 1);
  return reinterpret_cast<uint32_t*>(head + kShape.Layout(0).WideV()) + position % kKvPageTokens;
}

TEST(KvCache, ShapeCountsBytes) {
  EXPECT_EQ(kShape.Layout(0).WideV(), 4u * 64 * 4);
  EXPECT_EQ(kShape.WideBytes(), 2u * 2 * 2 * 4 * 64 * 4);
  EXPECT_EQ((KvShape{2, 2, 4, KvFormat::kF16}).WideBytes(), kShape.WideBytes() / 2);
}

TEST(KvCache, BudgetBecomesPages) {
  const int64_t page = static_cast<int64_t>(kShape.WideBytes());
  EXPECT_EQ((*KvCache::Create(kShape, 3 * page + page - 1))->wide().capacity(), 3);
  for (const int64_t budget : {int64_t{0}, int64_t{-1}, page - 1}) {
    const auto cache = KvCache::Create(kShape, budget);
    EXPECT_EQ(cache.status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_THAT(std::string(cache.status().ToString()),
                testing::AllOf(testing::HasSubstr(std::to_string(budget)),
                               testing::HasSubstr(std::to_string(page))));
  }
  EXPECT_FALSE(KvCache::Create(KvShape{}, 1 << 20).ok());
}

TEST(KvCache, HeadsOfAPageDoNotOverlap) {
  const auto cache = MakeCache(2);
  std::set<std::byte*> starts;
  for (BlockId page = 0; page < 2; ++page) {
    for (int layer = 0; layer < 2; ++layer) {
      for (int head = 0; head < 2; ++head) starts.insert(cache->Head(page, layer, head));
    }
  }
  std::byte* expected = cache->Head(0, 0, 0);
  for (std::byte* start : starts) {
    EXPECT_EQ(start, expected);
    expected += kShape.Layout(0).WideHeadBytes();
  }
}

TEST(KvCache, ExtendTakesPagesAndTruncateGivesThemBack) {
  const auto cache = MakeCache(4);
  KvSequence sequence;
  ASSERT_TRUE(cache->Extend(sequence, 1).ok());
  EXPECT_EQ(cache->wide().used(), 1);
  ASSERT_TRUE(cache->Extend(sequence, 64).ok());
  EXPECT_EQ(cache->wide().used(), 1);
  ASSERT_TRUE(cache->Extend(sequence, 65).ok());
  EXPECT_EQ(cache->wide().used(), 2);
  ASSERT_TRUE(cache->Extend(sequence, 10).ok());  // shorter: nothing
  EXPECT_EQ(sequence.length, 65);
  cache->Truncate(sequence, 64);
  EXPECT_EQ(cache->wide().used(), 1);
  cache->Release(sequence);
  EXPECT_EQ(cache->wide().used(), 0);
  EXPECT_EQ(sequence.length, 0);
}

TEST(KvCache, ExhaustionLeavesTheSequenceAsItWas) {
  const auto cache = MakeCache(2);
  KvSequence sequence;
  ASSERT_TRUE(cache->Extend(sequence, 64).ok());
  const std::vector<KvPage> pages = sequence.pages;
  EXPECT_EQ(cache->Extend(sequence, 129).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(sequence.pages, pages);
  EXPECT_EQ(sequence.length, 64);
  EXPECT_EQ(cache->free_bytes(), static_cast<int64_t>(kShape.WideBytes()));
}

TEST(KvCache, ForkCopiesOnlyTheSharedPageThatIsWritten) {
  const auto cache = MakeCache(4);
  KvSequence first;
  ASSERT_TRUE(cache->Extend(first, 100).ok());
  for (int32_t i = 0; i < 100; ++i) *Slot(*cache, first, i) = static_cast<uint32_t>(i);
  KvSequence second = cache->Fork(first);
  EXPECT_EQ(cache->wide().used(), 2);
  ASSERT_TRUE(cache->Extend(second, 101).ok());
  EXPECT_EQ(cache->wide().used(), 3);
  EXPECT_EQ(second.pages[0], first.pages[0]);
  EXPECT_NE(second.pages[1], first.pages[1]);
  for (int32_t i = 0; i < 100; ++i) {
    EXPECT_EQ(*Slot(*cache, second, i), static_cast<uint32_t>(i));
  }
  ASSERT_TRUE(cache->Extend(first, 101).ok());  // alone again: no copy
  EXPECT_EQ(cache->wide().used(), 3);
  cache->Release(first);
  cache->Release(second);
  EXPECT_EQ(cache->wide().used(), 0);
}

TEST(KvCache, CopyThatFindsNoPageLeavesBothAsTheyWere) {
  const auto cache = MakeCache(2);
  KvSequence first;
  ASSERT_TRUE(cache->Extend(first, 70).ok());
  KvSequence second = cache->Fork(first);
  EXPECT_FALSE(cache->Extend(second, 71).ok());
  EXPECT_EQ(second.pages, first.pages);
  EXPECT_EQ(second.length, 70);
}

TEST(KvCache, ShareCountsReferencesToABeginning) {
  const auto cache = MakeCache(4);
  KvSequence first;
  ASSERT_TRUE(cache->Extend(first, 140).ok());
  for (int32_t i = 0; i < 140; ++i) *Slot(*cache, first, i) = static_cast<uint32_t>(i);
  KvSequence second = cache->Share(first, 100);
  EXPECT_EQ(second.length, 100);
  EXPECT_EQ(second.pages.size(), 2u);
  EXPECT_TRUE(KvCache::CanResume(second.pages, 100, kShape.format));
  EXPECT_TRUE(KvCache::CanResume(second.pages, 128, kShape.format));
  EXPECT_FALSE(KvCache::CanResume(second.pages, 129, kShape.format));
  cache->Release(first);
  EXPECT_EQ(cache->wide().used(), 2);
  ASSERT_TRUE(cache->Extend(second, 101).ok());
  EXPECT_EQ(cache->wide().used(), 2);  // alone: nothing to copy
  for (int32_t i = 0; i < 100; ++i) {
    EXPECT_EQ(*Slot(*cache, second, i), static_cast<uint32_t>(i));
  }
  const KvPage held = second.pages[0];
  cache->Retain(held);
  cache->Release(second);
  EXPECT_EQ(cache->wide().used(), 1);
  cache->Drop(held);
  EXPECT_EQ(cache->used_bytes(), 0);
}

TEST(KvCache, NeedsAndReachAgreeWithExtend) {
  const auto cache = MakeCache(3);
  const int64_t page = static_cast<int64_t>(kShape.WideBytes());
  KvSequence first;
  EXPECT_EQ(cache->BytesNeeded(first, 65), 2 * page);
  EXPECT_EQ(cache->Reach(first, 500), 192);
  ASSERT_TRUE(cache->Extend(first, 70).ok());
  EXPECT_EQ(cache->BytesNeeded(first, 128), 0);
  EXPECT_EQ(cache->BytesNeeded(first, 129), page);
  KvSequence second = cache->Fork(first);
  EXPECT_EQ(cache->BytesNeeded(second, 71), page);  // the copy
  EXPECT_EQ(cache->BytesNeeded(second, 129), 2 * page);
  EXPECT_EQ(cache->Reach(second, 150), 128);
  EXPECT_EQ(cache->free_bytes(), page);
  ASSERT_TRUE(cache->Extend(second, 128).ok());
  EXPECT_EQ(cache->Reach(first, 150), 128);
  EXPECT_EQ(cache->Reach(second, 129), 128);
  EXPECT_EQ(cache->LongestSequence(), 192);
  cache->Release(first);
  cache->Release(second);
}

// With narrow pages: 2 layers, one head of 64 dimensions, K and V in 4 bits.
constexpr KvShape kNarrowShape{2, 1, 64, KvFormat::kInt4};
constexpr int64_t kWide = 2 * (2 * 64 * 64 + 2 * 64 * 4);
constexpr int64_t kNarrow = 2 * (2 * 32 * 64 + 4 * 64 + 4 * 64);

std::unique_ptr<KvCache> MakeNarrowCache(int64_t budget) {
  auto cache = KvCache::Create(kNarrowShape, budget);
  EXPECT_TRUE(cache.ok()) << cache.status();
  return *std::move(cache);
}

// What a step's model does with the narrow blocks that its rows see.
void MakeNarrows(KvCache& cache, const KvSequence& sequence) {
  for (size_t j = 1; j < sequence.pages.size(); ++j) {
    if (sequence.pages[j].narrow != kNoBlock) cache.SetNarrowMade(sequence.pages[j]);
  }
}

// Wide and narrow blocks by page, for example "W WN N": '-' where there is neither.
std::string Forms(const KvSequence& sequence) {
  std::string forms;
  for (const KvPage& page : sequence.pages) {
    if (!forms.empty()) forms += ' ';
    if (page.wide != kNoBlock) forms += 'W';
    if (page.narrow != kNoBlock) forms += 'N';
  }
  return forms;
}

TEST(KvCacheNarrow, ABlockOfFourBitsIsAsSmallAsPromised) {
  EXPECT_EQ(static_cast<int64_t>(kNarrowShape.WideBytes()), kWide);
  EXPECT_EQ(static_cast<int64_t>(kNarrowShape.NarrowBytes()), kNarrow);
  // The default model: 30 layers, 3 KV heads.
  const KvShape shape{30, 3, 64, KvFormat::kInt4};
  EXPECT_LE(shape.NarrowBytes(), 6500u * 64);
  EXPECT_EQ((KvShape{30, 3, 64, KvFormat::kF16}).NarrowBytes(), 0u);
}

TEST(KvCacheNarrow, AStepHoldsBothFormsAndCommitKeepsTheFirstPageAndTheWindow) {
  const auto cache = MakeNarrowCache(100 * kWide);
  KvSequence sequence;
  ASSERT_TRUE(cache->Extend(sequence, 192).ok());
  EXPECT_EQ(Forms(sequence), "W W W");
  ASSERT_TRUE(cache->Extend(sequence, 193).ok());
  EXPECT_EQ(Forms(sequence), "W WN W W");
  cache->Commit(sequence, 193);  // not made yet
  EXPECT_EQ(Forms(sequence), "W WN W W");
  MakeNarrows(*cache, sequence);
  cache->Commit(sequence, 193);
  EXPECT_EQ(Forms(sequence), "W N W W");
  EXPECT_EQ(cache->used_bytes(), 3 * kWide + kNarrow);
  // A prompt's step of several pages.
  ASSERT_TRUE(cache->Extend(sequence, 449).ok());
  EXPECT_EQ(Forms(sequence), "W N WN WN WN WN W W");
  MakeNarrows(*cache, sequence);
  cache->Commit(sequence, 449);
  EXPECT_EQ(Forms(sequence), "W N N N N N W W");
  cache->Release(sequence);
  EXPECT_EQ(cache->used_bytes(), 0);
}

TEST(KvCacheNarrow, RejectedDraftsTakeTheirNarrowBlocksWithThem) {
  const auto cache = MakeNarrowCache(100 * kWide);
  KvSequence sequence;
  ASSERT_TRUE(cache->Extend(sequence, 190).ok());
  cache->Commit(sequence, 190);
  ASSERT_TRUE(cache->Extend(sequence, 195).ok());
  MakeNarrows(*cache, sequence);
  EXPECT_EQ(Forms(sequence), "W WN W W");
  cache->Truncate(sequence, 191);
  cache->Commit(sequence, 191);
  EXPECT_EQ(Forms(sequence), "W W W");
}

TEST(KvCacheNarrow, ResumesWhereTheWindowIsWide) {
  const auto cache = MakeNarrowCache(100 * kWide);
  KvSequence sequence;
  ASSERT_TRUE(cache->Extend(sequence, 400).ok());  // pages 0..6
  MakeNarrows(*cache, sequence);
  const auto resumes = [&](const KvSequence& from, int32_t length) {
    return KvCache::CanResume(from.pages, length, KvFormat::kInt4);
  };
  for (const int32_t length : {1, 64, 130, 250, 384, 400}) EXPECT_TRUE(resumes(sequence, length));
  KvSequence before = cache->Share(sequence, 320);
  cache->Commit(sequence, 400);
  EXPECT_EQ(Forms(sequence), "W N N N N W W");
  EXPECT_TRUE(resumes(sequence, 400));
  EXPECT_TRUE(resumes(sequence, 384));
  EXPECT_FALSE(resumes(sequence, 383));  // page 4 must be wide
  EXPECT_FALSE(resumes(sequence, 100));
  EXPECT_TRUE(resumes(sequence, 64));
  EXPECT_TRUE(resumes(before, 320));
  EXPECT_TRUE(resumes(before, 200));
  EXPECT_FALSE(KvCache::CanResume(sequence.pages, 400, KvFormat::kF16));
  ASSERT_TRUE(cache->Extend(before, 321).ok());
  EXPECT_EQ(Forms(before), "W WN WN WN WN W");  // page 4 was narrow there already
  cache->Release(sequence);
  cache->Release(before);
  EXPECT_EQ(cache->used_bytes(), 0);
}

TEST(KvCacheNarrow, BytesForIsThePeakOfGrowingTokenByToken) {
  const auto cache = MakeNarrowCache(100 * kWide);
  KvSequence sequence;
  int64_t peak = 0;
  for (int32_t length = 1; length <= 700; ++length) {
    const int64_t needed = cache->BytesNeeded(sequence, length);
    const int64_t before = cache->used_bytes();
    ASSERT_TRUE(cache->Extend(sequence, length).ok());
    EXPECT_EQ(cache->used_bytes(), before + needed);
    peak = std::max(peak, cache->used_bytes());
    EXPECT_EQ(cache->BytesFor(length), peak) << length;
    MakeNarrows(*cache, sequence);
    cache->Commit(sequence, length);
  }
  cache->Release(sequence);
}

TEST(KvCacheNarrow, TheBudgetIsNeverExceededAndTheLongestSequenceFits) {
  for (const int64_t budget : {kWide, 3 * kWide, 4 * kWide, 7 * kWide + kNarrow / 2}) {
    const auto cache = MakeNarrowCache(budget);
    KvSequence sequence;
    int32_t length = 0;
    while (cache->Extend(sequence, length + 1).ok()) {
      ++length;
      EXPECT_LE(cache->used_bytes(), budget);
      // Blocks that were used before count too, until their memory has been given back.
      EXPECT_LE(cache->wide().resident_bytes() + cache->narrow().resident_bytes(), budget);
      MakeNarrows(*cache, sequence);
      cache->Commit(sequence, length);
    }
    EXPECT_EQ(length, cache->LongestSequence()) << budget;
    cache->Release(sequence);
    // All wide again, in the place of narrow blocks.
    EXPECT_EQ(cache->Reach(sequence, 64), 64);
    ASSERT_TRUE(cache->Extend(sequence, 64).ok());
    KvSequence other;
    while (cache->Extend(other, other.length + 64).ok() && other.length < 192) {
      EXPECT_LE(cache->wide().resident_bytes() + cache->narrow().resident_bytes(), budget);
    }
    cache->Release(sequence);
    cache->Release(other);
  }
}

// Random operations over several sequences, held against plain vectors of numbers.
TEST(KvCache, RandomOperationsKeepEveryTokensContent) {
  constexpr int kPages = 12;
  struct Modelled {
    KvSequence sequence;
    std::vector<uint32_t> content;
  };
  std::mt19937_64 random(7);
  int copies = 0;
  int refusals = 0;
  for (int trial = 0; trial < Trials(300, 20); ++trial) {
    const auto cache = MakeCache(kPages);
    std::vector<Modelled> live;
    uint32_t next = 1;
    for (int step = 0; step < 120; ++step) {
      const uint64_t choice = random() % 10;
      if (choice == 0 || live.empty()) {
        live.emplace_back();
      } else if (choice <= 5) {
        Modelled& m = live[random() % live.size()];
        const int32_t length = m.sequence.length + static_cast<int32_t>(random() % 90);
        const std::vector<KvPage> before = m.sequence.pages;
        if (cache->Extend(m.sequence, length).ok()) {
          ASSERT_EQ(m.sequence.length, length);
          for (size_t i = 0; i < before.size(); ++i) copies += before[i] != m.sequence.pages[i];
          while (m.content.size() < static_cast<size_t>(length)) {
            *Slot(*cache, m.sequence, static_cast<int32_t>(m.content.size())) = next;
            m.content.push_back(next++);
          }
        } else {
          ++refusals;
          ASSERT_EQ(m.sequence.pages, before);
        }
      } else if (choice <= 7) {
        Modelled& m = live[random() % live.size()];
        const size_t length = random() % (m.content.size() + 20);
        cache->Truncate(m.sequence, static_cast<int32_t>(length));
        if (m.content.size() > length) m.content.resize(length);
        ASSERT_EQ(m.sequence.length, static_cast<int32_t>(m.content.size()));
      } else if (choice == 8) {
        const Modelled& m = live[random() % live.size()];
        Modelled fork{cache->Fork(m.sequence), m.content};
        live.push_back(std::move(fork));
      } else {
        const size_t index = random() % live.size();
        cache->Release(live[index].sequence);
        live.erase(live.begin() + static_cast<std::ptrdiff_t>(index));
      }
      std::set<BlockId> used;
      for (const Modelled& m : live) {
        ASSERT_EQ(m.sequence.pages.size(),
                  static_cast<size_t>(KvCache::PagesFor(m.sequence.length)));
        for (const KvPage& page : m.sequence.pages) used.insert(page.wide);
        for (size_t i = 0; i < m.content.size(); ++i) {
          ASSERT_EQ(*Slot(*cache, m.sequence, static_cast<int32_t>(i)), m.content[i]);
        }
      }
      ASSERT_EQ(cache->wide().used(), static_cast<int>(used.size()));
      ASSERT_EQ(cache->free_bytes(), cache->budget_bytes() - cache->used_bytes());
    }
    for (Modelled& m : live) cache->Release(m.sequence);
    ASSERT_EQ(cache->wide().used(), 0);
  }
  EXPECT_GT(copies, 100);
  EXPECT_GT(refusals, 100);
}

}  // namespace
}  // namespace cogumi
