#include "engine/io/gguf_parser.h"

#include <algorithm>
#include <numeric>
#include <optional>

#include "absl/strings/escaping.h"
#include "engine/core/status_macros.h"
#include "engine/io/message.h"

namespace cogumi::gguf {
namespace {

constexpr uint32_t kMagic = 0x46554747;  // "GGUF"
constexpr uint64_t kMaxKeyBytes = 65535;
constexpr uint64_t kMaxTensorNameBytes = 64;
constexpr uint32_t kMaxDimensions = 4;
constexpr uint64_t kDefaultAlignment = 32;
constexpr uint64_t kMinAlignment = 8;
constexpr uint64_t kMaxAlignment = 65536;
// Smallest possible entries: a count that needs more bytes than are left is refused at once.
constexpr uint64_t kMinPairBytes = 8 + 1 + 4 + 1;            // key length, key, type, value
constexpr uint64_t kMinTensorBytes = 8 + 1 + 4 + 8 + 4 + 8;  // name, dimensions, type, offset
constexpr size_t kPrintableBytes = 64;

class Parser {
 public:
  Parser(std::span<const std::byte> bytes, std::string_view name, Contents* contents)
      : bytes_(bytes), name_(name), contents_(contents) {}

  absl::Status Run() {
    RETURN_IF_ERROR(ParseHeader());
    stage_ = "metadata";
    for (uint64_t i = 0; i < pair_count_; ++i) RETURN_IF_ERROR(ParsePair(i));
    RETURN_IF_ERROR(ReadAlignment());
    stage_ = "tensor table";
    contents_->tensors.reserve(static_cast<size_t>(tensor_count_));
    offsets_.reserve(static_cast<size_t>(tensor_count_));
    for (uint64_t i = 0; i < tensor_count_; ++i) RETURN_IF_ERROR(ParseTensor(i));
    stage_ = "tensor data";
    return PlaceTensors();
  }

 private:
  template <typename... Parts>
  absl::Status Bad(const Parts&... parts) const {
    return absl::InvalidArgumentError(Cat(name_, ": ", stage_, ": ", parts...));
  }

  size_t Left() const { return bytes_.size() - position_; }

  template <typename T>
  absl::Status Read(std::string_view what, T* value) {
    if (Left() < sizeof(T)) {
      return Bad(what, " needs ", sizeof(T), " bytes at offset ", position_, ", the file ends at ",
                 bytes_.size());
    }
    *value = Load<T>(bytes_.data() + position_);
    position_ += sizeof(T);
    return absl::OkStatus();
  }

  absl::Status ReadString(std::string_view what, std::span<const std::byte>* text) {
    uint64_t length = 0;
    RETURN_IF_ERROR(Read(what, &length));
    if (length > Left()) {
      return Bad(what, " has a length of ", length, " bytes at offset ", position_ - 8, ", ",
                 Left(), " are left");
    }
    *text = bytes_.subspan(position_, static_cast<size_t>(length));
    position_ += static_cast<size_t>(length);
    return absl::OkStatus();
  }

  absl::Status ParseHeader() {
    uint32_t magic = 0;
    RETURN_IF_ERROR(Read("the magic number", &magic));
    if (magic != kMagic) return Bad("not a GGUF file: it does not start with \"GGUF\"");
    uint32_t version = 0;
    RETURN_IF_ERROR(Read("the version", &version));
    if (version == 0x02000000u || version == 0x03000000u) {
      return absl::UnimplementedError(
          Cat(name_, ": ", stage_, ": big-endian GGUF files are not supported"));
    }
    if (version != 2 && version != 3) {
      return absl::UnimplementedError(
          Cat(name_, ": ", stage_, ": GGUF version ", version, " (2 and 3 are supported)"));
    }
    RETURN_IF_ERROR(Read("the tensor count", &tensor_count_));
    RETURN_IF_ERROR(Read("the metadata count", &pair_count_));
    if (pair_count_ > Left() / kMinPairBytes) {
      return Bad(pair_count_, " metadata pairs do not fit into the ", Left(), " bytes left");
    }
    if (tensor_count_ > (Left() - pair_count_ * kMinPairBytes) / kMinTensorBytes) {
      return Bad(tensor_count_, " tensors do not fit into the ", Left(), " bytes left");
    }
    return absl::OkStatus();
  }

  absl::Status ParsePair(uint64_t index) {
    std::span<const std::byte> key_bytes;
    RETURN_IF_ERROR(ReadString("a key", &key_bytes));
    if (key_bytes.empty() || key_bytes.size() > kMaxKeyBytes) {
      return Bad("key ", index, " has ", key_bytes.size(), " bytes (1 to ", kMaxKeyBytes, ")");
    }
    const std::string_view key = AsText(key_bytes);
    uint32_t type = 0;
    RETURN_IF_ERROR(Read("a value type", &type));
    Value value;
    value.type = static_cast<ValueType>(type);
    if (value.type == ValueType::kArray) {
      RETURN_IF_ERROR(ParseArray(key, &value));
    } else {
      RETURN_IF_ERROR(ParseElements(key, 1, &value));
    }
    if (!contents_->metadata.emplace(key, value).second) {
      return Bad("key \"", Printable(key), "\" appears twice");
    }
    return absl::OkStatus();
  }

