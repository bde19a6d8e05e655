// An engine out of a model file.
#include "cogumi/engine.h"

#include <sys/stat.h>

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/core/status_macros.h"
#include "engine/io/gguf.h"
#include "engine/model/weights.h"
#include "engine/runtime/engine_parts.h"

namespace cogumi {
namespace {

// The type that most weights are stored in.
std::string Quantization(const GgufFile& file) {
  std::map<GgmlType, uint64_t> elements;
  for (const GgufTensor& tensor : file.tensors()) elements[tensor.type] += tensor.Elements();
  GgmlType most = GgmlType::kF32;
  uint64_t count = 0;
  for (const auto& [type, sum] : elements) {
    if (sum > count) {
      most = type;
      count = sum;
    }
  }
  return GgmlTypeName(most);
}

ModelDescription Describe(const GgufFile& file, const ModelConfig& config,
                          const ChatTemplate& chat_template, const EngineOptions& options) {
  ModelDescription description;
  description.id = options.model_id.empty()
                       ? std::filesystem::path(options.model_path).stem().string()
                       : options.model_id;
  description.architecture = "llama";  // ModelConfig refuses any other
  description.path = options.model_path;
  description.file_bytes = static_cast<int64_t>(file.bytes());
  description.bytes_per_token = BytesPerToken(file);
  for (const GgufTensor& tensor : file.tensors()) {
    description.parameters += static_cast<int64_t>(tensor.Elements());
  }
  description.vocabulary_size = config.vocabulary_size;
  description.layers = config.layers;
  description.embedding_length = config.embedding_length;
  description.chat_template = chat_template.name();
  description.quantization = Quantization(file);
  struct stat info;
  if (stat(options.model_path.c_str(), &info) == 0) {
    description.created = static_cast<int64_t>(info.st_mtime);
  }
  return description;
}

// A draft must mean to the other model what it means to its own.
absl::Status CheckSameVocabulary(const std::string& path, const Tokenizer& draft,
                                 const Tokenizer& own) {
  if (draft.VocabularySize() != own.VocabularySize()) {
    return absl::InvalidArgumentError(
        absl::StrCat("draft_model_path: ", path, " has ", draft.VocabularySize(),
                     " tokens, the model ", own.VocabularySize()));
  }
  for (TokenId id = 0; id < own.VocabularySize(); ++id) {
    if (draft.TokenBytes(id, /*special=*/true) != own.TokenBytes(id, /*special=*/true)) {
      return absl::InvalidArgumentError(
          absl::StrCat("draft_model_path: token ", id, " of ", path, " is not the model's"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Model>> LoadDraftModel(const EngineOptions& options,
                                                      const Tokenizer& tokenizer,
                                                      ThreadPool* pool) {
  ASSIGN_OR_RETURN(const std::shared_ptr<GgufFile> file, GgufFile::Open(options.draft_model_path));
  ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> own, Tokenizer::Create(*file));
  RETURN_IF_ERROR(CheckSameVocabulary(options.draft_model_path, *own, tokenizer));
  ASSIGN_OR_RETURN(std::unique_ptr<Model> model,
                   Model::Load(*file, DraftModelOptionsFor(options), pool));
  if (model->config().vocabulary_size != tokenizer.VocabularySize()) {
    return absl::InvalidArgumentError(
        absl::StrCat("draft_model_path: ", options.draft_model_path, " has ",
                     model->config().vocabulary_size, " rows of logits, its tokenizer ",
                     tokenizer.VocabularySize(), " tokens"));
  }
  return model;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Engine>> Engine::Create(const EngineOptions& options) {
  RETURN_IF_ERROR(ValidateEngineOptions(options));
  if ((options.speculation == Speculation::kDraftModel) == options.draft_model_path.empty()) {
    return absl::InvalidArgumentError(
        options.draft_model_path.empty()
            ? "draft_model_path: is empty, and speculation by a draft model needs one"
            : "draft_model_path: is given, but speculation is not by a draft model");
  }
  EngineParts parts;
  ASSIGN_OR_RETURN(std::shared_ptr<GgufFile> file, GgufFile::Open(options.model_path));
  ASSIGN_OR_RETURN(parts.tokenizer, Tokenizer::Create(*file));
  ASSIGN_OR_RETURN(parts.chat_template, ChatTemplate::Create(*file, options.chat_template));
  const int threads = options.threads > 0 ? options.threads : ThreadPool::AvailableCores();
  parts.pool = std::make_unique<ThreadPool>(threads);
  ASSIGN_OR_RETURN(parts.model,
                   cogumi::Model::Load(*file, ModelOptionsFor(options), parts.pool.get()));
  const ModelConfig& config = parts.model->config();
  if (parts.tokenizer->VocabularySize() != config.vocabulary_size) {
    return absl::InvalidArgumentError(
        absl::StrCat(options.model_path, ": the tokenizer has ",
                     parts.tokenizer->VocabularySize(), " tokens, the model ",
                     config.vocabulary_size));
  }
  if (options.speculation == Speculation::kDraftModel) {
    ASSIGN_OR_RETURN(parts.draft_model,
                     LoadDraftModel(options, *parts.tokenizer, parts.pool.get()));
  }
  parts.description = Describe(*file, config, *parts.chat_template, options);
  // The last owner of the file: it is unmapped once hashed.
  parts.digest = [owned = std::move(file)]() mutable {
    std::string digest = owned->Digest();
    owned.reset();
    return digest;
  };
  return CreateEngineFromParts(options, std::move(parts));
}

}  // namespace cogumi
