#include "engine/model/weights.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <set>
#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/core/status_macros.h"
#include "engine/io/gguf.h"
#include "engine/model/heavy_inputs.h"
#include "engine/model/packing.h"

namespace cogumi {
namespace {

struct Job {
  const GgufTensor* tensor;
  PackedMatrix* matrix;
};

class Loader {
 public:
  Loader(const GgufFile& file, const ModelConfig& config) : file_(file), config_(config) {}

  absl::Status Matrix(const std::string& name, int rows, int inputs, PackedMatrix* out,
                      bool split = false) {
    ASSIGN_OR_RETURN(const GgufTensor* tensor, Expect(name, {inputs, rows}));
    out->format = split ? PackedHeadFormatOf(tensor->type) : PackedFormatOf(tensor->type);
    out->rows = rows;
    out->inputs = inputs;
    bytes_ += Arena::Rounded(out->Bytes());
    jobs_.push_back({tensor, out});
    return absl::OkStatus();
  }

  // Norms and RoPE factors; any float type, kept as float32.
  absl::Status Vector(const std::string& name, int size, const float** out) {
    ASSIGN_OR_RETURN(const GgufTensor* tensor, Expect(name, {size}));
    bytes_ += Arena::Rounded(static_cast<size_t>(size) * sizeof(float));
    vectors_.push_back({tensor, out});
    return absl::OkStatus();
  }

  absl::Status RopeFactors(std::vector<float>* factors) {
    factors->assign(static_cast<size_t>(config_.rope_dim / 2), 1.0f);
    if (file_.FindTensor("rope_freqs.weight") == nullptr) return absl::OkStatus();
    ASSIGN_OR_RETURN(const GgufTensor* tensor, Expect("rope_freqs.weight", {config_.rope_dim / 2}));
    Dequantize(tensor->type, tensor->data.data(), factors->size(), factors->data());
    for (const float f : *factors) {
      if (!(f > 0) || !std::isfinite(f)) {
        return absl::InvalidArgumentError(
            absl::StrCat("tensor rope_freqs.weight: ", f, " is not a positive number"));
      }
    }
    return absl::OkStatus();
  }

  absl::Status RefuseUnknown() const {
    for (const GgufTensor& tensor : file_.tensors()) {
      if (used_.count(tensor.name) == 0) {
        return absl::UnimplementedError(absl::StrCat(
            "tensor ", tensor.name, ": not part of a llama model as this engine runs it"));
      }
    }
    return absl::OkStatus();
  }

  absl::Status Pack(Arena* arena, ThreadPool* pool) {
    RETURN_IF_ERROR(arena->Reserve(bytes_));
    for (Job& job : jobs_) job.matrix->data = arena->Take(job.matrix->Bytes());
    for (const auto& [tensor, out] : vectors_) {
      float* values = reinterpret_cast<float*>(arena->Take(tensor->Elements() * sizeof(float)));
      Dequantize(tensor->type, tensor->data.data(), tensor->Elements(), values);
      *out = values;
    }
    // Matrices in file order, panels claimed one at a time.
    std::sort(jobs_.begin(), jobs_.end(), [](const Job& a, const Job& b) {
      return a.tensor->data.data() < b.tensor->data.data();
    });
    std::vector<std::atomic<int>> next(jobs_.size());
    pool->Run([&](int) {
      for (size_t i = 0; i < jobs_.size(); ++i) {
        const Job& job = jobs_[i];
        for (;;) {
          const int panel = next[i].fetch_add(1, std::memory_order_relaxed);
          if (panel >= job.matrix->Panels()) break;
          PackPanel(job.tensor->type, job.tensor->data.data(), *job.matrix, panel);
        }
      }
    });
    for (const Job& job : jobs_) file_.DropPages(*job.tensor);
    return absl::OkStatus();
  }

