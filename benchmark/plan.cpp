#include "benchmark/plan.h"

#include <algorithm>
#include <cstdio>
#include <optional>

#include "benchmark/shape.h"
#include "benchmark/stages.h"
#include "csrc/roofline/memory_need.h"
#include "csrc/versions/registry.h"

namespace kvfuse::bench {
namespace {

std::string megabytes(std::int64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f", static_cast<double>(bytes) / 1e6);
  return text;
}

// The T at which a benchmark measures; none if it has no such length.
std::vector<std::int64_t> lengths_of(const std::string& benchmark, const BenchConfig& config) {
  if (benchmark == "perplexity") return {};
  if (benchmark == "per_phase_breakdown" || benchmark == "max_batch_capacity") return {config.T_star};
  return config.T_values;
}

std::string runs_of(const std::string& benchmark, const BenchConfig& config) {
  if (benchmark != "latency_vs_T" && benchmark != "roofline") return "1";
  return std::to_string(config.num_warmup_runs) + " + " + std::to_string(config.num_measure_runs);
}

// What is measured, and the memory it needs beside the weights.
struct Planned {
  std::string benchmark, name, length;
  roofline::MemoryNeed need;  // of a sequence
  std::int64_t batch = 1;
  bool batch_is_free = true;
};

Planned planned_version(const std::string& benchmark, const BenchConfig& config, const std::string& version,
                        std::optional<std::int64_t> T) {
  const Strategy& strategy = find_version(version);
  const roofline::TransformerShape shape = transformer_shape(config, strategy);
  if (T) {
    // Beyond block_size memory grows no more, but what a slide runs again may be more than the prompt.
    const std::int64_t block_size = config.model.block_size;
    const bool slides = config.overflow == Overflow::kSlide && config.prompt_length + *T > block_size;
    const std::int64_t pass =
        slides ? std::max(config.prompt_length, config.overflow_policy().keep - 1) : config.prompt_length;
    const std::int64_t longest = std::min(config.prompt_length + *T - 1, block_size);
    return {benchmark, version, std::to_string(*T),
            roofline::generation_memory(shape, strategy.use_cache, pass, longest + 1 - pass,
                                        slides ? roofline::kAllAtOnce : prompts_at_once(pass)),
            config.batch_size};
  }
  // Without a T a window of the whole block_size is scored.
  return {benchmark,
          version,
          "-",
          roofline::scoring_memory(shape, strategy.use_cache && config.autoregressive,
                                   config.model.block_size - 1),
          config.autoregressive ? config.batch_size : 1,
          /*batch_is_free=*/false};
}

// A cache has room for the token of a decode stage in any case.
Planned planned_stage(const BenchConfig& config, const Stage& stage) {
  const bool cached = stage.strategy->use_cache;
  return {"roofline", stage.name(), "-",
          roofline::generation_memory(transformer_shape(config, *stage.strategy), cached, config.profile_P,
                                      cached || stage.decode ? 2 : 1, roofline::kAllAtOnce),
          config.batch_size};
}

// `weights`: bytes that the run holds of them; `limit_bytes`: of all memory.
std::vector<std::string> row_of(const Planned& planned, const BenchConfig& config, std::int64_t weights,
                                std::int64_t limit_bytes) {
  const roofline::MemoryNeed& need = planned.need;
  const std::int64_t total = weights + need.bytes(planned.batch);
  return {planned.benchmark,
          planned.name,
          planned.length,
          runs_of(planned.benchmark, config),
          megabytes(weights),
          megabytes(planned.batch * need.cache),
          megabytes(need.activations(planned.batch)),
          megabytes(total),
          total <= limit_bytes ? "yes" : "no",
          planned.batch_is_free ? std::to_string(need.most_sequences(limit_bytes - weights)) : "-"};
}

// What autograd keeps is PyTorch's choice.
std::vector<std::string> unpredicted_row(const std::string& benchmark, const std::string& version,
                                         const BenchConfig& config) {
  return {benchmark, version, std::to_string(config.T_star), runs_of(benchmark, config), "-", "-", "-", "-",
          "-",       "-"};
}

}  // namespace

Table plan(const BenchConfig& config, const std::vector<std::string>& benchmarks, std::int64_t limit_bytes) {
  Table table{.headers = {"benchmark", "version", "T", "runs", "weights MB", "cache MB", "activations MB",
                          "total MB", "fits", "largest batch"},
              .rows = {}};
  const std::int64_t weights = resident_weight_bytes(config, measured_strategies(config, benchmarks));
  for (const std::string& benchmark : benchmarks) {
    if (benchmark == "roofline") {
      for (const std::string& name : config.profile_stages)
        table.rows.push_back(row_of(planned_stage(config, find_stage(name)), config, weights, limit_bytes));
      continue;
    }
    std::vector<std::optional<std::int64_t>> lengths;
    for (const std::int64_t T : lengths_of(benchmark, config)) lengths.emplace_back(T);
    if (lengths.empty()) lengths.emplace_back();
    for (const std::optional<std::int64_t> T : lengths)
      for (const std::string& version : config.versions)
        if (benchmark == "max_batch_capacity" && config.training)
          table.rows.push_back(unpredicted_row(benchmark, version, config));
        else
          table.rows.push_back(
              row_of(planned_version(benchmark, config, version, T), config, weights, limit_bytes));
  }
  return table;
}

Table version_table() {
  Table table{.headers = {"version", "use_cache", "kv_cache_dtype", "sharing_group", "q_alignment",
                          "weight_dtype", "description"},
              .rows = {}};
  for (const Strategy& version : versions()) {
    const bool cached = version.use_cache;
    const bool shared = version.sharing_group > 1;
    table.rows.push_back({std::string(version.name), cached ? "yes" : "no",
                          !cached                                         ? "-"
                          : version.kv_cache_dtype == KvCacheDtype::kInt8 ? "int8"
                                                                          : "model",
                          cached ? std::to_string(version.sharing_group) : "-",
                          shared ? q_alignment_name(version.q_alignment) : "-",
                          weight_dtype_name(version.weight_dtype), std::string(version.description)});
  }
  return table;
}

}  // namespace kvfuse::bench
