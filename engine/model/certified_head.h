// The head for rows of which only the most likely token matters: the largest logit without most of
// the weights' lower bits.
//
// Estimates come from the coarse part of a split matrix. What was left out of a row is E, known
// when it is packed, but for the heavy inputs, where a part H of it is known to the estimate. So an
// estimate is off by at most |E_light| |x_light| + |E_heavy - H| |x_heavy|, by Cauchy and Schwarz,
// and what the activations' second quantisation adds, |H| |x_heavy - x_gathered|: one number of the
// row (PackedMatrix::Norms, the largest of |E_light|, kHeavyRest |E_heavy - H| and |H|) times one
// of the activations. A few inputs carry most of the activations' energy: of SmolLM2's 576, 32
// carry three quarters. The panels with the largest estimates are computed exactly; their largest
// logit is what others must reach, and every panel that can is computed exactly too. So the largest
// logit and its token are those of the whole product, bit for bit; all others are no larger, and
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
  // much: whole steps of four and five rows are 1.0-1.1x as fast with it, of eight 0.93-1.1x.
  static constexpr int kMostRows = 5;

  // `head` is split and outlives this.
  CertifiedHead(const KernelTable& kernels, const PackedMatrix& head);

  // Quantises the heavy inputs of slots [0, rows) again, as the block behind in's last, for which
  // its memory has room.
  void Gather(Activations* in, int rows) const;
  // Inside ThreadPool::Run, by every thread: logits [rows][vocabulary] of slots [0, rows) of `in`,
  // whose heavy inputs are gathered. Ends with a barrier.
  void Run(ThreadPool& pool, int thread, const Activations& in, int rows, float* logits);

 private:
  // An activation as products see it; those from head_.inputs on are the heavy ones gathered.
  static double ValueOf(const Activations& in, int slot, int input);
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
