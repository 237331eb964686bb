#include "benchmark/shape.h"

#include <set>
#include <utility>

#include "benchmark/stages.h"
#include "csrc/versions/registry.h"

namespace kvfuse::bench {

roofline::TransformerShape transformer_shape(const BenchConfig& config, const Strategy& strategy) {
  const ModelConfig& model = config.model;
  const std::int64_t bytes = element_bytes(config.dtype);
  return {.n_layer = model.n_layer,
          .borrowing_layers = model.n_layer - owning_layers(model.n_layer, strategy.sharing_group),
          .n_embd = model.n_embd,
          .vocab_size = model.vocab_size,
          .weight_bytes = model.weight_bytes(strategy, bytes),
          .element_bytes = bytes,
          .kv_bytes_per_token = kv_bytes_per_token(model, strategy, bytes)};
}

std::vector<const Strategy*> measured_strategies(const BenchConfig& config,
                                                 const std::vector<std::string>& benchmarks) {
  std::vector<const Strategy*> strategies;
  bool by_version = false;
  for (const std::string& benchmark : benchmarks) {
    if (benchmark == "roofline")
      for (const std::string& name : config.profile_stages) strategies.push_back(find_stage(name).strategy);
    else
      by_version = true;
  }
  if (by_version)
    for (const std::string& version : config.versions) strategies.push_back(&find_version(version));
  return strategies;
}

std::int64_t resident_weight_bytes(const BenchConfig& config,
                                   const std::vector<const Strategy*>& strategies) {
  const std::int64_t bytes = element_bytes(config.dtype);
  const std::int64_t position_table = config.model.block_size * config.model.n_embd * bytes;
  std::int64_t total = 0;
  std::set<std::pair<WeightDtype, int>> counted;
  for (const Strategy* strategy : strategies) {
    const bool quantised = strategy->weight_dtype != WeightDtype::kModel;
    if (!counted.emplace(strategy->weight_dtype, quantised ? strategy->sharing_group : 1).second) continue;
    total += quantised ? config.model.weight_bytes(*strategy, bytes) + position_table
                       : config.model.parameter_count() * bytes;
  }
  return total;
}

}  // namespace kvfuse::bench
