// What of a run identifies its measurements and stands in every record, from the runner and from Python
// alike.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "csrc/model/config.h"
#include "csrc/model/layer_fit.h"
#include "csrc/model/overflow_policy.h"
#include "csrc/records/record.h"

namespace kvfuse {

// The tokens on which versions fit layers to each other.
struct CalibrationFacts {
  std::optional<std::string> path;    // none: drawn uniformly from the seed
  std::optional<std::string> sha256;  // of the file
  std::int64_t tokens = 0;
};

struct RunFacts {
  std::string model_name;  // a preset, or "custom"
  ModelConfig model;
  std::string dtype;                   // as a configuration names it
  std::optional<std::string> weights;  // absent: random
  Transforms transforms;
  c10::Device device = c10::kCPU;
  bool cuda_graph = false;  // on CUDA
  bool overlap_kernels = false;
  std::optional<std::int64_t> prompt_length;  // absent: there is no prompt
  std::int64_t batch_size = 1;
  std::int64_t seed = 42;
  std::optional<std::int64_t> memory_budget;    // bytes
  std::optional<CalibrationFacts> calibration;  // if a version of the run needs it
  std::optional<std::string> python_version;    // absent: no Python is involved
};

// What every case of the run begins with: equal cases of two runs are the same measurement.
json case_fields(const RunFacts& run, std::string_view benchmark, const Strategy& strategy);

// The metadata of every record. `fits`: those of a strategy that fits its borrowers.
json metadata_fields(const RunFacts& run, const Strategy& strategy, std::span<const LayerFit> fits);

// The model's shape and the strategy's flags under their reference names.
json model_config_json(const ModelConfig& config, const Strategy& strategy);

// version, version_description and the strategy's choices, also under their reference names.
json strategy_json(const Strategy& strategy);

// As cases and results hold it.
json overflow_json(const OverflowPolicy& policy);

}  // namespace kvfuse