  absl::Status ParseArray(std::string_view key, Value* value) {
    uint32_t type = 0;
    RETURN_IF_ERROR(Read("an array's element type", &type));
    value->type = static_cast<ValueType>(type);
    value->is_array = true;
    if (value->type == ValueType::kArray) {
      return Bad("key \"", Printable(key), "\" is an array of arrays, which is not supported");
    }
    uint64_t count = 0;
    RETURN_IF_ERROR(Read("an array's length", &count));
    return ParseElements(key, count, value);
  }

  // Steps over `count` values of value->type and notes where they are. A single string's bytes
  // come without its length.
  absl::Status ParseElements(std::string_view key, uint64_t count, Value* value) {
    value->count = count;
    const size_t start = position_;
    if (value->type == ValueType::kString) {
      if (count > Left() / sizeof(uint64_t)) {
        return Bad("key \"", Printable(key), "\": ", count, " strings do not fit into the ", Left(),
                   " bytes left");
      }
      std::span<const std::byte> text;
      for (uint64_t i = 0; i < count; ++i) RETURN_IF_ERROR(ReadString("a string value", &text));
      value->bytes = value->is_array ? bytes_.subspan(start, position_ - start) : text;
      return absl::OkStatus();
    }
    const size_t width = ScalarBytes(value->type);
    if (width == 0) {
      return Bad("key \"", Printable(key), "\" has the unknown value type ",
                 static_cast<uint32_t>(value->type));
    }
    if (count > Left() / width) {
      return Bad("key \"", Printable(key), "\": ", count, " values of ", width,
                 " bytes do not fit into the ", Left(), " bytes left");
    }
    position_ += static_cast<size_t>(count) * width;
    value->bytes = bytes_.subspan(start, position_ - start);
    if (value->type == ValueType::kBool) {
      for (const std::byte byte : value->bytes) {
        if (static_cast<uint8_t>(byte) > 1) {
          return Bad("key \"", Printable(key), "\": a boolean is ", static_cast<uint32_t>(byte),
                     " (0 or 1)");
        }
      }
    }
    return absl::OkStatus();
  }

  absl::Status ReadAlignment() {
    const auto it = contents_->metadata.find("general.alignment");
    if (it == contents_->metadata.end()) return absl::OkStatus();
    const Value& value = it->second;
    if (value.is_array || value.type != ValueType::kUint32) {
      return Bad("general.alignment must be a uint32");
    }
    alignment_ = Load<uint32_t>(value.bytes.data());
    if (!std::has_single_bit(alignment_) || alignment_ < kMinAlignment ||
        alignment_ > kMaxAlignment) {
      return Bad("general.alignment is ", alignment_, " (a power of two from ", kMinAlignment,
                 " to ", kMaxAlignment, ")");
    }
    return absl::OkStatus();
  }

  absl::Status ParseTensor(uint64_t index) {
    std::span<const std::byte> name_bytes;
    RETURN_IF_ERROR(ReadString("a tensor name", &name_bytes));
    if (name_bytes.empty() || name_bytes.size() > kMaxTensorNameBytes) {
      return Bad("the name of tensor ", index, " has ", name_bytes.size(), " bytes (1 to ",
                 kMaxTensorNameBytes, ")");
    }
    const std::string_view tensor_name = AsText(name_bytes);
    const std::string label = Cat("tensor \"", Printable(tensor_name), "\"");
    uint32_t dimensions = 0;
    RETURN_IF_ERROR(Read("a tensor's dimension count", &dimensions));
    if (dimensions < 1 || dimensions > kMaxDimensions) {
      return Bad(label, " has ", dimensions, " dimensions (1 to ", kMaxDimensions, ")");
    }
    GgufTensor tensor;
    tensor.name = std::string(tensor_name);
    uint64_t elements = 1;
    for (uint32_t d = 0; d < dimensions; ++d) {
      uint64_t extent = 0;
      RETURN_IF_ERROR(Read("a tensor's dimension", &extent));
      if (extent == 0) return Bad(label, ": dimension ", d, " is 0");
      if (__builtin_mul_overflow(elements, extent, &elements)) {
        return Bad(label, ": the product of its dimensions does not fit into 64 bits");
      }
      tensor.shape.push_back(extent);
    }
    uint32_t type = 0;
    RETURN_IF_ERROR(Read("a tensor's type", &type));
    tensor.type = static_cast<GgmlType>(type);
    const std::optional<GgmlTypeTraits> traits = TraitsOf(tensor.type);
    if (!traits.has_value()) {
      return Bad(label, " has the unsupported ", GgmlTypeName(tensor.type));
    }
    if (tensor.shape[0] % traits->block_elements != 0) {
      return Bad(label, ": its first dimension ", tensor.shape[0], " is no multiple of the ",
                 traits->block_elements, " elements of a ", GgmlTypeName(tensor.type), " block");
    }
    uint64_t size = 0;
    if (__builtin_mul_overflow(elements / traits->block_elements,
                               static_cast<uint64_t>(traits->block_bytes), &size)) {
      return Bad(label, ": its size does not fit into 64 bits");
    }
    uint64_t offset = 0;
    RETURN_IF_ERROR(Read("a tensor's offset", &offset));
    if (offset % alignment_ != 0) {
      return Bad(label, ": offset ", offset, " is no multiple of the alignment ", alignment_);
    }
    if (!contents_->tensor_index.emplace(tensor_name, contents_->tensors.size()).second) {
      return Bad(label, " appears twice");
    }
    offsets_.push_back({offset, size});
    contents_->tensors.push_back(std::move(tensor));
    return absl::OkStatus();
  }

