#include "engine/io/gguf.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <limits>
#include <type_traits>
#include <utility>

#include "absl/status/status.h"
#include "engine/core/sha256.h"
#include "engine/core/status_macros.h"
#include "engine/io/gguf_parser.h"
#include "engine/io/message.h"

namespace cogumi {
namespace {

using gguf::Load;
using gguf::Value;
using gguf::ValueType;

constexpr size_t kDigestChunk = size_t{1} << 20;

// An integer of any width: its value, or its distance below zero.
struct Integer {
  bool negative = false;
  uint64_t magnitude = 0;
};

template <typename T>
Integer ToInteger(T value) {
  if constexpr (std::is_signed_v<T>) {
    if (value < 0) return {true, uint64_t{0} - static_cast<uint64_t>(value)};
  }
  return {false, static_cast<uint64_t>(value)};
}

std::optional<Integer> LoadInteger(ValueType type, const std::byte* data) {
  switch (type) {
    case ValueType::kUint8:
      return ToInteger(Load<uint8_t>(data));
    case ValueType::kInt8:
      return ToInteger(Load<int8_t>(data));
    case ValueType::kUint16:
      return ToInteger(Load<uint16_t>(data));
    case ValueType::kInt16:
      return ToInteger(Load<int16_t>(data));
    case ValueType::kUint32:
      return ToInteger(Load<uint32_t>(data));
    case ValueType::kInt32:
      return ToInteger(Load<int32_t>(data));
    case ValueType::kUint64:
      return ToInteger(Load<uint64_t>(data));
    case ValueType::kInt64:
      return ToInteger(Load<int64_t>(data));
    default:
      return std::nullopt;
  }
}

std::optional<int64_t> ToInt64(Integer integer) {
  constexpr auto kMax = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
  if (!integer.negative) {
    if (integer.magnitude > kMax) return std::nullopt;
    return static_cast<int64_t>(integer.magnitude);
  }
  // Two's complement: also right for the smallest value, whose magnitude is kMax + 1.
  return static_cast<int64_t>(uint64_t{0} - integer.magnitude);
}

}  // namespace

uint64_t GgufTensor::Elements() const {
  uint64_t elements = 1;
  for (const uint64_t extent : shape) elements *= extent;
  return elements;
}

uint64_t GgufTensor::Rows() const {
  uint64_t rows = 1;
  for (size_t d = 1; d < shape.size(); ++d) rows *= shape[d];
  return rows;
}

struct GgufFile::Impl {
  ~Impl() {
    if (mapping != nullptr) munmap(mapping, bytes.size());
    if (descriptor >= 0) close(descriptor);
  }

  // The value under `key`, of any type.
  absl::StatusOr<const Value*> Find(std::string_view key) const {
    const auto it = contents.metadata.find(key);
    if (it == contents.metadata.end()) {
      return absl::NotFoundError(Cat(path, " has no metadata key ", key));
    }
    return &it->second;
  }

  absl::StatusOr<const Value*> FindKind(std::string_view key, bool array) const {
    ASSIGN_OR_RETURN(const Value* value, Find(key));
    if (value->is_array != array) return WrongType(key, *value, array ? "an array" : "one value");
    return value;
  }

  absl::Status WrongType(std::string_view key, const Value& value, std::string_view wanted) const {
    return absl::InvalidArgumentError(Cat(path, ": ", key, " is ",
                                          value.is_array ? "an array of " : "",
                                          gguf::ValueTypeName(value.type), ", expected ", wanted));
  }

  absl::StatusOr<Integer> FindInteger(std::string_view key) const {
    ASSIGN_OR_RETURN(const Value* value, FindKind(key, false));
    const std::optional<Integer> integer = LoadInteger(value->type, value->bytes.data());
    if (!integer.has_value()) return WrongType(key, *value, "an integer");
    return *integer;
  }

