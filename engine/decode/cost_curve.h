// How long a step takes by its number of rows, learnt from steps as they come.
//
// Only the shape matters: which size gives the most tokens per second. The machine's speed drifts
// as a whole (other processes, clock, growing contexts), so a step says two things: how fast the
// machine is now, and, less and less, what its size costs compared with others. The size that is
// measured most stands for the machine alone. A size that was not measured lately is taken from its
// neighbours, or from a careless guess beyond them: so a size that lost once is tried again, each
// time later.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace cogumi {

class CostCurve {
 public:
  void Observe(int32_t rows, double seconds);
  // Seconds of a step; only good for comparison with other sizes until something was observed.
  double Estimate(int32_t rows) const;

  bool Known() const { return observed_ > 0; }
  // Steps since this size was measured; a large number when it never was.
  int64_t Age(int32_t rows) const;

 private:
  struct Size {
    double ratio = 0;  // of its steps to level_
    int64_t at = 0;    // observed_ then
    int count = 0;
  };
  bool Fresh(const Size& size) const;

  std::vector<Size> sizes_;  // by rows - 1
  double level_ = 0;         // seconds; 0: nothing was measured
  int most_ = 0;             // measurements of a size
  int64_t observed_ = 0;
};

}  // namespace cogumi
