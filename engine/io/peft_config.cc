#include "engine/io/peft_config.h"

#include <algorithm>
#include <cmath>

#include "engine/core/status_macros.h"
#include "engine/core/suggest.h"
#include "engine/io/json.h"
#include "engine/io/message.h"

namespace cogumi {
namespace {

// What an option may be.
enum class Rule {
  kRead,      // read below
  kTraining,  // has no effect on inference: any value
  kEmpty,     // null, false, an empty list or an empty object
};

struct Option {
  std::string_view name;
  Rule rule;
};

constexpr Option kOptions[] = {
    {"peft_type", Rule::kRead},
    {"task_type", Rule::kRead},
    {"r", Rule::kRead},
    {"lora_alpha", Rule::kRead},
    {"target_modules", Rule::kRead},
    {"bias", Rule::kRead},
    {"init_lora_weights", Rule::kRead},
    {"base_model_name_or_path", Rule::kRead},
    {"auto_mapping", Rule::kTraining},
    {"ensure_weight_tying", Rule::kEmpty},
    {"inference_mode", Rule::kTraining},
    {"loftq_config", Rule::kEmpty},
    {"lora_dropout", Rule::kTraining},
    {"megatron_core", Rule::kTraining},
    {"peft_version", Rule::kTraining},
    {"qalora_group_size", Rule::kTraining},
    {"revision", Rule::kTraining},
    {"runtime_config", Rule::kTraining},
    {"alora_invocation_tokens", Rule::kEmpty},
    {"alpha_pattern", Rule::kEmpty},
    {"arrow_config", Rule::kEmpty},
    {"corda_config", Rule::kEmpty},
    {"eva_config", Rule::kEmpty},
    {"exclude_modules", Rule::kEmpty},
    {"fan_in_fan_out", Rule::kEmpty},
    {"layer_replication", Rule::kEmpty},
    {"layers_pattern", Rule::kEmpty},
    {"layers_to_transform", Rule::kEmpty},
    {"lora_bias", Rule::kEmpty},
    {"lora_ga_config", Rule::kEmpty},
    {"megatron_config", Rule::kEmpty},
    {"modules_to_save", Rule::kEmpty},
    {"rank_pattern", Rule::kEmpty},
    {"target_parameters", Rule::kEmpty},
    {"trainable_token_indices", Rule::kEmpty},
    {"use_bdlora", Rule::kEmpty},
    {"use_dora", Rule::kEmpty},
    {"use_qalora", Rule::kEmpty},
    {"use_rslora", Rule::kEmpty},
};

absl::Status Refuse(std::string_view option, const std::string& what) {
  return absl::InvalidArgumentError(Cat("adapter_config.json: ", option, ": ", what));
}

bool IsEmpty(const Json& value) {
  if (value.is_null()) return true;
  if (const bool* flag = value.boolean()) return !*flag;
  if (const Json::Array* items = value.array()) return items->empty();
  if (const Json::Object* members = value.object()) return members->empty();
  return false;
}

absl::StatusOr<std::string> Text(const Json& root, std::string_view option) {
  const Json* value = root.Find(option);
  if (value == nullptr || value->string() == nullptr) return Refuse(option, "a text is wanted");
  return *value->string();
}

absl::Status ReadTargets(const Json& root, PeftConfig* config) {
  const Json* value = root.Find("target_modules");
  if (value == nullptr) return Refuse("target_modules", "missing");
  if (const std::string* word = value->string()) {
    if (*word != "all-linear") {
      return Refuse("target_modules", Cat(value->Describe(),
                                          ": patterns are not taken; list the "
                                          "modules, or \"all-linear\""));
    }
    config->target_modules = LlamaLinears();
    return absl::OkStatus();
  }
  if (value->array() == nullptr || value->array()->empty()) {
    return Refuse("target_modules", "a list of module names is wanted");
  }
  std::vector<std::string> named;
  for (const Json& item : *value->array()) {
    const std::string* name = item.string();
    const auto& linears = LlamaLinears();
    if (name == nullptr || std::find(linears.begin(), linears.end(), *name) == linears.end()) {
      return Refuse("target_modules", Cat(item.Describe(),
                                          " is no linear of a llama layer (q_proj, k_proj, v_proj, "
                                          "o_proj, gate_proj, up_proj, down_proj)"));
    }
    if (std::find(named.begin(), named.end(), *name) != named.end()) {
      return Refuse("target_modules", Cat(item.Describe(), " is given twice"));
    }
    named.push_back(*name);
  }
  for (const std::string& linear : LlamaLinears()) {
    if (std::find(named.begin(), named.end(), linear) != named.end()) {
      config->target_modules.push_back(linear);
    }
  }
  return absl::OkStatus();
}

// Some initialisations change the base's weights too: such an adapter is a difference to another
// base than the one that it names.
absl::Status CheckInitialisation(const Json& root) {
  const Json* value = root.Find("init_lora_weights");
  if (value == nullptr || value->is_null() || value->boolean() != nullptr) return absl::OkStatus();
  if (value->string() != nullptr &&
      (*value->string() == "gaussian" || *value->string() == "orthogonal")) {
    return absl::OkStatus();
  }
  return Refuse(
      "init_lora_weights",
      Cat(value->Describe(), " may change the base's weights; convert the adapter first"));
}

}  // namespace

const std::vector<std::string>& LlamaLinears() {
  static const std::vector<std::string> linears = {"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                                   "gate_proj", "up_proj", "down_proj"};
  return linears;
}

absl::StatusOr<PeftConfig> ParsePeftConfig(std::string_view text) {
  auto root = ParseJson(text, {});
  if (!root.ok()) {
    return absl::InvalidArgumentError(Cat("adapter_config.json: ", root.status().message()));
  }
  if (root->object() == nullptr) {
    return absl::InvalidArgumentError("adapter_config.json: no object");
  }
  std::vector<std::string> known;
  for (const Option& option : kOptions) known.emplace_back(option.name);
  for (const auto& [name, value] : *root->object()) {
    const auto* option = std::find_if(std::begin(kOptions), std::end(kOptions),
                                      [&key = name](const Option& o) { return o.name == key; });
    if (option == std::end(kOptions)) {
      const std::string suggestion = Suggest(name, known);
      return Refuse(
          Quoted(name),
          Cat("unknown option", suggestion.empty() ? "" : Cat("; did you mean ", suggestion, "?")));
    }
    if (option->rule == Rule::kEmpty && !IsEmpty(value)) {
      return Refuse(name, Cat(value.Describe(), " is not supported; leave it empty"));
    }
  }

  PeftConfig config;
  ASSIGN_OR_RETURN(const std::string peft_type, Text(*root, "peft_type"));
  if (peft_type != "LORA") return Refuse("peft_type", "only LORA is supported");
  if (const Json* task = root->Find("task_type"); task != nullptr && !task->is_null()) {
    if (task->string() == nullptr || *task->string() != "CAUSAL_LM") {
      return Refuse("task_type", Cat(task->Describe(), " is not CAUSAL_LM"));
    }
  }
  if (const Json* bias = root->Find("bias"); bias != nullptr) {
    if (bias->string() == nullptr || *bias->string() != "none") {
      return Refuse("bias", Cat(bias->Describe(), " is not \"none\""));
    }
  }
  RETURN_IF_ERROR(CheckInitialisation(*root));
  if (const Json* base = root->Find("base_model_name_or_path"); base != nullptr) {
    if (base->string() != nullptr) config.base_model = base->string()->substr(0, 256);
  }
  const Json* rank = root->Find("r");
  if (rank == nullptr || rank->integer() == nullptr || *rank->integer() < 1 ||
      *rank->integer() > kMaxRank) {
    return Refuse("r", Cat(rank == nullptr ? "nothing" : rank->Describe(), " is outside [1, ",
                           kMaxRank, "]"));
  }
  config.rank = static_cast<int>(*rank->integer());
  const Json* alpha = root->Find("lora_alpha");
  double value = 0;
  constexpr double kMaxAlpha = 4096;
  if (alpha == nullptr || !alpha->number(&value) || !std::isfinite(value) || value <= 0 ||
      value > kMaxAlpha) {
    return Refuse("lora_alpha", Cat(alpha == nullptr ? "nothing" : alpha->Describe(),
                                    " is outside (0, ", kMaxAlpha, "]"));
  }
  config.alpha = static_cast<float>(value);
  RETURN_IF_ERROR(ReadTargets(*root, &config));
  return config;
}

}  // namespace cogumi