  std::string path;
  std::span<const std::byte> bytes;
  void* mapping = nullptr;
  int descriptor = -1;
  gguf::Contents contents;
};

GgufFile::GgufFile(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
GgufFile::~GgufFile() = default;

absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::Open(const std::string& path) {
  auto impl = std::make_unique<Impl>();
  impl->path = path;
  impl->descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (impl->descriptor < 0) {
    return absl::ErrnoToStatus(errno, Cat("cannot open model file ", path));
  }
  struct stat info = {};
  if (fstat(impl->descriptor, &info) != 0) {
    return absl::ErrnoToStatus(errno, Cat("cannot read model file ", path));
  }
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(Cat(path, " is not a regular file"));
  }
  if (info.st_size == 0) return absl::InvalidArgumentError(Cat(path, " is empty"));
  const auto size = static_cast<size_t>(info.st_size);
  void* mapping = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, impl->descriptor, 0);
  if (mapping == MAP_FAILED) {
    return absl::ErrnoToStatus(errno, Cat("cannot map model file ", path));
  }
  impl->mapping = mapping;
  impl->bytes = {static_cast<const std::byte*>(mapping), size};
  RETURN_IF_ERROR(gguf::ParseContents(impl->bytes, impl->path, &impl->contents));
  return std::unique_ptr<GgufFile>(new GgufFile(std::move(impl)));
}

absl::StatusOr<std::unique_ptr<GgufFile>> GgufFile::Parse(std::span<const std::byte> bytes,
                                                          std::string name) {
  auto impl = std::make_unique<Impl>();
  impl->path = std::move(name);
  impl->bytes = bytes;
  RETURN_IF_ERROR(gguf::ParseContents(impl->bytes, impl->path, &impl->contents));
  return std::unique_ptr<GgufFile>(new GgufFile(std::move(impl)));
}

const std::string& GgufFile::path() const { return impl_->path; }
size_t GgufFile::bytes() const { return impl_->bytes.size(); }
const std::vector<GgufTensor>& GgufFile::tensors() const { return impl_->contents.tensors; }

const GgufTensor* GgufFile::FindTensor(std::string_view name) const {
  const auto it = impl_->contents.tensor_index.find(name);
  return it == impl_->contents.tensor_index.end() ? nullptr : &tensors()[it->second];
}

absl::StatusOr<const GgufTensor*> GgufFile::GetTensor(std::string_view name) const {
  if (const GgufTensor* tensor = FindTensor(name)) return tensor;
  return absl::NotFoundError(Cat(path(), " has no tensor ", name));
}

bool GgufFile::Has(std::string_view key) const { return impl_->contents.metadata.contains(key); }

absl::StatusOr<uint64_t> GgufFile::GetUint(std::string_view key) const {
  ASSIGN_OR_RETURN(const Integer integer, impl_->FindInteger(key));
  if (integer.negative) {
    return absl::InvalidArgumentError(
        Cat(path(), ": ", key, " is -", integer.magnitude, ", it must not be negative"));
  }
  return integer.magnitude;
}

absl::StatusOr<int64_t> GgufFile::GetInt(std::string_view key) const {
  ASSIGN_OR_RETURN(const Integer integer, impl_->FindInteger(key));
  const std::optional<int64_t> value = ToInt64(integer);
  if (!value.has_value()) {
    return absl::InvalidArgumentError(
        Cat(path(), ": ", key, " is ", integer.magnitude, ", it must be below 2^63"));
  }
  return *value;
}

absl::StatusOr<double> GgufFile::GetFloat(std::string_view key) const {
  ASSIGN_OR_RETURN(const Value* value, impl_->FindKind(key, false));
  if (value->type == ValueType::kFloat32) return Load<float>(value->bytes.data());
  if (value->type == ValueType::kFloat64) return Load<double>(value->bytes.data());
  return impl_->WrongType(key, *value, "float32 or float64");
}

absl::StatusOr<bool> GgufFile::GetBool(std::string_view key) const {
  ASSIGN_OR_RETURN(const Value* value, impl_->FindKind(key, false));
  if (value->type != ValueType::kBool) return impl_->WrongType(key, *value, "bool");
  return Load<uint8_t>(value->bytes.data()) != 0;
}

