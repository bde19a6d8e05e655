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

size_t BytesOfA(const LoraTensors& t, int rank, LoraFormat format) {
  return static_cast<size_t>(rank) * static_cast<size_t>(LoraStride(t.inputs)) *
         LoraValueBytes(format);
}
size_t BytesOfB(const LoraTensors& t, int rank, LoraFormat format) {
  return static_cast<size_t>(Panels(t.outputs)) * static_cast<size_t>(rank) * kPanelRows *
         LoraValueBytes(format);
}

absl::StatusOr<std::unique_ptr<Checked>> Check(const AdapterFiles& files, const ModelConfig& config,
                                               LoraFormat format) {
  auto checked = std::make_unique<Checked>();
  ASSIGN_OR_RETURN(checked->config, ParsePeftConfig(files.config));
  if (config.head_dim % 2 != 0) {
    return absl::UnimplementedError(Cat("adapters for heads of an odd width: ", config.head_dim));
  }
  const std::string_view weights = files.weights;
  const auto length = SafetensorsHeaderLength(weights.substr(0, 8), weights.size());
  if (!length.ok()) return InWeights(length.status());
  auto header = ParseSafetensorsHeader(weights.substr(8, *length), weights.size());
  if (!header.ok()) return InWeights(header.status());
  checked->header = *std::move(header);
  auto tensors = FindLoraTensors(checked->header, checked->config,
                                 {config.layers, config.embedding_length, config.heads,
                                  config.kv_heads, config.head_dim, config.feed_forward_length});
  if (!tensors.ok()) return InWeights(tensors.status());
  checked->tensors = *std::move(tensors);
  const int rank = checked->config.rank;
  for (const LoraTensors& t : checked->tensors) {
    // A and scales of a group take less together than alone, because each is rounded up.
    checked->bytes += Arena::Rounded(BytesOfA(t, rank, format)) +
                      Arena::Rounded(BytesOfB(t, rank, format)) +
                      Arena::Rounded(static_cast<size_t>(rank) * sizeof(float));
  }
  return checked;
}

absl::StatusOr<std::vector<float>> ReadValues(const TensorEntry& tensor, const std::string& file) {
  std::vector<float> values(static_cast<size_t>(tensor.end - tensor.begin) /
                            static_cast<size_t>(BytesOf(tensor.type)));
  const char* data = file.data() + tensor.begin;
  bool finite = true;
  for (size_t i = 0; i < values.size(); ++i) {
    if (tensor.type == TensorType::kF32) {
      std::memcpy(&values[i], data + 4 * i, 4);
    } else {
      uint16_t bits;
      std::memcpy(&bits, data + 2 * i, 2);
      values[i] = tensor.type == TensorType::kF16 ? HalfToFloat(bits) : Bf16ToFloat(bits);
    }
    finite = finite && std::isfinite(values[i]);
  }
  if (!finite) {
    return absl::InvalidArgumentError(
        Cat(kWeightsFile, ": tensor ", tensor.name, " holds a value that is not finite"));
  }
  return values;
}

// By what values with this largest magnitude fill the range of Value: binary16 or int8.
template <class Value>
double FillFactor(float largest) {
  if (largest == 0) return 1;
  if (sizeof(Value) == 1) return 127.0 / static_cast<double>(largest);
  return std::ldexp(1.0, 14 - std::ilogb(largest));
}

void Store(float value, uint16_t* to) { *to = FloatToHalf(value); }
void Store(float value, int8_t* to) { *to = static_cast<int8_t>(std::lrint(value)); }

// The row of the file that holds output `row` of a linear as the engine has it: GGUF stores the
// rows of q and k so that RoPE turns neighbours, PEFT so that it turns the two halves of a head.
size_t FileRow(int linear, int head_dim, int row) {
  const auto which = static_cast<LlamaLinear>(linear);
  if (which != LlamaLinear::kQ && which != LlamaLinear::kK) return static_cast<size_t>(row);
  const int within = row % head_dim;
  return static_cast<size_t>(row - within + within % 2 * (head_dim / 2) + within / 2);
}

