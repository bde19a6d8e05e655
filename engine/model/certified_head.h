// The head for rows of which only the most likely token matters: the largest logit without most of
// the weights' lower bits.
//
// Estimates come from the coarse part of a split matrix. What was left out of one is at most the
// sum over blocks of s (3.5 |x|_1 + 0.5 |sum x|) with a block's scale s and activations x
// (kCoarseZero), so by Cauchy and Schwarz at most the norm of a row's scales times one number of
// the activations. The panels with the largest estimates are computed exactly; their largest logit
// is what others must reach, and every panel that can is computed exactly too. So the largest logit
// and its token are those of the whole product, bit for bit; all others are no larger, and
// estimates.
//
// A row's results depend on nothing but the row. How many panels follow: engine/kernels/README.md.
#pragma once

#include <vector>

#include "engine/core/thread_pool.h"
#include "engine/kernels/ops.h"

namespace cogumi {

class CertifiedHead {
 public:
  // Rows at once, at most. With more the whole product waits for arithmetic, of which this has as
  // much: us a row on one thread 1,235 against 2,200 alone, 590 against 530 of five.
  static constexpr int kMostRows = 3;

  // `head` is split and outlives this.
  CertifiedHead(const KernelTable& kernels, const PackedMatrix& head);

  // Inside ThreadPool::Run, by every thread: logits [rows][vocabulary] of slots [0, rows) of `in`.
  // Ends with a barrier.
  void Run(ThreadPool& pool, int thread, const Activations& in, int rows, float* logits);

 private:
  // ScanHeadArgs::spread of a slot.
  float Spread(const Activations& in, int slot) const;
  // Computes the panels with the largest estimates and sets what the others must reach.
  void Seed(HeadArgs args, int rows);

  const KernelTable& kernels_;
  const PackedMatrix& head_;
  std::vector<float> spread_;  // [rows]
  std::vector<float> best_;    // [panels][rows]
  std::vector<float> upper_;   // [panels][rows]; -inf: exact already
  std::vector<float> least_;   // [rows]: largest of the logits that are exact
};

}  // namespace cogumi
