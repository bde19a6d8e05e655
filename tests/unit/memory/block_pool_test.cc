// What the pool says is resident is what the system keeps in memory.
#include "engine/memory/block_pool.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <vector>

#include "gtest/gtest.h"

namespace cogumi {
namespace {

// Bytes of memory behind the pool's blocks, by whole pages of the system.
int64_t BytesInMemory(const BlockPool& pool) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t bytes =
      static_cast<size_t>(pool.capacity()) * static_cast<size_t>(pool.block_bytes());
  const size_t pages = (bytes + page - 1) / page;
  std::vector<unsigned char> in_memory(pages);
  EXPECT_EQ(mincore(pool.At(0), bytes, in_memory.data()), 0);
  int64_t sum = 0;
  for (const unsigned char flag : in_memory)
    sum += (flag & 1) != 0 ? static_cast<int64_t>(page) : 0;
  return sum;
}

TEST(BlockPool, GivesMemoryBackToTheSystem) {
  // Blocks that end within pages of the system, as those of most models do.
  constexpr size_t kBlock = 3 * 4096 + 512;
  constexpr int kBlocks = 64;
  const int64_t border = 2 * sysconf(_SC_PAGESIZE);
  auto created = BlockPool::Create(kBlock, static_cast<int64_t>(kBlock) * kBlocks);
  ASSERT_TRUE(created.ok()) << created.status();
  BlockPool& pool = *created;
  EXPECT_EQ(BytesInMemory(pool), 0);
  std::vector<BlockId> taken;
  for (int i = 0; i < kBlocks; ++i) {
    taken.push_back(pool.Take());
    std::memset(pool.At(taken.back()), 1, kBlock);
  }
  EXPECT_GE(BytesInMemory(pool), pool.resident_bytes());
  for (const BlockId block : taken) pool.Drop(block);
  EXPECT_EQ(pool.used_bytes(), 0);
  EXPECT_EQ(pool.resident_bytes(), static_cast<int64_t>(kBlock) * kBlocks);
  for (int trimmed = 1; pool.Trim(); ++trimmed) {
    EXPECT_EQ(pool.resident_bytes(), static_cast<int64_t>(kBlock) * (kBlocks - trimmed));
    EXPECT_LE(BytesInMemory(pool), pool.resident_bytes() + border);
  }
  EXPECT_EQ(BytesInMemory(pool), 0);
  // What comes back is written as before.
  const BlockId again = pool.Take();
  std::memset(pool.At(again), 2, kBlock);
  EXPECT_LE(BytesInMemory(pool), pool.resident_bytes() + border);
}

TEST(BlockPool, WhatIsTrimmedInAnyOrderLeavesNothing) {
  constexpr size_t kBlock = 5000;
  auto created = BlockPool::Create(kBlock, kBlock * 50);
  ASSERT_TRUE(created.ok()) << created.status();
  BlockPool& pool = *created;
  for (int i = 0; i < 50; ++i) std::memset(pool.At(pool.Take()), 1, kBlock);
  // Dropped in an order that leaves holes.
  for (int step : {3, 2, 1}) {
    for (BlockId block = 0; block < 50; ++block) {
      if (pool.Valid(block) && block % step == 0) pool.Drop(block);
    }
    while (pool.Trim()) continue;
    // A block shares a page of memory with each neighbour.
    EXPECT_LE(BytesInMemory(pool), 3 * pool.resident_bytes());
  }
  EXPECT_EQ(BytesInMemory(pool), 0);
}

}  // namespace
}  // namespace cogumi