// Writes the A of a linear behind those of its group before it, and its B.
template <class Value>
absl::Status Pack(const LoraTensors& t, const PeftConfig& config, int head_dim,
                  const std::string& file, Value* a, float* scale, Value* b) {
  const size_t rank = static_cast<size_t>(config.rank);
  const size_t inputs = static_cast<size_t>(t.inputs);
  const size_t stride = static_cast<size_t>(LoraStride(t.inputs));
  ASSIGN_OR_RETURN(const std::vector<float> from_a, ReadValues(*t.a, file));
  ASSIGN_OR_RETURN(const std::vector<float> from_b, ReadValues(*t.b, file));
  std::vector<float> largest(rank);
  for (size_t i = 0; i < from_b.size(); i += rank) {
    for (size_t k = 0; k < rank; ++k) largest[k] = std::max(largest[k], std::fabs(from_b[i + k]));
  }
  std::vector<double> b_factor(rank);
  for (size_t k = 0; k < rank; ++k) {
    const float* row = from_a.data() + k * inputs;
    float largest_a = 0;
    for (size_t i = 0; i < inputs; ++i) largest_a = std::max(largest_a, std::fabs(row[i]));
    const double a_factor = FillFactor<Value>(largest_a);
    b_factor[k] = FillFactor<Value>(largest[k]);
    for (size_t i = 0; i < inputs; ++i) {
      Store(static_cast<float>(static_cast<double>(row[i]) * a_factor), a + k * stride + i);
    }
    scale[k] = static_cast<float>(static_cast<double>(config.Scale()) / a_factor / b_factor[k]);
    if (!std::isfinite(scale[k])) {
      return absl::InvalidArgumentError(
          Cat(kWeightsFile, ": tensors ", t.a->name, " and B hold values too large to multiply"));
    }
  }
  for (int row = 0; row < t.outputs; ++row) {
    const float* from = from_b.data() + FileRow(t.linear, head_dim, row) * rank;
    Value* panel = b + static_cast<size_t>(row / kPanelRows) * rank * kPanelRows;
    for (size_t k = 0; k < rank; ++k) {
      Store(static_cast<float>(static_cast<double>(from[k]) * b_factor[k]),
            panel + k * kPanelRows + static_cast<size_t>(row % kPanelRows));
    }
  }
  return absl::OkStatus();
}

absl::Status Pack(const LoraTensors& t, const PeftConfig& config, int head_dim, LoraFormat format,
                  const std::string& file, uint8_t* a, float* scale, uint8_t* b) {
  if (format == LoraFormat::kInt8) {
    return Pack(t, config, head_dim, file, reinterpret_cast<int8_t*>(a), scale,
                reinterpret_cast<int8_t*>(b));
  }
  return Pack(t, config, head_dim, file, reinterpret_cast<uint16_t*>(a), scale,
              reinterpret_cast<uint16_t*>(b));
}

}  // namespace

absl::StatusOr<int64_t> Adapter::PackedBytes(const AdapterFiles& files, const ModelConfig& config,
                                             LoraFormat format) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Checked> checked, Check(files, config, format));
  return static_cast<int64_t>(Arena::Reserved(checked->bytes));
}

absl::StatusOr<std::unique_ptr<Adapter>> Adapter::Create(const AdapterFiles& files,
                                                         const ModelConfig& config,
                                                         LoraFormat format) {
  ASSIGN_OR_RETURN(const std::unique_ptr<Checked> checked, Check(files, config, format));
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
      a_bytes += BytesOfA(tensors[end++], rank, format);
    }
    LoraLayer& layer = adapter->layers_[static_cast<size_t>(tensors[begin].layer)];
    LoraLayer::Shrink& shrink = layer.shrink[static_cast<int>(group)];
    shrink.ranks = static_cast<int>(end - begin) * rank;
    uint8_t* a = adapter->arena_.Take(a_bytes);
    auto* scale = reinterpret_cast<float*>(
        adapter->arena_.Take(static_cast<size_t>(shrink.ranks) * sizeof(float)));
    shrink.a = a;
    shrink.scale = scale;
    for (size_t i = begin; i < end; ++i) {
      const LoraTensors& t = tensors[i];
      LoraLayer::Expand& expand = layer.expand[t.linear];
      uint8_t* b = adapter->arena_.Take(BytesOfB(t, rank, format));
      expand.b = b;
      expand.rank = rank;
      expand.first = static_cast<int>(i - begin) * rank;
      RETURN_IF_ERROR(
          Pack(t, checked->config, config.head_dim, format, files.weights, a, scale, b));
      a += BytesOfA(t, rank, format);
      scale += rank;
    }
    begin = end;
  }
  return adapter;
}

}  // namespace cogumi
