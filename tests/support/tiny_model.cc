#include "tests/support/tiny_model.h"

#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <random>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/core/half.h"

namespace cogumi::testing {
namespace {

constexpr std::pair<std::string_view, std::string_view> kMerges[] = {
    {" ", "t"}, {"h", "e"}, {" t", "he"}, {"i", "n"},
    {"a", "n"}, {" ", "a"}, {"e", "r"},   {"o", "n"}};

constexpr std::string_view kTemplate =
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are tiny.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

// Random data of a matrix: valid blocks of the type, with values of about the given deviation.
class RandomBlocks {
 public:
  explicit RandomBlocks(uint64_t seed) : generator_(seed) {}

  // Uniform in [-1, 1); from the generator's bits alone, so that every standard library agrees.
  float Unit() {
    return static_cast<float>(static_cast<double>(generator_() >> 11) * 0x1p-52 - 1.0);
  }

  std::string Matrix(GgmlType type, uint64_t elements, float deviation) {
    const GgmlTypeTraits traits = TraitsOf(type).value();
    std::string data;
    data.reserve(elements / traits.block_elements * traits.block_bytes);
    for (uint64_t i = 0; i < elements; i += traits.block_elements) Block(type, deviation, &data);
    return data;
  }

 private:
  void Random(size_t bytes, std::string* out) {
    for (size_t i = 0; i < bytes; ++i) out->push_back(static_cast<char>(generator_() >> 56));
  }

  static void Word(uint16_t word, std::string* out) {
    out->push_back(static_cast<char>(word & 0xff));
    out->push_back(static_cast<char>(word >> 8));
  }

  // A positive scale around `value`.
  void Half(float value, std::string* out) {
    Word(FloatToHalf(value * (1.0f + 0.25f * Unit())), out);
  }

  void Block(GgmlType type, float deviation, std::string* out) {
    const float peak = deviation * 1.7f;  // of uniform values with that deviation
    switch (type) {
      case GgmlType::kF32: {
        const uint32_t bits = std::bit_cast<uint32_t>(peak * Unit());
        Word(static_cast<uint16_t>(bits & 0xffff), out);
        Word(static_cast<uint16_t>(bits >> 16), out);
        return;
      }
      case GgmlType::kF16:
        Word(FloatToHalf(peak * Unit()), out);
        return;
      case GgmlType::kBF16:
        Word(static_cast<uint16_t>(std::bit_cast<uint32_t>(peak * Unit()) >> 16), out);
        return;
      case GgmlType::kQ8_0:
        Half(peak / 128, out);
        return Random(32, out);
      case GgmlType::kQ4_0:
        Half(peak / 8, out);
        return Random(16, out);
      case GgmlType::kQ5_0:
        Half(peak / 16, out);
        return Random(20, out);
      case GgmlType::kQ4_1:
        Half(peak / 8, out);
        Word(FloatToHalf(-peak), out);
        return Random(16, out);
      case GgmlType::kQ5_1:
        Half(peak / 16, out);
        Word(FloatToHalf(-peak), out);
        return Random(20, out);
      // In K-quants the scales of the groups are random bits too; the divisors are the deviations
      // of the integers that come out.
      case GgmlType::kQ4_K:
        Half(deviation / 272, out);
        Half(deviation / 272 * 7.5f, out);
        return Random(140, out);
      case GgmlType::kQ5_K:
        Half(deviation / 543, out);
        Half(deviation / 543 * 15.5f, out);
        return Random(172, out);
      case GgmlType::kQ6_K:
        Random(208, out);
        return Half(deviation / 1370, out);
    }
  }

