// A LoRA adapter in memory: read from PEFT's files, checked against the model, packed for the
// kernels.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "cogumi/types.h"
#include "engine/kernels/lora.h"
#include "engine/model/arena.h"
#include "engine/model/config.h"

namespace cogumi {

class Adapter {
 public:
  // Bytes of memory that Create takes, from the files' headers alone; checks all but the weights.
  // INVALID_ARGUMENT naming file, tensor or option; UNIMPLEMENTED for heads of an odd width.
  static absl::StatusOr<int64_t> PackedBytes(const AdapterFiles& files, const ModelConfig& config,
                                             LoraFormat format);
  // INVALID_ARGUMENT too for weights that are not finite; RESOURCE_EXHAUSTED.
  static absl::StatusOr<std::unique_ptr<Adapter>> Create(const AdapterFiles& files,
                                                         const ModelConfig& config,
                                                         LoraFormat format);
  Adapter(const Adapter&) = delete;
  Adapter& operator=(const Adapter&) = delete;

  const LoraLayer* layers() const { return layers_.data(); }
  // Whether it changes a linear of the group, in any layer.
  bool Changes(LoraGroup group) const {
    return layers_.front().shrink[static_cast<int>(group)].ranks > 0;
  }
  int rank() const { return rank_; }
  int64_t bytes() const { return static_cast<int64_t>(arena_.bytes()); }

 private:
  Adapter() = default;

  int rank_ = 0;
  std::vector<LoraLayer> layers_;
  Arena arena_;
};

}  // namespace cogumi
