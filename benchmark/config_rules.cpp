#include "benchmark/config_rules.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string_view>

#include "benchmark/stages.h"
#include "benchmark/text.h"
#include "benchmark/yaml_value.h"
#include "csrc/versions/registry.h"
#include "kernels/head_dims.h"

namespace kvfuse::bench {
namespace {

constexpr std::int64_t kMostGenerations = 1000000;  // of a sweep: days at a second each

// The beginning of a message about `key`: where it stands, if anywhere, and its name.
std::string prefix_of(const BenchConfig& config, const std::string& key) {
  const auto at = config.origin.find(key);
  return message_prefix(at == config.origin.end() ? "" : at->second, key);
}

std::string sum_problem(const BenchConfig& config, const std::string& key, std::int64_t tokens) {
  return fmt::format(
      "{}: expected prompt_length + T <= block_size ({} of {}), got {} + {} = {} (hint: lower prompt_length "
      "or T{})",
      prefix_of(config, key), config.model.block_size, config.model_name, config.prompt_length, tokens,
      config.prompt_length + tokens, key == "T_values" ? ", or see the key overflow" : "");
}

// The keys of `overflow`, which a model may be too small for.
void check_overflow(const BenchConfig& config, std::vector<std::string>& problems) {
  if (config.overflow == Overflow::kError) return;
  const auto prefix = [&](const char* key) { return prefix_of(config, key); };
  const OverflowPolicy policy = config.overflow_policy();
  if (config.prompt_length > config.model.block_size)
    problems.push_back(fmt::format("{}: expected at most block_size ({} of {}) tokens, seen at once, got {}",
                                   prefix("prompt_length"), config.model.block_size, config.model_name,
                                   config.prompt_length));
  if (policy.keep > config.model.block_size)
    problems.push_back(fmt::format("{}: expected at most block_size ({} of {}), got {}",
                                   prefix("overflow_keep"), config.model.block_size, config.model_name,
                                   policy.keep));
  if (config.overflow != Overflow::kSink) return;
  if (policy.sink >= policy.keep)
    problems.push_back(fmt::format("{}: expected fewer than the {} tokens that overflow_keep leaves, got {}",
                                   prefix("sink_tokens"), policy.keep, policy.sink));
  for (const std::string& version : config.versions)
    if (!find_version(version).use_cache)
      problems.push_back(
          fmt::format("{}: expected error or slide beside the version {}, which keeps no cache, got \"sink\" "
                      "(hint: drop {} from versions)",
                      prefix("overflow"), version, version));
}

void check_separator(const BenchConfig& config, std::vector<std::string>& problems) {
  if (config.document_separator && *config.document_separator >= config.model.vocab_size)
    problems.push_back(fmt::format("{}: expected a token below vocab_size ({} of {}), got {}",
                                   prefix_of(config, "document_separator"), config.model.vocab_size,
                                   config.model_name, *config.document_separator));
}

// Only a value that was asked for can be too long: the default follows the model.
void check_profile_length(const BenchConfig& config, std::vector<std::string>& problems) {
  if (!config.origin.contains("profile_P")) return;
  const bool decodes = std::any_of(config.profile_stages.begin(), config.profile_stages.end(),
                                   [](const std::string& name) { return find_stage(name).decode; });
  const std::int64_t tokens = config.profile_P + (decodes ? 1 : 0);
  if (tokens > config.model.block_size)
    problems.push_back(
        fmt::format("{}: expected P{} <= block_size ({} of {}), got {}{} (hint: lower profile_P)",
                    prefix_of(config, "profile_P"), decodes ? " + 1 token of a decode stage" : "",
                    config.model.block_size, config.model_name, config.profile_P, decodes ? " + 1" : ""));
}

void check_calibration(const BenchConfig& config, std::vector<std::string>& problems) {
  if (config.calibration_tokens <= config.model.head_dim())
    problems.push_back(
        fmt::format("{}: expected more than head_dim ({} of {}) tokens, or the maps between layers are "
                    "undetermined, got {}",
                    prefix_of(config, "calibration_tokens"), config.model.head_dim(), config.model_name,
                    config.calibration_tokens));
}

void check_model(const BenchConfig& config, std::vector<std::string>& problems) {
  const std::string prefix = prefix_of(config, "model_config");
  try {
    check_model_config(config.model);
    if (!contains(HeadDims{}, config.model.head_dim()))
      problems.push_back(fmt::format(
          "{}: expected a head_dim (n_embd / n_head) that the kernels support ({}), got {} "
          "/ {} = {} (hint: change n_embd or n_head)",
          prefix, to_text(HeadDims{}), config.model.n_embd, config.model.n_head, config.model.head_dim()));
  } catch (const std::invalid_argument& error) {
    std::string_view text = error.what();
    if (text.starts_with("model_config: ")) text.remove_prefix(14);
    problems.push_back(fmt::format("{}: {}", prefix, text));
  }
}

}  // namespace

void check_across(const BenchConfig& config, const std::set<std::string>& failed,
                  std::vector<std::string>& problems) {
  const auto sound = [&](std::initializer_list<const char*> keys) {
    return std::none_of(keys.begin(), keys.end(), [&](const char* key) { return failed.contains(key); });
  };
  const auto fits = [&](std::int64_t tokens) {
    return config.prompt_length + tokens <= config.model.block_size;
  };
  if (sound({"model_config", "pretrained"})) check_model(config, problems);
  if (sound({"model_config", "pretrained", "prompt_length", "versions", "overflow", "overflow_keep",
             "sink_tokens"}))
    check_overflow(config, problems);
  if (sound({"model_config", "pretrained", "document_separator"})) check_separator(config, problems);
  if (config.overflow == Overflow::kError && !config.T_values.empty() &&
      sound({"model_config", "pretrained", "prompt_length", "T_values", "overflow"})) {
    const std::int64_t longest = *std::max_element(config.T_values.begin(), config.T_values.end());
    if (!fits(longest)) problems.push_back(sum_problem(config, "T_values", longest));
  }
  // The default of T_star may exceed a small model: only a value that was asked for is checked.
  if (sound({"model_config", "pretrained", "prompt_length", "T_star"}) && config.origin.contains("T_star") &&
      !fits(config.T_star))
    problems.push_back(sum_problem(config, "T_star", config.T_star));
  if (sound({"model_config", "pretrained", "profile_P", "profile_stages"}))
    check_profile_length(config, problems);
  if (sound({"model_config", "pretrained", "calibration_tokens"})) check_calibration(config, problems);
  const std::int64_t generations =
      static_cast<std::int64_t>(config.versions.size() * config.T_values.size()) *
      (config.num_warmup_runs + config.num_measure_runs);
  if (sound({"versions", "T_values", "num_warmup_runs", "num_measure_runs"}) &&
      generations > kMostGenerations)
    problems.push_back(
        fmt::format("versions x T_values x runs: expected at most {} generations, got {} (hint: lower "
                    "num_measure_runs or shorten T_values)",
                    kMostGenerations, generations));
}

}  // namespace kvfuse::bench