  std::mt19937_64 generator_;
};

void AddVocabulary(const TinyModelOptions& options, GgufBuilder* builder) {
  std::vector<std::string> tokens;
  std::vector<int32_t> types;
  std::vector<std::string> merges;
  tokens.reserve(kTinyVocabularySize);
  for (int byte = 0; byte < 256; ++byte) {
    tokens.push_back(SpellByteLevel(std::string(1, static_cast<char>(byte))));
  }
  for (const auto& [left, right] : kMerges) {
    merges.push_back(SpellByteLevel(left) + " " + SpellByteLevel(right));
    tokens.push_back(SpellByteLevel(left) + SpellByteLevel(right));
  }
  types.assign(tokens.size(), 1);
  for (const char* control : {"<|endoftext|>", "<|im_start|>", "<|im_end|>"}) {
    tokens.emplace_back(control);
    types.push_back(3);
  }
  builder->String("tokenizer.ggml.model", "gpt2")
      .String("tokenizer.ggml.pre", "smollm")
      .Strings("tokenizer.ggml.tokens", tokens)
      .Ints("tokenizer.ggml.token_type", types)
      .Strings("tokenizer.ggml.merges", merges)
      .Uint("tokenizer.ggml.bos_token_id", kTinyImStart)
      .Uint("tokenizer.ggml.eos_token_id", kTinyImEnd)
      .Bool("tokenizer.ggml.add_bos_token", false);
  if (options.chat_template) builder->String("tokenizer.chat_template", kTemplate);
}

}  // namespace

std::string TinyModelBytes(const TinyModelOptions& options, std::vector<GgufField>* fields) {
  GgufBuilder builder;
  builder.Alignment(options.alignment)
      .String("general.architecture", "llama")
      .String("general.name", options.name)
      .Uint("llama.block_count", options.layers)
      .Uint("llama.context_length", options.context_length)
      .Uint("llama.embedding_length", options.embedding_length)
      .Uint("llama.feed_forward_length", options.feed_forward_length)
      .Uint("llama.attention.head_count", options.heads)
      .Uint("llama.attention.head_count_kv", options.kv_heads)
      .Uint("llama.attention.key_length", options.head_dim)
      .Uint("llama.attention.value_length", options.head_dim)
      .Uint("llama.rope.dimension_count", options.head_dim)
      .Float("llama.rope.freq_base", options.rope_base)
      .Float("llama.attention.layer_norm_rms_epsilon", 1e-5f)
      .Uint("llama.vocab_size", kTinyVocabularySize);
  if (options.vocabulary) {
    AddVocabulary(options, &builder);
  } else {
    builder.String("tokenizer.ggml.model", "no_vocab");
  }

  RandomBlocks random(options.seed);
  const uint64_t width = options.embedding_length;
  const uint64_t query_width = uint64_t{options.heads} * options.head_dim;
  const uint64_t kv_width = uint64_t{options.kv_heads} * options.head_dim;
  const uint64_t hidden = options.feed_forward_length;
  const auto norm = [&](const std::string& name) {
    std::vector<float> values;
    for (uint64_t i = 0; i < width; ++i) values.push_back(1.0f + 0.25f * random.Unit());
    builder.Floats32(name, {width}, values);
  };
  const auto matrix_of = [&](GgmlType type, const std::string& name, uint64_t inputs,
                             uint64_t outputs, float gain) {
    const float deviation = gain / std::sqrt(static_cast<float>(inputs));
    builder.Tensor(name, type, {inputs, outputs}, random.Matrix(type, inputs * outputs, deviation));
  };
  const auto matrix = [&](const std::string& name, uint64_t inputs, uint64_t outputs, float gain) {
    matrix_of(options.type, name, inputs, outputs, gain);
  };
  const GgmlType head = options.head_type.value_or(options.type);

  // Logits of a random model are nearly flat; the gain of its head spreads them.
  matrix_of(head, "token_embd.weight", width, kTinyVocabularySize, 4.0f);
  for (uint32_t layer = 0; layer < options.layers; ++layer) {
    const std::string prefix = "blk." + std::to_string(layer) + ".";
    norm(prefix + "attn_norm.weight");
    matrix(prefix + "attn_q.weight", width, query_width, 2.0f);
    matrix(prefix + "attn_k.weight", width, kv_width, 2.0f);
    matrix(prefix + "attn_v.weight", width, kv_width, 1.0f);
    matrix(prefix + "attn_output.weight", query_width, width, 1.0f);
    norm(prefix + "ffn_norm.weight");
    matrix(prefix + "ffn_gate.weight", width, hidden, 1.0f);
    matrix(prefix + "ffn_up.weight", width, hidden, 1.0f);
    matrix(prefix + "ffn_down.weight", hidden, width, 1.0f);
  }
  norm("output_norm.weight");
  if (!options.tied) matrix_of(head, "output.weight", width, kTinyVocabularySize, 4.0f);
  if (options.rope_freqs) {
    std::vector<float> factors;
    for (uint32_t i = 0; i < options.head_dim / 2; ++i) {
      factors.push_back(static_cast<float>(1u << (i % 4)));
    }
    builder.Floats32("rope_freqs.weight", {factors.size()}, factors);
  }
  return builder.Bytes(fields);
}

void WriteTinyModel(const std::string& path, const TinyModelOptions& options) {
  const std::string bytes = TinyModelBytes(options);
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  file.close();
  if (!file) {
    std::fprintf(stderr, "cannot write %s\n", path.c_str());
    std::abort();
  }
}

}  // namespace cogumi::testing
