// One model under several engines that never compute at the same time, so that each finds the same
// weights as warm in the caches as the other left them.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "engine/model/model.h"

namespace cogumi::bench {

class SharedModel : public Model {
 public:
  explicit SharedModel(std::shared_ptr<Model> model) : model_(std::move(model)) {}

  const ModelConfig& config() const override { return model_->config(); }
  KvShape kv_shape() const override { return model_->kv_shape(); }
  const std::string& kernel_configuration() const override {
    return model_->kernel_configuration();
  }
  const KernelTable& kernels() const override { return model_->kernels(); }
  AdapterTable* adapters() override { return model_->adapters(); }
  absl::Status Forward(const StepPlan& plan, KvCache& cache) override {
    return model_->Forward(plan, cache);
  }
  const float* Logits(int32_t index) const override { return model_->Logits(index); }
  const LogitSummary& Summary(int32_t index) const override { return model_->Summary(index); }

 private:
  const std::shared_ptr<Model> model_;
};

}  // namespace cogumi::bench
