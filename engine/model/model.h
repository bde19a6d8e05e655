// A loaded transformer: weights, scratch memory and the forward pass of one step.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "engine/core/thread_pool.h"
#include "engine/kernels/ops.h"
#include "engine/memory/kv_cache.h"
#include "engine/model/config.h"
#include "engine/model/step_plan.h"

namespace cogumi {

class AdapterTable;
class GgufFile;

struct ModelOptions {
  std::string kernels;  // see EngineOptions
  // Instead of a tier's, for a test that puts something wrong under the model. Must outlive it.
  const KernelTable* table = nullptr;
  ActivationFormat activations = ActivationFormat::kMixed;
  KvFormat kv_format = KvFormat::kF16;
  int32_t max_rows = 288;  // rows of a step, at most
  int32_t max_logit_rows = 32;
  // Scratch memory grows with rows, vocabulary and widths of the file; beyond this it is refused.
  int64_t max_scratch_bytes = int64_t{4} << 30;
  int64_t adapter_bytes = 0;  // see EngineOptions
};

// Statistics of one row of raw logits, in fixed order so that they do not depend on the threads.
struct LogitSummary {
  float max = 0;
  float second = 0;        // second largest; -inf with a vocabulary of one
  TokenId argmax = 0;      // lowest id among equals
  double log_sum_exp = 0;  // of all logits: logprob(i) = logit[i] - log_sum_exp
  double entropy = 0;      // nats
  bool finite = true;      // false when any logit (or estimate) is NaN or infinite
};

class Model {
 public:
  // Errors: INVALID_ARGUMENT, UNIMPLEMENTED (naming architecture, tensor and type), NOT_FOUND,
  // RESOURCE_EXHAUSTED.
  // The pool must outlive the model; the file may be closed afterwards.
  static absl::StatusOr<std::unique_ptr<Model>> Load(const GgufFile& file,
                                                     const ModelOptions& options, ThreadPool* pool);
  virtual ~Model() = default;

  virtual const ModelConfig& config() const = 0;
  virtual KvShape kv_shape() const = 0;
  // "avx512vnni/mixed/kv-f16"
  virtual const std::string& kernel_configuration() const = 0;
  // The tier it runs on, for the operations that follow a forward pass.
  virtual const KernelTable& kernels() const = 0;

  // The table that StepSequence::adapter points into; null for a model without adapters.
  virtual AdapterTable* adapters() { return nullptr; }

  // Runs the plan: appends K and V of every row and computes the wanted logits.
  // INVALID_ARGUMENT for a plan that breaks step_plan.h or the limits; nothing is written then.
  virtual absl::Status Forward(const StepPlan& plan, KvCache& cache) = 0;

  // Of the last Forward; valid until the next. index: into plan.logit_rows. [vocabulary]
  // A row that needs LogitNeed::kTop may have estimates, see there.
  virtual const float* Logits(int32_t index) const = 0;
  virtual const LogitSummary& Summary(int32_t index) const = 0;
};

}  // namespace cogumi
