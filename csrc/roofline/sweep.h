// Many points at once.
#pragma once

#include <string>
#include <vector>

#include "csrc/roofline/gemm.h"
#include "csrc/roofline/pass.h"

namespace kvfuse::roofline {

inline constexpr std::int64_t kMostSweepPoints = 1'000'000;

// Every product in every format on every machine, in that order of nesting: machines outermost.
struct GemmPoint {
  std::string hardware;
  GemmPrediction prediction;
};
std::vector<GemmPoint> sweep_gemm(const std::vector<Hardware>& machines, const std::vector<GemmShape>& shapes,
                                  const std::vector<Precision>& precisions, const GemmOptions& options = {});

// Passes of models: every combination, machines outermost, contexts innermost.
struct ModelSweep {
  std::vector<Hardware> machines;
  std::vector<ModelShape> models;
  std::vector<std::string> strategies;  // of mixed_precisions()
  std::vector<std::int64_t> batches;
  std::vector<std::int64_t> contexts;  // tokens in the cache at a decode step, or of the prompt
  bool prefill = false;
  PassOptions options;
};

struct ModelPoint {
  std::string hardware;
  std::string model;
  std::string strategy;
  std::int64_t batch = 1;
  std::int64_t context = 1;
  double time_ms = 0;
  double tokens_per_s = 0;  // that the pass takes in or makes
  double flops = 0;
  double bytes = 0;
  double ai = 0;
  Bound bound = Bound::kMemory;
  double weight_bytes = 0;  // resident
  double kv_cache_bytes = 0;
  bool fits_memory = true;
};

// Both throw std::invalid_argument on an empty list, on more than kMostSweepPoints points, with their number,
// and on any point that cannot be.
std::vector<ModelPoint> sweep_models(const ModelSweep& sweep);

}  // namespace kvfuse::roofline
