// How many prompt rows a step may hold, so that those who wait for their next token, or come
// meanwhile, do not wait longer than a target: learnt from how long steps took. A prompt alone
// loses 2 % by chunks of 50 ms (96 rows instead of 256, SmolLM2-135M on two cores).
//
// A step takes as long as its decoding rows alone, which is measured when no prompt is computed,
// and so much more a prompt row. Decoding and prompt rows together take the target; where decoding
// alone takes more than half of it, the prompt rows take as long again (the target at most), so
// that a step takes twice the target while decoding stays below it. Nothing that is computed
// depends on the chunk's size, so the measurement may be as rough as it is.
#pragma once

#include <cstdint>

namespace cogumi {

class ChunkSizer {
 public:
  // At most `most` rows, at least one; target_seconds: infinite for always `most`.
  ChunkSizer(int32_t most, double target_seconds);

  // Prompt rows for the next step. `others`: rows of sequences that wait for their next token.
  int32_t Rows(int32_t others) const;
  // A step with these rows took so long.
  void Measured(int32_t prompt_rows, int32_t other_rows, double seconds);

 private:
  const int32_t most_;
  const double target_;
  double other_seconds_ = 0;    // of a step without prompt rows
  double seconds_per_row_ = 0;  // of prompts; 0: not known yet
};

}  // namespace cogumi
