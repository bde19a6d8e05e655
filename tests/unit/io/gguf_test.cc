#include "engine/io/gguf.h"

#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include "engine/core/sha256.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/gguf_writer.h"
#include "tests/support/tiny_model.h"

namespace cogumi {
namespace {

using ::testing::ElementsAre;
using testing::GgufBuilder;
using ::testing::HasSubstr;

std::span<const std::byte> AsBytes(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

absl::StatusOr<std::unique_ptr<GgufFile>> Parse(const std::string& bytes) {
  return GgufFile::Parse(AsBytes(bytes), "test.gguf");
}

std::string Word(uint32_t value) {
  std::string bytes(sizeof(value), '\0');
  std::memcpy(bytes.data(), &value, sizeof(value));
  return bytes;
}

std::string Long(uint64_t value) {
  std::string bytes(sizeof(value), '\0');
  std::memcpy(bytes.data(), &value, sizeof(value));
  return bytes;
}

// Expects a refusal with the code whose message has all parts.
void ExpectRefused(const std::string& bytes, absl::StatusCode code,
                   std::initializer_list<const char*> parts) {
  const auto file = Parse(bytes);
  ASSERT_FALSE(file.ok());
  EXPECT_EQ(file.status().code(), code) << file.status();
  for (const char* part : parts) {
    EXPECT_THAT(std::string(file.status().message()), HasSubstr(part));
  }
}

void ExpectRefused(const GgufBuilder& builder, std::initializer_list<const char*> parts) {
  ExpectRefused(builder.Bytes(), absl::StatusCode::kInvalidArgument, parts);
}

template <typename T>
void ExpectError(const absl::StatusOr<T>& got, absl::StatusCode code, const char* part) {
  ASSERT_FALSE(got.ok());
  EXPECT_EQ(got.status().code(), code) << got.status();
  EXPECT_THAT(std::string(got.status().message()), HasSubstr(part));
}

// A file in a folder of its own that the test removes.
class TemporaryFile {
 public:
  explicit TemporaryFile(const std::string& bytes) {
    std::string folder = (std::filesystem::temp_directory_path() / "gguf-test-XXXXXX").string();
    folder_ = mkdtemp(folder.data());
    std::ofstream(path(), std::ios::binary) << bytes;
  }
  ~TemporaryFile() { std::filesystem::remove_all(folder_); }
  std::string path() const { return (folder_ / "model.gguf").string(); }
  std::string folder() const { return folder_.string(); }

 private:
  std::filesystem::path folder_;
};

TEST(Gguf, ReadsMetadataOfEveryKind) {
  const std::string bytes = GgufBuilder()
                                .Uint("uint", 7)
                                .Uint64("uint64", uint64_t{1} << 63)
                                .Int("int", -3)
                                .Float("float", 0.5f)
                                .Double("double", 0.25)
                                .Bool("yes", true)
                                .Bool("no", false)
                                .String("text", "h\xc3\xa9")
                                .Strings("texts", {"a", "", "bc"})
                                .Ints("ints", {1, -2})
                                .Floats("floats", {1.5f, -2.5f})
                                .Bytes();
  const auto file = Parse(bytes);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->GetUint("uint").value(), 7u);
  EXPECT_EQ((*file)->GetInt("uint").value(), 7);
  EXPECT_EQ((*file)->GetInt("int").value(), -3);
  EXPECT_EQ((*file)->GetUint("uint64").value(), uint64_t{1} << 63);
  EXPECT_EQ((*file)->GetFloat("float").value(), 0.5);
  EXPECT_EQ((*file)->GetFloat("double").value(), 0.25);
  EXPECT_TRUE((*file)->GetBool("yes").value());
  EXPECT_FALSE((*file)->GetBool("no").value());
  EXPECT_EQ((*file)->GetString("text").value(), "h\xc3\xa9");
  EXPECT_THAT((*file)->GetStrings("texts").value(), ElementsAre("a", "", "bc"));
  EXPECT_THAT((*file)->GetInts("ints").value(), ElementsAre(1, -2));
  EXPECT_THAT((*file)->GetFloats("floats").value(), ElementsAre(1.5f, -2.5f));
  EXPECT_TRUE((*file)->Has("uint"));
  EXPECT_FALSE((*file)->Has("other"));
}

TEST(Gguf, StringsAreViewsIntoTheFile) {
  const std::string bytes = GgufBuilder().Strings("texts", {"first", "second"}).Bytes();
  const auto file = Parse(bytes);
  ASSERT_TRUE(file.ok()) << file.status();
  const std::vector<std::string_view> texts = (*file)->GetStrings("texts").value();
  for (const std::string_view text : texts) {
    EXPECT_GE(text.data(), bytes.data());
    EXPECT_LE(text.data() + text.size(), bytes.data() + bytes.size());
  }
}

TEST(Gguf, IntegersOfAnyWidthConvertWhenTheyFit) {
  const std::string bytes = GgufBuilder()
                                .Raw("u8", 0, "\xff")
                                .Raw("i8", 1, "\xff")
                                .Raw("u16", 2, std::string("\xff\xff", 2))
                                .Raw("i16", 3, std::string("\xfe\xff", 2))
                                .Raw("i64", 11, Long(uint64_t{1} << 63))
                                .Raw("i64s", 9, Word(11) + Long(1) + Long(uint64_t{1} << 63))
                                .Bytes();
  const auto file = Parse(bytes);
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->GetUint("u8").value(), 255u);
  EXPECT_EQ((*file)->GetInt("i8").value(), -1);
  EXPECT_EQ((*file)->GetUint("u16").value(), 65535u);
  EXPECT_EQ((*file)->GetInt("i16").value(), -2);
  EXPECT_EQ((*file)->GetInt("i64").value(), std::numeric_limits<int64_t>::min());
  EXPECT_THAT((*file)->GetInts("i64s").value(), ElementsAre(std::numeric_limits<int64_t>::min()));
  ExpectError((*file)->GetUint("i8"), absl::StatusCode::kInvalidArgument, "i8 is -1");
}

TEST(Gguf, WrongTypesAndRangesAreNamed) {
  const std::string bytes = GgufBuilder()
                                .Uint64("large", uint64_t{1} << 63)
                                .Uint("number", 1)
                                .String("text", "x")
                                .Strings("texts", {"x"})
                                .Ints("ints", {1})
                                .Raw("larges", 9, Word(10) + Long(1) + Long(uint64_t{1} << 63))
                                .Bytes();
  const auto parsed = Parse(bytes);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  const GgufFile& file = **parsed;
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  ExpectError(file.GetInt("large"), kInvalid, "large is 9223372036854775808");
  ExpectError(file.GetInts("larges"), kInvalid, "larges[0] is 9223372036854775808");
  ExpectError(file.GetUint("text"), kInvalid, "text is string, expected an integer");
  ExpectError(file.GetFloat("number"), kInvalid, "number is uint32");
  ExpectError(file.GetBool("number"), kInvalid, "number is uint32, expected bool");
  ExpectError(file.GetString("number"), kInvalid, "expected string");
  ExpectError(file.GetString("texts"), kInvalid, "texts is an array of string");
  ExpectError(file.GetStrings("text"), kInvalid, "expected an array");
  ExpectError(file.GetStrings("ints"), kInvalid, "expected strings");
  ExpectError(file.GetInts("texts"), kInvalid, "expected integers");
  ExpectError(file.GetFloats("ints"), kInvalid, "expected float32");
  ExpectError(file.GetUint("absent"), absl::StatusCode::kNotFound, "absent");
}

TEST(Gguf, FindsTensorsAndTheirData) {
  const std::string bytes =
      GgufBuilder().Floats32("a", {3}, {1, 2, 3}).Floats32("b", {2, 2, 1, 1}, {4, 5, 6, 7}).Bytes();
  const auto file = Parse(bytes);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_EQ((*file)->tensors().size(), 2u);
  const GgufTensor* b = (*file)->GetTensor("b").value();
  EXPECT_EQ(b->name, "b");
  EXPECT_EQ(b->Elements(), 4u);
  EXPECT_EQ(b->Rows(), 2u);
  EXPECT_EQ((*file)->FindTensor("a")->Rows(), 1u);
  std::vector<float> values(4);
  Dequantize(b->type, b->data.data(), 4, values.data());
  EXPECT_THAT(values, ElementsAre(4, 5, 6, 7));
  EXPECT_EQ((*file)->FindTensor("c"), nullptr);
  ExpectError((*file)->GetTensor("c"), absl::StatusCode::kNotFound, "test.gguf has no tensor c");
}

TEST(Gguf, VersionTwoIsReadAndOthersAreNot) {
  EXPECT_TRUE(Parse(GgufBuilder().Version(2).Uint("x", 1).Bytes()).ok());
  for (const uint32_t version : {0u, 1u, 4u, 0x7fffffffu}) {
    ExpectRefused(GgufBuilder().Version(version).Bytes(), absl::StatusCode::kUnimplemented,
                  {"header", "GGUF version"});
  }
  ExpectRefused(GgufBuilder().Version(0x03000000u).Bytes(), absl::StatusCode::kUnimplemented,
                {"big-endian"});
  ExpectRefused("GGML" + Word(3), absl::StatusCode::kInvalidArgument, {"not a GGUF file"});
}

TEST(Gguf, CountsBeyondTheFileAreRefusedBeforeMemoryIsTaken) {
  for (const uint64_t count : {uint64_t{1000}, uint64_t{1} << 32, ~uint64_t{0}}) {
    ExpectRefused("GGUF" + Word(3) + Long(0) + Long(count), absl::StatusCode::kInvalidArgument,
                  {"header", "metadata pairs do not fit"});
    ExpectRefused("GGUF" + Word(3) + Long(count) + Long(0), absl::StatusCode::kInvalidArgument,
                  {"header", "tensors do not fit"});
    ExpectRefused(GgufBuilder().Raw("k", 8, Long(count)), {"metadata", "length"});
    ExpectRefused(GgufBuilder().Raw("k", 9, Word(8) + Long(count)),
                  {"metadata", "strings do not fit"});
    ExpectRefused(GgufBuilder().Raw("k", 9, Word(4) + Long(count)),
                  {"metadata", "\"k\"", "do not fit"});
  }
}

TEST(Gguf, BrokenMetadataIsRefused) {
  ExpectRefused(GgufBuilder().Uint("k", 1).Uint("k", 2), {"\"k\" appears twice"});
  ExpectRefused(GgufBuilder().Uint("", 1), {"key 0 has 0 bytes"});
  ExpectRefused(GgufBuilder().Uint(std::string(65536, 'k'), 1), {"65536 bytes"});
  ExpectRefused(GgufBuilder().Raw("k", 13, Word(0)), {"\"k\"", "unknown value type 13"});
  ExpectRefused(GgufBuilder().Raw("k", 9, Word(9) + Long(1) + Word(4) + Long(0)),
                {"\"k\"", "array of arrays"});
  ExpectRefused(GgufBuilder().Raw("k", 9, Word(77) + Long(1) + Long(0)),
                {"\"k\"", "unknown value type 77"});
  ExpectRefused(GgufBuilder().Raw("k", 7, "\2"), {"\"k\"", "a boolean is 2"});
  ExpectRefused(GgufBuilder().Uint(std::string("a\n\x1b", 3), 1).Uint(std::string("a\n\x1b", 3), 1),
                {"a\\n\\x1b"});
}

TEST(Gguf, AlignmentIsCheckedAndObeyed) {
  for (const uint32_t alignment : {0u, 1u, 4u, 24u, 33u, 1u << 17}) {
    ExpectRefused(GgufBuilder().Uint("general.alignment", alignment),
                  {"metadata", "general.alignment is"});
  }
  ExpectRefused(GgufBuilder().Int("general.alignment", 32), {"must be a uint32"});
  for (const uint32_t alignment : {8u, 64u, 4096u}) {
    const std::string bytes =
        GgufBuilder().Alignment(alignment).Floats32("a", {1}, {1}).Floats32("b", {1}, {2}).Bytes();
    const auto file = Parse(bytes);
    ASSERT_TRUE(file.ok()) << file.status();
    const auto offset = (*file)->FindTensor("b")->data.data() - AsBytes(bytes).data();
    EXPECT_EQ(static_cast<size_t>(offset) % alignment, 0u);
    float value = 0;
    Dequantize(GgmlType::kF32, (*file)->FindTensor("b")->data.data(), 1, &value);
    EXPECT_EQ(value, 2);
  }
}

TEST(Gguf, BrokenTensorsAreRefused) {
  const auto tensor = [](std::vector<uint64_t> shape, GgmlType type, size_t bytes) {
    return GgufBuilder().Tensor("w", type, std::move(shape), std::string(bytes, '\0'));
  };
  ExpectRefused(tensor({}, GgmlType::kF32, 4), {"tensor table", "\"w\" has 0 dimensions"});
  ExpectRefused(tensor({1, 1, 1, 1, 1}, GgmlType::kF32, 4), {"5 dimensions"});
  ExpectRefused(tensor({4, 0}, GgmlType::kF32, 4), {"dimension 1 is 0"});
  ExpectRefused(tensor({uint64_t{1} << 32, uint64_t{1} << 32}, GgmlType::kF32, 4),
                {"product of its dimensions"});
  ExpectRefused(tensor({uint64_t{1} << 62}, GgmlType::kF32, 4), {"size does not fit"});
  ExpectRefused(tensor({4}, static_cast<GgmlType>(99), 4), {"\"w\"", "unsupported type 99"});
  ExpectRefused(tensor({48}, GgmlType::kQ4_1, 40), {"48", "32 elements of a Q4_1 block"});
  ExpectRefused(tensor({128}, GgmlType::kQ6_K, 210), {"256 elements of a Q6_K block"});
  ExpectRefused(tensor({8}, GgmlType::kF32, 31), {"tensor data", "\"w\" needs 32 bytes"});
  ExpectRefused(GgufBuilder().Floats32("w", {1}, {1}).Floats32("w", {1}, {1}),
                {"\"w\" appears twice"});
  ExpectRefused(GgufBuilder().Floats32("", {1}, {1}), {"name of tensor 0 has 0 bytes"});
  ExpectRefused(GgufBuilder().Floats32(std::string(65, 'n'), {1}, {1}), {"65 bytes"});
}

TEST(Gguf, OffsetsOutsideTheFileAreRefused) {
  std::vector<testing::GgufField> fields;
  const std::string good =
      GgufBuilder().Floats32("w", {8}, std::vector<float>(8, 1)).Bytes(&fields);
  size_t offset_at = 0;
  for (const testing::GgufField& field : fields) {
    if (field.kind == testing::GgufField::Kind::kTensorOffset) offset_at = field.offset;
  }
  const auto with_offset = [&](uint64_t offset) {
    std::string bytes = good;
    std::memcpy(bytes.data() + offset_at, &offset, sizeof(offset));
    return bytes;
  };
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_TRUE(Parse(with_offset(0)).ok());
  ExpectRefused(with_offset(16), kInvalid, {"offset 16 is no multiple of the alignment 32"});
  ExpectRefused(with_offset(32), kInvalid, {"tensor data", "needs 32 bytes at 32"});
  ExpectRefused(with_offset(~uint64_t{0} - 31), kInvalid, {"tensor data", "needs 32 bytes"});
}

TEST(Gguf, TensorsThatShareBytesAreRefused) {
  std::vector<testing::GgufField> fields;
  const std::string good = GgufBuilder()
                               .Floats32("first", {16}, std::vector<float>(16, 1))
                               .Floats32("second", {8}, std::vector<float>(8, 2))
                               .Floats32("third", {8}, std::vector<float>(8, 3))
                               .Bytes(&fields);
  std::vector<size_t> offsets;
  for (const testing::GgufField& field : fields) {
    if (field.kind == testing::GgufField::Kind::kTensorOffset) offsets.push_back(field.offset);
  }
  ASSERT_EQ(offsets.size(), 3u);
  const auto placed = [&](std::vector<uint64_t> at) {
    std::string bytes = good;
    for (size_t i = 0; i < 3; ++i) std::memcpy(bytes.data() + offsets[i], &at[i], sizeof(at[i]));
    return bytes;
  };
  EXPECT_TRUE(Parse(placed({0, 64, 96})).ok());
  EXPECT_TRUE(Parse(placed({64, 32, 0})).ok());  // in any order
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  ExpectRefused(placed({0, 32, 96}), kInvalid,
                {"tensor data", "\"second\" at 32", "\"first\", which takes 64 bytes from 0"});
  ExpectRefused(placed({0, 64, 64}), kInvalid, {"overlaps", "\"second\"", "\"third\""});
  ExpectRefused(placed({64, 96, 0}), kInvalid, {"\"second\" at 96", "\"first\""});
}

TEST(Gguf, OpensFilesAndSaysWhyNot) {
  const std::string bytes = testing::TinyModelBytes();
  const TemporaryFile temporary(bytes);
  const auto file = GgufFile::Open(temporary.path());
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->path(), temporary.path());
  EXPECT_EQ((*file)->bytes(), bytes.size());
  EXPECT_EQ((*file)->Digest(), Sha256::Hex(bytes));
  EXPECT_EQ(Parse(bytes).value()->Digest(), Sha256::Hex(bytes));

