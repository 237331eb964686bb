#include "benchmark/config.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <limits>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "benchmark/config_rules.h"
#include "benchmark/stages.h"
#include "benchmark/text.h"
#include "benchmark/yaml_value.h"
#include "csrc/versions/registry.h"

namespace kvfuse::bench {
namespace {

constexpr std::int64_t kMostTokens = 1 << 20;  // of a prompt or a generation
constexpr std::size_t kMostListed = 1000;
constexpr std::size_t kMostProblems = 100;

std::vector<std::string> version_names() {
  std::vector<std::string> names;
  for (const Strategy& version : versions()) names.emplace_back(version.name);
  return names;
}

void read_dtype(const YamlValue& value, ConfigDraft& draft) {
  constexpr std::array kDtypes = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};
  std::vector<std::string> names;
  for (const DType dtype : kDtypes) names.emplace_back(dtype_name(dtype));
  std::string name;
  if (!value.choice(names, name)) return;
  draft.config.dtype =
      kDtypes[static_cast<std::size_t>(std::find(names.begin(), names.end(), name) - names.begin())];
}

void read_device(const YamlValue& value, ConfigDraft& draft) {
  std::string name;
  if (value.choice({"auto", "cpu", "cuda"}, name))
    draft.config.device = name == "auto" ? Device::kAuto : name == "cpu" ? Device::kCpu : Device::kCuda;
}

void read_overflow(const YamlValue& value, ConfigDraft& draft) {
  std::vector<std::string> names;
  for (const OverflowName& known : kOverflowNames) names.emplace_back(known.name);
  std::string name;
  if (value.choice(names, name)) draft.config.overflow = find_overflow(name);
}

// A list without repetitions; `read` reads one of its values.
template <typename T, typename Read>
void read_list(const YamlValue& value, std::vector<T>& target, Read read) {
  std::vector<T> result;
  for (const YamlValue& item : value.list(kMostListed)) {
    T entry{};
    if (!read(item, entry)) continue;
    if (std::find(result.begin(), result.end(), entry) != result.end())
      item.fail("each value once");
    else
      result.push_back(std::move(entry));
  }
  if (!result.empty()) target = std::move(result);
}

void read_transforms(const YamlValue& value, ConfigDraft& draft) {
  std::vector<std::string> known;
  for (const TransformName& row : transform_names()) known.emplace_back(row.name);
  Transforms chosen;
  if (value.is_null()) {
    draft.config.transforms = chosen;
    return;
  }
  for (const YamlValue& item : value.list(kMostListed)) {
    std::string name;
    if (!item.choice(known, name)) continue;
    for (const TransformName& row : transform_names())
      if (row.name == name && std::exchange(chosen.*row.flag, true)) item.fail("each value once");
  }
  draft.config.transforms = chosen;
}

// The ranges are those of check_model_config: each size is tried beside sizes of one.
void read_model_size(const YamlValue& value, std::int64_t ModelConfig::*field, ModelConfig& model) {
  std::int64_t size = 0;
  if (!value.integer(1, std::int64_t{1} << 31, size)) return;
  ModelConfig probe{.n_layer = 1, .n_head = 1, .n_embd = 1, .block_size = 1, .vocab_size = 1};
  probe.*field = size;
  if (field == &ModelConfig::n_head) probe.n_embd = size;  // must be a multiple
  try {
    check_model_config(probe);
    model.*field = size;
  } catch (const std::invalid_argument& error) {
    const std::string_view text = error.what();  // "model_config: expected 1 <= n_head <= ..., got ..."
    const std::size_t begin = text.find("expected ") + 9;
    value.fail(text.substr(begin, text.rfind(", got ") - begin));
  }
}

void read_model_config(const YamlValue& value, ConfigDraft& draft) {
  static const std::map<std::string, std::int64_t ModelConfig::*> kSizes = {
      {"n_layer", &ModelConfig::n_layer},
      {"n_head", &ModelConfig::n_head},
      {"n_embd", &ModelConfig::n_embd},
      {"block_size", &ModelConfig::block_size},
      {"vocab_size", &ModelConfig::vocab_size}};
  if (value.is_null()) return draft.model_config.reset();
  std::vector<std::string> known = {"dropout", "bias"};
  for (const auto& [name, field] : kSizes) known.push_back(name);
  ModelConfig model;
  for (const YamlValue& entry : value.mapping(known)) {
    const std::string name = entry.key().substr(entry.key().find('.') + 1);
    if (name == "dropout")
      entry.number(0.0, 0.999, model.dropout);
    else if (name == "bias")
      entry.boolean(model.bias);
    else
      read_model_size(entry, kSizes.at(name), model);
  }
  draft.model_config = model;
}

template <typename T, typename Read>
void read_optional(const YamlValue& value, std::optional<T>& target, Read read) {
  T entry{};
  if (value.is_null())
    target.reset();
  else if (read(value, entry))
    target = std::move(entry);
}

auto integer_in(std::int64_t least, std::int64_t most) {
  return [=](const YamlValue& value, std::int64_t& target) { return value.integer(least, most, target); };
}
auto a_path() {
  return [](const YamlValue& value, std::string& target) { return value.path(target); };
}

using Reader = void (*)(const YamlValue&, ConfigDraft&);

// Every key, and how it is read.
const std::map<std::string, Reader>& readers() {
  using V = const YamlValue&;
  using D = ConfigDraft&;
  constexpr std::int64_t kMostSeed = std::numeric_limits<std::int64_t>::max();
  static const std::map<std::string, Reader> kReaders = {
      {"model_config", read_model_config},
      {"dtype", read_dtype},
      {"device", read_device},
      {"cuda_graph", [](V v, D d) { v.boolean(d.config.cuda_graph); }},
      {"overlap_kernels", [](V v, D d) { v.boolean(d.config.overlap_kernels); }},
      {"pretrained",
       [](V v, D d) {
         read_optional(v, d.pretrained,
                       [](V value, std::string& name) { return value.choice(preset_names(), name); });
       }},
      {"prompt_length", [](V v, D d) { v.integer(1, kMostTokens, d.config.prompt_length); }},
      {"batch_size", [](V v, D d) { v.integer(1, 65536, d.config.batch_size); }},
      {"T_values", [](V v, D d) { read_list(v, d.config.T_values, integer_in(1, kMostTokens)); }},
      {"T_star", [](V v, D d) { v.integer(1, kMostTokens, d.config.T_star); }},
      {"num_warmup_runs", [](V v, D d) { v.integer(0, 10000, d.config.num_warmup_runs); }},
      {"num_measure_runs", [](V v, D d) { v.integer(1, 10000, d.config.num_measure_runs); }},
      {"seed", [](V v, D d) { v.integer(0, kMostSeed, d.config.seed); }},
      {"log_file", [](V v, D d) { v.path(d.config.log_file); }},
      {"versions",
       [](V v, D d) {
         read_list(v, d.config.versions,
                   [](V value, std::string& name) { return value.choice(version_names(), name); });
       }},
      {"profile_stages",
       [](V v, D d) {
         read_list(v, d.config.profile_stages, [](V value, std::string& name) {
           if (!value.choice(stage_words(), name)) return false;
           name = find_stage(name).name();
           return true;
         });
       }},
      {"profile_P", [](V v, D d) { v.integer(1, kMostTokens, d.config.profile_P); }},
      {"weights", [](V v, D d) { read_optional(v, d.config.weights, a_path()); }},
      {"transforms", read_transforms},
      {"strict_weights", [](V v, D d) { v.boolean(d.config.strict_weights); }},
      {"vocabulary", [](V v, D d) { read_optional(v, d.config.vocabulary, a_path()); }},
      {"divergence", [](V v, D d) { v.boolean(d.config.divergence); }},
      {"calibration", [](V v, D d) { read_optional(v, d.config.calibration, a_path()); }},
      {"calibration_tokens", [](V v, D d) { v.integer(1, 1000000000, d.config.calibration_tokens); }},
      {"dataset", [](V v, D d) { read_optional(v, d.config.dataset, a_path()); }},
      {"memory_budget",
       [](V v, D d) {
         read_optional(v, d.config.memory_budget,
                       [](V value, std::int64_t& bytes) { return value.byte_size(bytes); });
       }},
      {"num_threads", [](V v, D d) { read_optional(v, d.config.num_threads, integer_in(1, 1024)); }},
      {"max_tokens", [](V v, D d) { read_optional(v, d.config.max_tokens, integer_in(2, 1000000000)); }},
      {"document_separator",
       [](V v, D d) { read_optional(v, d.config.document_separator, integer_in(0, 65535)); }},
      {"overflow", read_overflow},
      {"overflow_keep",
       [](V v, D d) { read_optional(v, d.config.overflow_keep, integer_in(1, kMostTokens)); }},
      {"sink_tokens", [](V v, D d) { v.integer(1, kMostTokens, d.config.sink_tokens); }},
      {"autoregressive", [](V v, D d) { v.boolean(d.config.autoregressive); }},
      {"training", [](V v, D d) { v.boolean(d.config.training); }},
      {"temperature", [](V v, D d) { v.number(0.0, 100.0, d.config.temperature); }},
      {"top_k", [](V v, D d) { v.integer(0, 1 << 24, d.config.top_k); }},
      {"top_p", [](V v, D d) { v.number(1e-6, 1.0, d.config.top_p); }},
  };
  return kReaders;
}

void read_key(ConfigDraft& draft, const std::string& key, const YamlValue& value) {
  const std::size_t before = draft.problems.size();
  readers().at(key)(value, draft);
  draft.config.origin[key] = value.where();
  if (draft.problems.size() > before || value.refused()) draft.failed.insert(key);
}

ConfigDraft read_draft(YamlNode root, const std::string& name, ConfigDraft draft) {
  draft.readable = root.kind == YamlNode::Kind::kMap;
  root.kind = YamlNode::Kind::kMap;
  std::vector<std::string> known;
  for (const auto& [key, reader] : readers()) known.push_back(key);
  for (const YamlValue& entry : YamlValue(root, name, "", draft.problems).mapping(known))
    read_key(draft, entry.key(), entry);
  return draft;
}

[[noreturn]] void raise(std::vector<std::string> problems) {
  if (problems.size() > kMostProblems) {
    const std::size_t more = problems.size() - kMostProblems;
    problems.resize(kMostProblems);
    problems.push_back(fmt::format("and {} more problems", more));
  }
  throw ConfigError(std::move(problems));
}

}  // namespace