 private:
  absl::StatusOr<const GgufTensor*> Expect(const std::string& name, std::vector<int> shape) {
    ASSIGN_OR_RETURN(const GgufTensor* tensor, file_.GetTensor(name));
    // Trailing dimensions of 1 say nothing.
    std::vector<uint64_t> have = tensor->shape;
    while (have.size() > shape.size() && have.back() == 1) have.pop_back();
    const bool same = std::equal(have.begin(), have.end(), shape.begin(), shape.end(),
                                 [](uint64_t a, int b) { return a == static_cast<uint64_t>(b); });
    if (!same) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor ", name, ": shape [", absl::StrJoin(tensor->shape, ", "),
                       "], expected [", absl::StrJoin(shape, ", "), "]"));
    }
    used_.insert(tensor->name);
    return tensor;
  }

  const GgufFile& file_;
  const ModelConfig& config_;
  std::vector<Job> jobs_;
  std::vector<std::pair<const GgufTensor*, const float**>> vectors_;
  std::set<std::string_view> used_;
  size_t bytes_ = 0;
};

}  // namespace

int64_t BytesPerToken(const GgufFile& file) {
  const bool untied = file.FindTensor("output.weight") != nullptr;
  uint64_t bytes = 0;
  for (const GgufTensor& tensor : file.tensors()) {
    const bool one_row = untied && tensor.name == "token_embd.weight";
    bytes += one_row ? tensor.data.size() / tensor.Rows() : tensor.data.size();
  }
  return static_cast<int64_t>(bytes);
}

absl::StatusOr<std::unique_ptr<Weights>> Weights::Load(const GgufFile& file,
                                                       const ModelConfig& config, bool split_head,
                                                       ThreadPool* pool) {
  auto weights = std::make_unique<Weights>();
  Loader loader(file, config);
  const int width = config.embedding_length;
  const int ffn = config.feed_forward_length;
  const int q_rows = config.heads * config.head_dim;
  const int kv_rows = config.kv_heads * config.head_dim;
  const bool tied = file.FindTensor("output.weight") == nullptr;
  RETURN_IF_ERROR(loader.Matrix("token_embd.weight", config.vocabulary_size, width,
                                &weights->embedding, tied && split_head));
  if (!tied) {
    RETURN_IF_ERROR(
        loader.Matrix("output.weight", config.vocabulary_size, width, &weights->head, split_head));
  }
  RETURN_IF_ERROR(loader.Vector("output_norm.weight", width, &weights->output_norm));
  RETURN_IF_ERROR(loader.RopeFactors(&weights->rope_factors));
  weights->layers.resize(static_cast<size_t>(config.layers));
  for (int i = 0; i < config.layers; ++i) {
    LayerWeights& layer = weights->layers[static_cast<size_t>(i)];
    const auto name = [i](const char* part) {
      return absl::StrCat("blk.", i, ".", part, ".weight");
    };
    RETURN_IF_ERROR(loader.Vector(name("attn_norm"), width, &layer.attention_norm));
    RETURN_IF_ERROR(loader.Matrix(name("attn_q"), q_rows, width, &layer.q));
    RETURN_IF_ERROR(loader.Matrix(name("attn_k"), kv_rows, width, &layer.k));
    RETURN_IF_ERROR(loader.Matrix(name("attn_v"), kv_rows, width, &layer.v));
    RETURN_IF_ERROR(loader.Matrix(name("attn_output"), width, q_rows, &layer.o));
    RETURN_IF_ERROR(loader.Vector(name("ffn_norm"), width, &layer.ffn_norm));
    RETURN_IF_ERROR(loader.Matrix(name("ffn_gate"), ffn, width, &layer.gate));
    RETURN_IF_ERROR(loader.Matrix(name("ffn_up"), ffn, width, &layer.up));
    RETURN_IF_ERROR(loader.Matrix(name("ffn_down"), width, ffn, &layer.down));
  }
  RETURN_IF_ERROR(loader.RefuseUnknown());
  PackedMatrix& head = tied ? weights->embedding : weights->head;
  if (head.format.split) {
    weights->heavy =
        HeavyInputs(*file.FindTensor("output_norm.weight"),
                    *file.FindTensor(absl::StrCat("blk.", config.layers - 1, ".ffn_down.weight")));
    head.heavy = weights->heavy.data();
  }
  RETURN_IF_ERROR(loader.Pack(&weights->arena_, pool));
  if (tied) weights->head = weights->embedding;
  return weights;
}

}  // namespace cogumi