  ExpectError(GgufFile::Open(temporary.path() + ".absent"), absl::StatusCode::kNotFound,
              "model.gguf.absent");
  ExpectError(GgufFile::Open(temporary.folder()), absl::StatusCode::kInvalidArgument,
              "not a regular file");
  const TemporaryFile empty("");
  ExpectError(GgufFile::Open(empty.path()), absl::StatusCode::kInvalidArgument, "is empty");
}

TEST(Gguf, DroppedPagesCanBeReadAgain) {
  const TemporaryFile temporary(testing::TinyModelBytes());
  const auto file = GgufFile::Open(temporary.path());
  ASSERT_TRUE(file.ok()) << file.status();
  for (const GgufTensor& tensor : (*file)->tensors()) {
    const std::vector<std::byte> before(tensor.data.begin(), tensor.data.end());
    (*file)->DropPages(tensor);
    EXPECT_TRUE(std::equal(before.begin(), before.end(), tensor.data.begin())) << tensor.name;
  }
}

TEST(Gguf, TinyModelsOfEveryTypeAreValid) {
  for (const GgmlType type : {GgmlType::kF32, GgmlType::kF16, GgmlType::kBF16, GgmlType::kQ8_0,
                              GgmlType::kQ4_0, GgmlType::kQ4_1, GgmlType::kQ5_0, GgmlType::kQ5_1,
                              GgmlType::kQ4_K, GgmlType::kQ5_K, GgmlType::kQ6_K}) {
    testing::TinyModelOptions options;
    options.type = type;
    options.layers = 1;
    options.embedding_length = 256;
    options.feed_forward_length = 256;
    options.head_dim = 64;
    options.tied = false;
    options.rope_freqs = true;
    const std::string bytes = testing::TinyModelBytes(options);
    const auto file = Parse(bytes);
    ASSERT_TRUE(file.ok()) << file.status();
    const GgufTensor* tensor = (*file)->GetTensor("blk.0.attn_q.weight").value();
    EXPECT_EQ(tensor->type, type);
    std::vector<float> values(tensor->Elements());
    Dequantize(type, tensor->data.data(), values.size(), values.data());
    double sum = 0;
    double squares = 0;
    for (const float value : values) {
      ASSERT_TRUE(std::isfinite(value)) << GgmlTypeName(type);
      sum += value;
      squares += double{value} * value;
    }
    const double count = static_cast<double>(values.size());
    const double deviation = std::sqrt(squares / count);
    EXPECT_NEAR(deviation, 2.0 / 16, 0.04) << GgmlTypeName(type);
    EXPECT_LT(std::abs(sum / count), deviation / 4) << GgmlTypeName(type);
  }
}

TEST(GgmlTypes, NamesAndSizes) {
  EXPECT_EQ(GgmlTypeName(GgmlType::kQ4_1), "Q4_1");
  EXPECT_EQ(GgmlTypeName(static_cast<GgmlType>(99)), "type 99");
  EXPECT_EQ(TraitsOf(GgmlType::kQ6_K)->block_bytes, 210u);
  EXPECT_FALSE(TraitsOf(static_cast<GgmlType>(16)).has_value());
}

}  // namespace
}  // namespace cogumi
