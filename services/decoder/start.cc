#include "services/decoder/start.h"

#include <cstdint>
#include <cstdlib>
#include <utility>

#include "cogumi/engine.h"
#include "engine/core/status_macros.h"
#include "services/common/channel.h"
#include "services/common/logging.h"
#include "services/common/text.h"
#include "services/decoder/adapter_store.h"
#include "services/decoder/adapter_supplier.h"
#include "services/decoder/decoder_service.h"

namespace cogumi::services {
namespace {

constexpr char kDefaultModelFile[] = "SmolLM2-135M-Instruct.Q4_1.gguf";
// The gateway sends every stream over one connection: the engine's queue is to refuse the surplus,
// not HTTP/2's limit to hide it.
constexpr int32_t kMaxStreams = 4096;

// A message through decoder, gateway and client takes 0.25-0.45 ms of the cores that the engine
// runs on, a tenth of a small model's token: 30 a second are as smooth as eyes need.
constexpr double kStreamInterval = 0.033;

constexpr int32_t Low(IntegerRange range) { return static_cast<int32_t>(range.low); }
constexpr int32_t High(IntegerRange range) { return static_cast<int32_t>(range.high); }

class RunningDecoder : public RunningService {
 public:
  RunningDecoder() : runtime_("decoder") {}

  absl::Status Start(const DecoderConfig& config, const EngineOptions& options,
                     std::shared_ptr<grpc::Channel> modifiers) {
    ASSIGN_OR_RETURN(engine_, Engine::Create(options));
    if (modifiers == nullptr && !config.modifiers.empty()) {
      modifiers = MakeChannel(config.modifiers);
    }
    if (modifiers != nullptr) {
      adapters_ = std::make_unique<AdapterStore>(
          *engine_, MakeGrpcAdapterSupplier(std::move(modifiers)), AdapterStoreOptions{});
    }
    service_ = DecoderService::Create(runtime_, *engine_, {options.max_running, options.max_queued},
                                      adapters_.get());
    ASSIGN_OR_RETURN(host_, ServiceHost::Create(
                                runtime_, config.server,
                                {{service_->grpc_service(), DecoderService::full_name()}}, [this] {
                                  return engine_->Healthy()
                                             ? absl::OkStatus()
                                             : absl::UnavailableError(
                                                   "a step takes longer than the watchdog "
                                                   "allows");
                                }));
    LogLine("decoder", Cat("model ", options.model_path, ", kernels ",
                           engine_->Configuration().kernel_configuration));
    const EngineStats stats = engine_->Stats();
    LogLine("decoder",
            Cat("KV cache of ", stats.kv_bytes, " bytes: ", stats.kv_pages,
                " pages as they are filled, one sequence of ", stats.kv_tokens, " tokens at most"));
    return absl::OkStatus();
  }

  ServiceHost& host() override { return *host_; }
  void OnDrain() override { engine_->Drain(); }