absl::StatusOr<std::string_view> GgufFile::GetString(std::string_view key) const {
  ASSIGN_OR_RETURN(const Value* value, impl_->FindKind(key, false));
  if (value->type != ValueType::kString) return impl_->WrongType(key, *value, "string");
  return std::string_view(reinterpret_cast<const char*>(value->bytes.data()), value->bytes.size());
}

absl::StatusOr<std::vector<std::string_view>> GgufFile::GetStrings(std::string_view key) const {
  ASSIGN_OR_RETURN(const Value* value, impl_->FindKind(key, true));
  if (value->type != ValueType::kString) return impl_->WrongType(key, *value, "strings");
  std::vector<std::string_view> strings;
  strings.reserve(static_cast<size_t>(value->count));
  const std::byte* data = value->bytes.data();
  for (uint64_t i = 0; i < value->count; ++i) {
    const auto length = static_cast<size_t>(Load<uint64_t>(data));
    data += sizeof(uint64_t);
    strings.emplace_back(reinterpret_cast<const char*>(data), length);
    data += length;
  }
  return strings;
}

absl::StatusOr<std::vector<int64_t>> GgufFile::GetInts(std::string_view key) const {
  ASSIGN_OR_RETURN(const Value* value, impl_->FindKind(key, true));
  std::vector<int64_t> integers;
  const size_t width = gguf::ScalarBytes(value->type);
  if (!LoadInteger(value->type, std::array<std::byte, 8>{}.data()).has_value()) {
    return impl_->WrongType(key, *value, "integers");
  }
  integers.reserve(static_cast<size_t>(value->count));
  for (size_t i = 0; i < value->count; ++i) {
    const std::optional<Integer> integer =
        LoadInteger(value->type, value->bytes.data() + i * width);
    const std::optional<int64_t> signed_value = ToInt64(*integer);
    if (!signed_value.has_value()) {
      return absl::InvalidArgumentError(
          Cat(path(), ": ", key, "[", i, "] is ", integer->magnitude, ", it must be below 2^63"));
    }
    integers.push_back(*signed_value);
  }
  return integers;
}

absl::StatusOr<std::vector<float>> GgufFile::GetFloats(std::string_view key) const {
  ASSIGN_OR_RETURN(const Value* value, impl_->FindKind(key, true));
  if (value->type != ValueType::kFloat32 && value->type != ValueType::kFloat64) {
    return impl_->WrongType(key, *value, "float32 or float64 values");
  }
  std::vector<float> floats;
  floats.reserve(static_cast<size_t>(value->count));
  for (size_t i = 0; i < value->count; ++i) {
    floats.push_back(
        value->type == ValueType::kFloat32
            ? Load<float>(value->bytes.data() + i * sizeof(float))
            : static_cast<float>(Load<double>(value->bytes.data() + i * sizeof(double))));
  }
  return floats;
}

void GgufFile::DropPages(const GgufTensor& tensor) const {
  if (impl_->mapping == nullptr || tensor.data.empty()) return;
  // Whole pages inside the tensor only: its neighbours share the others. The map starts on a page.
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const auto begin = static_cast<size_t>(tensor.data.data() - impl_->bytes.data());
  const size_t first = (begin + page - 1) / page * page;
  const size_t last = (begin + tensor.data.size()) / page * page;
  if (first < last) {
    madvise(static_cast<std::byte*>(impl_->mapping) + first, last - first, MADV_DONTNEED);
  }
}

std::string GgufFile::Digest() const {
  Sha256 sha;
  size_t done = 0;
  if (impl_->descriptor >= 0) {
    // Read rather than touch the map, so that the file's pages do not count as ours.
    std::vector<std::byte> buffer(kDigestChunk);
    while (done < impl_->bytes.size()) {
      const ssize_t got =
          pread(impl_->descriptor, buffer.data(), buffer.size(), static_cast<off_t>(done));
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) break;
      const size_t size = std::min(static_cast<size_t>(got), impl_->bytes.size() - done);
      sha.Update(std::span<const std::byte>(buffer.data(), size));
      done += size;
    }
  }
  sha.Update(impl_->bytes.subspan(done));
  return sha.Finish();
}

}  // namespace cogumi