  absl::Status PlaceTensors() {
    if (contents_->tensors.empty()) return absl::OkStatus();
    const size_t data_start = position_ + (alignment_ - position_ % alignment_) % alignment_;
    if (data_start > bytes_.size()) {
      return Bad("the data starts at ", data_start, ", the file ends at ", bytes_.size());
    }
    const std::span<const std::byte> data = bytes_.subspan(data_start);
    for (size_t i = 0; i < offsets_.size(); ++i) {
      const auto [offset, size] = offsets_[i];
      GgufTensor& tensor = contents_->tensors[i];
      if (offset > data.size() || size > data.size() - offset) {
        return Bad("tensor \"", Printable(tensor.name), "\" needs ", size, " bytes at ", offset,
                   " of the data, which has ", data.size());
      }
      tensor.data = data.subspan(static_cast<size_t>(offset), static_cast<size_t>(size));
    }
    return RefuseOverlap();
  }

  // Tensors that share bytes would cost a loader the same memory many times over.
  absl::Status RefuseOverlap() const {
    std::vector<size_t> order(offsets_.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::sort(order.begin(), order.end(),
              [this](size_t a, size_t b) { return offsets_[a].offset < offsets_[b].offset; });
    for (size_t i = 1; i < order.size(); ++i) {
      const Extent& before = offsets_[order[i - 1]];
      const Extent& next = offsets_[order[i]];
      if (next.offset - before.offset >= before.size) continue;
      return Bad("tensor \"", Printable(contents_->tensors[order[i]].name), "\" at ", next.offset,
                 " overlaps tensor \"", Printable(contents_->tensors[order[i - 1]].name),
                 "\", which takes ", before.size, " bytes from ", before.offset);
    }
    return absl::OkStatus();
  }

  static std::string_view AsText(std::span<const std::byte> bytes) {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

  struct Extent {
    uint64_t offset;
    uint64_t size;
  };

  std::span<const std::byte> bytes_;
  std::string_view name_;
  Contents* contents_;
  size_t position_ = 0;
  std::string_view stage_ = "header";
  uint64_t tensor_count_ = 0;
  uint64_t pair_count_ = 0;
  uint64_t alignment_ = kDefaultAlignment;
  std::vector<Extent> offsets_;
};

}  // namespace

std::string_view ValueTypeName(ValueType type) {
  static constexpr std::string_view kNames[] = {"uint8",  "int8",    "uint16", "int16",  "uint32",
                                                "int32",  "float32", "bool",   "string", "array",
                                                "uint64", "int64",   "float64"};
  const auto index = static_cast<size_t>(type);
  return index < std::size(kNames) ? kNames[index] : "unknown";
}

size_t ScalarBytes(ValueType type) {
  switch (type) {
    case ValueType::kUint8:
    case ValueType::kInt8:
    case ValueType::kBool:
      return 1;
    case ValueType::kUint16:
    case ValueType::kInt16:
      return 2;
    case ValueType::kUint32:
    case ValueType::kInt32:
    case ValueType::kFloat32:
      return 4;
    case ValueType::kUint64:
    case ValueType::kInt64:
    case ValueType::kFloat64:
      return 8;
    case ValueType::kString:
    case ValueType::kArray:
      break;
  }
  return 0;
}

absl::Status ParseContents(std::span<const std::byte> bytes, std::string_view name,
                           Contents* contents) {
  return Parser(bytes, name, contents).Run();
}

std::string Printable(std::string_view text) {
  std::string escaped = absl::CHexEscape(CatPart(text.substr(0, kPrintableBytes)));
  if (text.size() > kPrintableBytes) escaped += "...";
  return escaped;
}

}  // namespace cogumi::gguf