 private:
  // Destroyed from the last to the first.
  ServiceRuntime runtime_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<DecoderService> service_;
  std::unique_ptr<AdapterStore> adapters_;
  std::unique_ptr<ServiceHost> host_;
};

}  // namespace

DecoderConfig::DecoderConfig() {
  server.address = "127.0.0.1:7072";
  server.metrics_address = "127.0.0.1:7172";
  server.max_streams = kMaxStreams;
  engine.stream_interval_seconds = kStreamInterval;
}

void DeclareDecoderOptions(OptionSet& set, DecoderConfig* config) {
  EngineOptions& engine = config->engine;
  DeclareServerOptions(set, &config->server);
  set.String("model", &engine.model_path, "GGUF file; empty: COGUMI_MODEL or the cached default.")
      .String("model_id", &engine.model_id, "Name of the model; empty: from the file.")
      .Choice("chat_template", &engine.chat_template, {"", "chatml", "llama3"},
              "Template of chat prompts; empty: by the model's own.")
      .Int("threads", &engine.threads, Low(kThreadsRange), High(kThreadsRange),
           "Threads of a step; 0: one per core.")
      .Choice("kernels", &engine.kernels, {"", "reference", "avx2", "avx512vnni", "avx512amx"},
              "Instruction-set tier; empty: the best of this machine.")
      .Choice("activations", &config->activations, {"mixed", "exact", "fast", "f32"},
              "16 bits but for long prompts (mixed), everywhere (exact), 8 (fast); f32: the ruler.")
      .Choice("kv_format", &config->kv_format, {"f16", "f32", "int8", "int4", "k8v4"},
              "Format of the KV cache; int4 and k8v4 keep the newest and the first tokens in int8.")
      .Int("context_length", &engine.context_length, Low(kContextLengthRange),
           High(kContextLengthRange), "Tokens of prompt and answer; 0: the model's own.")
      .Bytes("kv_bytes", &engine.kv_bytes, kKvBytesRange.low, kKvBytesRange.high,
             "Budget of the KV cache.")
      .String("modifiers", &config->modifiers,
              "Address of the catalogue of adapters; empty for none.")
      .Bytes("adapter_bytes", &engine.adapter_bytes, kAdapterBytesRange.low,
             kAdapterBytesRange.high,
             "Budget of adapters in memory; the least recently used goes first.")
      .Int("max_running", &engine.max_running, Low(kMaxRunningRange), High(kMaxRunningRange),
           "Sequences in a step.")
      .Int("max_queued", &engine.max_queued, Low(kMaxQueuedRange), High(kMaxQueuedRange),
           "Requests that wait; more are refused at once.")
      .Int("prefill_chunk", &engine.prefill_chunk, Low(kPrefillChunkRange),
           High(kPrefillChunkRange), "Prompt tokens in a step, at most.")
      .Duration("step_target", &engine.step_target_seconds, 0, 3600,
                "A step with prompts should take no longer; 0: any time.")
      .Bool("prefix_cache", &engine.prefix_cache,
            "Keep computed prompts and answers for requests that go on from them.")
      .Choice("speculation", &config->speculation, {"off", "ngram", "draft_model"},
              "Who drafts tokens ahead; drafts are verified, answers stay the same.")
      .String("draft_model", &engine.draft_model_path,
              "GGUF file with the same vocabulary that drafts, for speculation draft_model.")
      .Bytes("draft_kv_bytes", &engine.draft_kv_bytes, 1LL << 16, 1LL << 44,
             "Budget of the draft model's own KV cache.")
      .Duration("stream_interval", &engine.stream_interval_seconds, 0, 60,
                "Between two chunks of an answer, at least; the first comes at once. 0: every "
                "token at once.")
      .Duration("watchdog", &engine.watchdog_seconds, 0.05, 3600,
                "A step longer than this makes the decoder unhealthy.");
}

std::string DefaultModelPath() {
  const auto variable = [](const char* name) -> std::string {
    const char* value = std::getenv(name);
    return value != nullptr ? value : "";
  };
  std::string path = variable("COGUMI_MODEL");
  if (!path.empty()) return path;
  std::string cache = variable("XDG_CACHE_HOME");
  if (cache.empty()) cache = variable("HOME") + "/.cache";
  return Cat(cache, "/cogumi/models/", kDefaultModelFile);
}

absl::StatusOr<std::unique_ptr<RunningService>> StartDecoder(
    const DecoderConfig& config, std::shared_ptr<grpc::Channel> modifiers) {
  EngineOptions options = config.engine;
  if (options.model_path.empty()) options.model_path = DefaultModelPath();
  options.activations = ActivationFormatOf(config.activations);
  options.kv_format = KvFormatOf(config.kv_format);
  options.speculation = config.speculation == "off"           ? Speculation::kOff
                        : config.speculation == "draft_model" ? Speculation::kDraftModel
                                                              : Speculation::kNgram;
  auto decoder = std::make_unique<RunningDecoder>();
  RETURN_IF_ERROR(decoder->Start(config, options, std::move(modifiers)));
  return decoder;
}

}  // namespace cogumi::services
