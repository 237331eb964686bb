// What a run measures: built-in defaults, overridden by a YAML file, overridden by the command line.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "benchmark/errors.h"
#include "benchmark/yaml_reader.h"
#include "csrc/model/config.h"
#include "csrc/model/overflow_policy.h"
#include "kernels/dtype.h"

namespace kvfuse::bench {

enum class Device { kAuto, kCpu, kCuda };

// Members are named after their keys. Paths are relative to the working directory.
struct BenchConfig {
  std::string model_name = "gpt2";  // a preset, or "custom"
  ModelConfig model = preset_config("gpt2");
  DType dtype = DType::kFloat32;
  std::int64_t prompt_length = 32;
  std::int64_t batch_size = 1;
  std::vector<std::int64_t> T_values = {32, 64, 128, 256, 512};
  std::int64_t T_star = 64;
  std::int64_t num_warmup_runs = 3;
  std::int64_t num_measure_runs = 5;
  std::int64_t seed = 42;
  std::string log_file = "results.jsonl";
  std::vector<std::string> versions = {"v0", "v1"};
  Device device = Device::kAuto;
  bool cuda_graph = true;  // on CUDA: a decode step is one captured graph of fused kernels
  bool overlap_kernels = false;
  Transforms transforms;
  std::optional<std::string> weights;  // absent: seeded random weights
  bool strict_weights = false;
  std::optional<std::string> dataset;
  std::optional<std::string> vocabulary;  // a folder with GPT-2's files: then the dataset is text
  bool divergence = false;
  std::optional<std::string> calibration;  // as dataset, for versions that fit layers; absent: random tokens
  std::int64_t calibration_tokens = 4096;
  std::optional<std::int64_t> memory_budget;  // bytes
  std::optional<std::int64_t> num_threads;
  std::optional<std::int64_t> max_tokens;
  std::optional<std::int64_t> document_separator;  // a token; absent: the tokens are one document
  Overflow overflow = Overflow::kError;
  std::optional<std::int64_t> overflow_keep;  // absent: half of block_size
  std::int64_t sink_tokens = 4;
  bool autoregressive = false;
  bool training = false;     // capacity: batches of a training step, not of a generation
  double temperature = 0.0;  // 0: greedy
  std::int64_t top_k = 0;    // 0: all
  double top_p = 1.0;
  std::vector<std::string> profile_stages = {"v0_prefill", "v1_prefill", "v1_decode"};  // as Stage::name()
  std::int64_t profile_P = 512;  // of a model with fewer positions: all but one of them

  OverflowPolicy overflow_policy() const {
    return {.kind = overflow,
            .keep = overflow_keep.value_or((model.block_size + 1) / 2),
            .sink = overflow == Overflow::kSink ? sink_tokens : 0};
  }

  // Where each value that is not a default was given: key -> "file:line:col" or "--flag".
  std::map<std::string, std::string> origin;
};

// A configuration on its way: problems are collected, not thrown, so that one run shows them all.
struct ConfigDraft {
  BenchConfig config;
  std::optional<std::string> pretrained;
  std::optional<ModelConfig> model_config;  // used if `pretrained` is unset
  std::vector<std::string> problems;
  std::set<std::string> failed;  // keys with a problem: cross checks pass over them
  bool readable = true;          // false: the file could not be read to its end
};

ConfigDraft read_config_file(const std::string& path);
ConfigDraft read_config_text(const std::string& text, const std::string& name);

// Sets a key from a command line flag, by the same rules as in a file.
void override_key(ConfigDraft& draft, const std::string& key, const std::string& flag, const YamlNode& value);

// Chooses the model and runs the checks across keys. Throws ConfigError with every problem.
BenchConfig finish(ConfigDraft draft);

// The checks across keys alone. Throws ConfigError.
void check(const BenchConfig& config);

// read_config_file and finish.
BenchConfig load_config(const std::string& path);

}  // namespace kvfuse::bench