ConfigDraft read_config_file(const std::string& path) {
  ConfigDraft draft;
  YamlNode root = read_yaml_file(path, draft.problems);
  return read_draft(std::move(root), path, std::move(draft));
}

ConfigDraft read_config_text(const std::string& text, const std::string& name) {
  ConfigDraft draft;
  YamlNode root = read_yaml(text, name, draft.problems);
  return read_draft(std::move(root), name, std::move(draft));
}

void override_key(ConfigDraft& draft, const std::string& key, const std::string& flag,
                  const YamlNode& value) {
  read_key(draft, key, YamlValue(value, "", flag, draft.problems));
}

BenchConfig finish(ConfigDraft draft) {
  BenchConfig& config = draft.config;
  if (draft.pretrained) {
    config.model_name = *draft.pretrained;
    config.model = preset_config(*draft.pretrained);
  } else if (draft.model_config) {
    config.model_name = "custom";
    config.model = *draft.model_config;
  }
  if (!config.origin.contains("profile_P"))
    config.profile_P = std::clamp<std::int64_t>(config.model.block_size - 1, 1, config.profile_P);
  // A file that was not read to its end lacks keys that the checks would miss.
  if (draft.readable) check_across(config, draft.failed, draft.problems);
  if (!draft.problems.empty()) raise(std::move(draft.problems));
  return std::move(draft.config);
}

void check(const BenchConfig& config) {
  std::vector<std::string> problems;
  check_across(config, {}, problems);
  if (!problems.empty()) raise(std::move(problems));
}

BenchConfig load_config(const std::string& path) { return finish(read_config_file(path)); }

}  // namespace kvfuse::bench
