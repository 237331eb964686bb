// What a run measures, and a configured model under a version as the closed forms of csrc/roofline take it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "benchmark/config.h"
#include "csrc/roofline/cost.h"

namespace kvfuse::bench {

roofline::TransformerShape transformer_shape(const BenchConfig& config, const Strategy& strategy);

// What the benchmarks of a run measure: those of its versions, those of its stages, or both. In the order of
// the configuration, with repetitions.
std::vector<const Strategy*> measured_strategies(const BenchConfig& config,
                                                 const std::vector<std::string>& benchmarks);

// Bytes of the weights that such a run holds: of models in the model's dtype once, as they share them, and of
// each way of quantising them.
std::int64_t resident_weight_bytes(const BenchConfig& config, const std::vector<const Strategy*>& strategies);

}  // namespace kvfuse::bench
