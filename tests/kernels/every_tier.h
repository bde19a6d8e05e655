// Tests over every tier of kernels by name; one that this CPU lacks is skipped and says so.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "engine/kernels/registry.h"
#include "tests/support/sanitizers.h"

namespace cogumi {

class EveryTier : public ::testing::TestWithParam<const KernelTable*> {
 protected:
  void SetUp() override {
    if (!SelectKernels(GetParam()->name).ok()) {
      GTEST_SKIP() << "this CPU cannot run " << GetParam()->name << ", it has " << CpuFeatures();
    }
  }
  const KernelTable& kernels() const { return *GetParam(); }
  // The scalar tier under a sanitizer.
  bool Slow() const { return testing::kSanitized && GetParam() == &ReferenceKernels(); }
};

#define COGUMI_EVERY_TIER(Suite)                                                      \
  INSTANTIATE_TEST_SUITE_P(Tiers, Suite, ::testing::ValuesIn(::cogumi::AllKernels()), \
                           [](const auto& tier) { return std::string(tier.param->name); })

}  // namespace cogumi
