#include "engine/model/adapter.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>

#include "engine/core/half.h"
#include "engine/core/status_macros.h"
#include "engine/io/lora_tensors.h"
#include "engine/io/message.h"
#include "engine/io/peft_config.h"
#include "engine/io/safetensors.h"

namespace cogumi {
namespace {

constexpr char kWeightsFile[] = "adapter_model.safetensors";
static_assert(kMaxRank == kMaxLoraRank);

absl::Status InWeights(const absl::Status& status) {
  return absl::Status(status.code(), Cat(kWeightsFile, ": ", std::string(status.message())));
}

LoraGroup GroupOf(int linear) {
  switch (static_cast<LlamaLinear>(linear)) {
    case LlamaLinear::kQ:
    case LlamaLinear::kK:
    case LlamaLinear::kV:
      return LoraGroup::kQkv;
    case LlamaLinear::kO:
      return LoraGroup::kO;
    case LlamaLinear::kGate:
    case LlamaLinear::kUp:
      return LoraGroup::kGateUp;
    case LlamaLinear::kDown:
      return LoraGroup::kDown;
  }
  return LoraGroup::kDown;
}

int Panels(int32_t outputs) { return (outputs + kPanelRows - 1) / kPanelRows; }

// What the files say before a weight is looked at.
struct Checked {
  PeftConfig config;
  SafetensorsHeader header;
  std::vector<LoraTensors> tensors;  // point into the header
  size_t bytes = 0;
};

size_t BytesOfA(const LoraTensors& t, int rank) {
  return static_cast<size_t>(rank) * static_cast<size_t>(LoraStride(t.inputs)) * 2;
}
size_t BytesOfB(const LoraTensors& t, int rank) {
  return static_cast<size_t>(Panels(t.outputs)) * static_cast<size_t>(rank) * kPanelRows * 2;
}

absl::StatusOr<std::unique_ptr<Checked>> Check(const AdapterFiles& files,
                                               const ModelConfig& config) {
  auto checked = std::make_unique<Checked>();
  ASSIGN_OR_RETURN(checked->config, ParsePeftConfig(files.config));
  if (config.head_dim % 2 != 0) {
    return absl::UnimplementedError(
        Cat("adapters for heads of an odd width: ", config.head_dim));
  }
  const std::string_view weights = files.weights;
  const auto length = SafetensorsHeaderLength(weights.substr(0, 8), weights.size());
  if (!length.ok()) return InWeights(length.status());
  auto header = ParseSafetensorsHeader(weights.substr(8, *length), weights.size());
  if (!header.ok()) return InWeights(header.status());
  checked->header = *std::move(header);
  auto tensors = FindLoraTensors(
      checked->header, checked->config,
      {config.layers, config.embedding_length, config.heads, config.kv_heads, config.head_dim,
       config.feed_forward_length});
  if (!tensors.ok()) return InWeights(tensors.status());
  checked->tensors = *std::move(tensors);
  const int rank = checked->config.rank;
  for (const LoraTensors& t : checked->tensors) {
    // A and scales of a group take less together than alone, because each is rounded up.
    checked->bytes += Arena::Rounded(BytesOfA(t, rank)) + Arena::Rounded(BytesOfB(t, rank)) +
                      Arena::Rounded(static_cast<size_t>(rank) * sizeof(float));
  }
  return checked;
}

// Values of a tensor times the power of two that brings the largest into binary16's upper range.
class Values {
 public:
  static absl::StatusOr<Values> Read(const TensorEntry& tensor, const std::string& file) {
    Values v;
    v.values_.resize(static_cast<size_t>(tensor.end - tensor.begin) /
                     static_cast<size_t>(BytesOf(tensor.type)));
    const char* data = file.data() + tensor.begin;
    float largest = 0;
    bool finite = true;
    for (size_t i = 0; i < v.values_.size(); ++i) {
      float& value = v.values_[i];
      if (tensor.type == TensorType::kF32) {
        std::memcpy(&value, data + 4 * i, 4);
      } else {
        uint16_t bits;
        std::memcpy(&bits, data + 2 * i, 2);
        value = tensor.type == TensorType::kF16 ? HalfToFloat(bits) : Bf16ToFloat(bits);
      }
      finite = finite && std::isfinite(value);
      largest = std::max(largest, std::fabs(value));
    }
    if (!finite) {
      return absl::InvalidArgumentError(Cat(kWeightsFile, ": tensor ", tensor.name,
                                            " holds a value that is not finite"));
    }
    if (largest > 0) v.exponent_ = 14 - std::ilogb(largest);
    const double factor = std::ldexp(1.0, v.exponent_);
    for (float& value : v.values_) {
      value = static_cast<float>(static_cast<double>(value) * factor);
    }
    return v;
  }

