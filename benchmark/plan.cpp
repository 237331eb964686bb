#include "benchmark/plan.h"

#include <cstdio>

#include "csrc/versions/registry.h"

namespace kvfuse::bench {
namespace {

std::string megabytes(std::int64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f", static_cast<double>(bytes) / 1e6);
  return text;
}

}  // namespace

Table plan(const BenchConfig& config, const std::vector<std::string>& benchmarks) {
  Table table{.headers = {"benchmark", "version", "T", "runs", "weights MB", "cache MB"}, .rows = {}};
  const std::string weights = megabytes(config.model.parameter_count() * element_bytes(config.dtype));
  for (const std::string& benchmark : benchmarks) {
    const bool at_T_star = benchmark == "per_phase_breakdown" || benchmark == "max_batch_capacity";
    const bool per_length = benchmark != "perplexity";
    const std::vector<std::int64_t> lengths = at_T_star    ? std::vector<std::int64_t>{config.T_star}
                                              : per_length ? config.T_values
                                                           : std::vector<std::int64_t>{0};
    const std::string runs = benchmark == "latency_vs_T" ? std::to_string(config.num_warmup_runs) + " + " +
                                                               std::to_string(config.num_measure_runs)
                                                         : "1";
    for (const std::int64_t T : lengths)
      for (const std::string& version : config.versions) {
        const std::int64_t capacity = per_length ? config.prompt_length + T - 1 : config.model.block_size - 1;
        table.rows.push_back({benchmark, version, per_length ? std::to_string(T) : "-", runs, weights,
                              megabytes(config.batch_size * capacity *
                                        kv_bytes_per_token(config.model, find_version(version),
                                                           element_bytes(config.dtype)))});
      }
  }
  return table;
}

Table version_table() {
  Table table{
      .headers = {"version", "use_cache", "kv_cache_dtype", "sharing_group", "q_alignment", "description"},
      .rows = {}};
  for (const Strategy& version : versions()) {
    const bool cached = version.use_cache;
    const bool shared = version.sharing_group > 1;
    table.rows.push_back({std::string(version.name), cached ? "yes" : "no",
                          !cached                                         ? "-"
                          : version.kv_cache_dtype == KvCacheDtype::kInt8 ? "int8"
                                                                          : "model",
                          cached ? std::to_string(version.sharing_group) : "-",
                          !shared               ? "-"
                          : version.q_alignment ? "yes"
                                                : "no",
                          std::string(version.description)});
  }
  return table;
}

}  // namespace kvfuse::bench
