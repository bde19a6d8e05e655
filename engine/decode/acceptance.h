// How likely a drafted token is accepted, learnt from what became of earlier ones.
//
// Counted by class of evidence (see Draft): for n-gram lookup the length of the match so far, for a
// model the position in the draft. A sequence begins with what all sequences showed and comes to
// rely on its own counts; older counts fade.
#pragma once

#include <array>
#include <cstdint>

namespace cogumi {

class AcceptanceCounts {
 public:
  static constexpr int kClasses = 8;
  static int ClassOf(int32_t evidence);

  void Add(int evidence_class, bool accepted, float fade);
  void Fade(float factor);
  // Of `weight` cases that were accepted with `prior`, and those counted.
  float Rate(int evidence_class, float prior, float weight) const;

 private:
  struct Count {
    float accepted = 0;
    float trials = 0;
  };
  std::array<Count, kClasses> counts_;
};

// Over all sequences of one drafter.
class Acceptance {
 public:
  using Prior = std::array<float, AcceptanceCounts::kClasses>;
  explicit Acceptance(const Prior& prior) : prior_(prior) {}

  // Given that all tokens before it were accepted.
  float Rate(const AcceptanceCounts& own, int32_t evidence) const;
  void Observe(AcceptanceCounts& own, int32_t evidence, bool accepted);

 private:
  const Prior prior_;
  AcceptanceCounts all_;
};

}  // namespace cogumi