  uint16_t Half(size_t i) const { return FloatToHalf(values_[i]); }
  // Multiplied by it.
  int exponent() const { return exponent_; }

 private:
  std::vector<float> values_;
  int exponent_ = 0;
};

// The row of the file that holds output `row` of a linear as the engine has it: GGUF stores the
// rows of q and k so that RoPE turns neighbours, PEFT so that it turns the two halves of a head.
size_t FileRow(int linear, int head_dim, int row) {
  const auto which = static_cast<LlamaLinear>(linear);
  if (which != LlamaLinear::kQ && which != LlamaLinear::kK) return static_cast<size_t>(row);
  const int within = row % head_dim;
  return static_cast<size_t>(row - within + within % 2 * (head_dim / 2) + within / 2);
}

// Writes the A of a linear behind those of its group before it, and its B.
absl::Status Pack(const LoraTensors& t, const PeftConfig& config, int head_dim,
                  const std::string& file, uint16_t* a, float* scale, uint16_t* b) {
  const size_t rank = static_cast<size_t>(config.rank);
  const size_t inputs = static_cast<size_t>(t.inputs);
  const size_t stride = static_cast<size_t>(LoraStride(t.inputs));
  ASSIGN_OR_RETURN(const Values from_a, Values::Read(*t.a, file));
  for (size_t k = 0; k < rank; ++k) {
    for (size_t i = 0; i < inputs; ++i) a[k * stride + i] = from_a.Half(k * inputs + i);
  }
  ASSIGN_OR_RETURN(const Values from_b, Values::Read(*t.b, file));
  for (int row = 0; row < t.outputs; ++row) {
    const size_t from = FileRow(t.linear, head_dim, row) * rank;
    uint16_t* panel = b + static_cast<size_t>(row / kPanelRows) * rank * kPanelRows;
    for (size_t k = 0; k < rank; ++k) {
      panel[k * kPanelRows + static_cast<size_t>(row % kPanelRows)] = from_b.Half(from + k);
    }
  }
  const double factor = std::ldexp(static_cast<double>(config.Scale()),
                                   -from_a.exponent() - from_b.exponent());
  const float narrow = static_cast<float>(factor);
  if (!std::isfinite(narrow)) {
    return absl::InvalidArgumentError(
        Cat(kWeightsFile, ": tensors ", t.a->name, " and B hold values too large to multiply"));
  }
  std::fill_n(scale, rank, narrow);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<int64_t> Adapter::PackedBytes(const AdapterFiles& files,
                                             const ModelConfig& config) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Checked> checked, Check(files, config));
  return static_cast<int64_t>(Arena::Reserved(checked->bytes));
}

absl::StatusOr<std::unique_ptr<Adapter>> Adapter::Create(const AdapterFiles& files,
                                                         const ModelConfig& config) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Checked> checked, Check(files, config));
  std::unique_ptr<Adapter> adapter(new Adapter);
  const int rank = checked->config.rank;
  adapter->rank_ = rank;
  adapter->layers_.resize(static_cast<size_t>(config.layers));
  RETURN_IF_ERROR(adapter->arena_.Reserve(checked->bytes));
  // In the order in which a step reads: per layer and group the A of all its linears, then each B.
  const std::vector<LoraTensors>& tensors = checked->tensors;
  for (size_t begin = 0; begin < tensors.size();) {
    const LoraGroup group = GroupOf(tensors[begin].linear);
    size_t end = begin;
    size_t a_bytes = 0;
    while (end < tensors.size() && tensors[end].layer == tensors[begin].layer &&
           GroupOf(tensors[end].linear) == group) {
      a_bytes += BytesOfA(tensors[end++], rank);
    }
    LoraLayer& layer = adapter->layers_[static_cast<size_t>(tensors[begin].layer)];
    LoraLayer::Shrink& shrink = layer.shrink[static_cast<int>(group)];
    shrink.ranks = static_cast<int>(end - begin) * rank;
    auto* a = reinterpret_cast<uint16_t*>(adapter->arena_.Take(a_bytes));
    auto* scale = reinterpret_cast<float*>(
        adapter->arena_.Take(static_cast<size_t>(shrink.ranks) * sizeof(float)));
    shrink.a = a;
    shrink.scale = scale;
    for (size_t i = begin; i < end; ++i) {
      const LoraTensors& t = tensors[i];
      LoraLayer::Expand& expand = layer.expand[t.linear];
      auto* b = reinterpret_cast<uint16_t*>(adapter->arena_.Take(BytesOfB(t, rank)));
      expand.b = b;
      expand.rank = rank;
      expand.first = static_cast<int>(i - begin) * rank;
      RETURN_IF_ERROR(Pack(t, checked->config, config.head_dim, files.weights, a, scale, b));
      a += BytesOfA(t, rank) / 2;
      scale += rank;
    }
    begin = end;
  }
  return adapter;
}

}  // namespace cogumi
