#include "tests/support/gguf_writer.h"

#include <cstring>

namespace cogumi::testing {
namespace {

using Kind = GgufField::Kind;

// Numbers of GGUF value types.
constexpr uint32_t kUint32 = 4;
constexpr uint32_t kInt32 = 5;
constexpr uint32_t kFloat32 = 6;
constexpr uint32_t kBool = 7;
constexpr uint32_t kString = 8;
constexpr uint32_t kArray = 9;
constexpr uint32_t kUint64 = 10;
constexpr uint32_t kFloat64 = 12;

template <typename T>
void Append(T value, std::string* out) {
  char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  out->append(bytes, sizeof(T));
}

template <typename T>
std::string Scalar(T value) {
  std::string bytes;
  Append(value, &bytes);
  return bytes;
}

// Appends a number and notes where it is.
template <typename T>
void Put(Kind kind, T value, std::string* out, std::vector<GgufField>* fields) {
  fields->push_back({kind, out->size(), sizeof(T)});
  Append(value, out);
}

void PutString(Kind kind, std::string_view text, std::string* out, std::vector<GgufField>* fields) {
  Put(kind, static_cast<uint64_t>(text.size()), out, fields);
  out->append(text);
}

template <typename T>
std::string ArrayBytes(uint32_t type, const std::vector<T>& values,
                       std::vector<GgufField>* fields) {
  std::string bytes;
  Put(Kind::kElementType, type, &bytes, fields);
  Put(Kind::kArrayLength, static_cast<uint64_t>(values.size()), &bytes, fields);
  for (const T& value : values) Append(value, &bytes);
  return bytes;
}

void Pad(size_t alignment, std::string* out) {
  while (out->size() % alignment != 0) out->push_back('\0');
}

}  // namespace

GgufBuilder& GgufBuilder::Raw(std::string_view key, uint32_t type, std::string_view bytes) {
  pairs_.push_back({std::string(key), type, std::string(bytes), {}});
  return *this;
}

GgufBuilder& GgufBuilder::Uint(std::string_view key, uint32_t value) {
  return Raw(key, kUint32, Scalar(value));
}
GgufBuilder& GgufBuilder::Uint64(std::string_view key, uint64_t value) {
  return Raw(key, kUint64, Scalar(value));
}
GgufBuilder& GgufBuilder::Int(std::string_view key, int32_t value) {
  return Raw(key, kInt32, Scalar(value));
}
GgufBuilder& GgufBuilder::Float(std::string_view key, float value) {
  return Raw(key, kFloat32, Scalar(value));
}
GgufBuilder& GgufBuilder::Double(std::string_view key, double value) {
  return Raw(key, kFloat64, Scalar(value));
}

GgufBuilder& GgufBuilder::Bool(std::string_view key, bool value) {
  Raw(key, kBool, std::string(1, value ? '\1' : '\0'));
  pairs_.back().fields.push_back({Kind::kBool, 0, 1});
  return *this;
}

GgufBuilder& GgufBuilder::String(std::string_view key, std::string_view value) {
  Pair pair{std::string(key), kString, {}, {}};
  PutString(Kind::kStringLength, value, &pair.bytes, &pair.fields);
  pairs_.push_back(std::move(pair));
  return *this;
}

GgufBuilder& GgufBuilder::Strings(std::string_view key, const std::vector<std::string>& values) {
  Pair pair{std::string(key), kArray, {}, {}};
  Put(Kind::kElementType, kString, &pair.bytes, &pair.fields);
  Put(Kind::kArrayLength, static_cast<uint64_t>(values.size()), &pair.bytes, &pair.fields);
  for (const std::string& value : values) {
    PutString(Kind::kStringLength, value, &pair.bytes, &pair.fields);
  }
  pairs_.push_back(std::move(pair));
  return *this;
}

GgufBuilder& GgufBuilder::Ints(std::string_view key, const std::vector<int32_t>& values) {
  Pair pair{std::string(key), kArray, {}, {}};
  pair.bytes = ArrayBytes(kInt32, values, &pair.fields);
  pairs_.push_back(std::move(pair));
  return *this;
}

GgufBuilder& GgufBuilder::Floats(std::string_view key, const std::vector<float>& values) {
  Pair pair{std::string(key), kArray, {}, {}};
  pair.bytes = ArrayBytes(kFloat32, values, &pair.fields);
  pairs_.push_back(std::move(pair));
  return *this;
}

GgufBuilder& GgufBuilder::Tensor(std::string_view name, GgmlType type, std::vector<uint64_t> shape,
                                 std::string data) {
  tensors_.push_back({std::string(name), type, std::move(shape), std::move(data)});
  return *this;
}

GgufBuilder& GgufBuilder::Floats32(std::string_view name, std::vector<uint64_t> shape,
                                   const std::vector<float>& values) {
  std::string data;
  for (const float value : values) Append(value, &data);
  return Tensor(name, GgmlType::kF32, std::move(shape), std::move(data));
}

GgufBuilder& GgufBuilder::Alignment(uint32_t alignment) {
  alignment_ = alignment;
  return *this;
}

GgufBuilder& GgufBuilder::Version(uint32_t version) {
  version_ = version;
  return *this;
}

std::string GgufBuilder::Bytes(std::vector<GgufField>* fields) const {
  std::vector<GgufField> ignored;
  if (fields == nullptr) fields = &ignored;
  std::vector<Pair> pairs = pairs_;
  if (alignment_ != 32) {
    pairs.push_back({"general.alignment", kUint32, Scalar(alignment_), {}});
    pairs.back().fields.push_back({Kind::kAlignment, 0, sizeof(uint32_t)});
  }

  std::string out;
  fields->push_back({Kind::kMagic, 0, 4});
  out.append("GGUF");
  Put(Kind::kVersion, version_, &out, fields);
  Put(Kind::kTensorCount, static_cast<uint64_t>(tensors_.size()), &out, fields);
  Put(Kind::kPairCount, static_cast<uint64_t>(pairs.size()), &out, fields);
  for (const Pair& pair : pairs) {
    PutString(Kind::kKeyLength, pair.key, &out, fields);
    Put(Kind::kValueType, pair.type, &out, fields);
    for (const GgufField& field : pair.fields) {
      fields->push_back({field.kind, out.size() + field.offset, field.size});
    }
    out.append(pair.bytes);
  }

  std::string data;
  for (const TensorEntry& tensor : tensors_) {
    Pad(alignment_, &data);
    PutString(Kind::kTensorNameLength, tensor.name, &out, fields);
    Put(Kind::kDimensionCount, static_cast<uint32_t>(tensor.shape.size()), &out, fields);
    for (const uint64_t extent : tensor.shape) Put(Kind::kDimension, extent, &out, fields);
    Put(Kind::kTensorType, static_cast<uint32_t>(tensor.type), &out, fields);
    Put(Kind::kTensorOffset, static_cast<uint64_t>(data.size()), &out, fields);
    data.append(tensor.data);
  }
  if (!tensors_.empty()) Pad(alignment_, &out);
  return out + data;
}

std::string SpellByteLevel(std::string_view bytes) {
  const auto printable = [](int byte) {
    return (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xff && byte != 0xad);
  };
  std::string out;
  for (const char c : bytes) {
    const int byte = static_cast<uint8_t>(c);
    int code_point = byte;
    if (!printable(byte)) {
      code_point = 0x100;
      for (int other = 0; other < byte; ++other) code_point += printable(other) ? 0 : 1;
    }
    if (code_point < 0x80) {
      out.push_back(static_cast<char>(code_point));
    } else {
      out.push_back(static_cast<char>(0xc0 | (code_point >> 6)));
      out.push_back(static_cast<char>(0x80 | (code_point & 0x3f)));
    }
  }
  return out;
}

}  // namespace cogumi::testing
