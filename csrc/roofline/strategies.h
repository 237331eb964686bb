// The six mixed-precision strategies: which operator runs in which format.
#pragma once

#include <string_view>
#include <vector>

#include "csrc/roofline/hardware.h"
#include "csrc/roofline/operators.h"

namespace kvfuse::roofline {

struct MixedPrecision {
  std::string_view name;
  std::string_view description;
  OperatorPrecisions precisions;

  // The most that any format used is quoted to lose, in per cent.
  double quoted_loss_pct() const;
  // Formats that operators with weights or attention use and `hardware` does not compute in. A cache may be
  // kept in any format.
  std::vector<Precision> not_native(const Hardware& hardware) const;
};

// fp16_baseline, fp8_balanced, int4_max_speed, nvfp4_blackwell, nvfp4_long_context, quality_first. In all of
// them norms, softmax, activation functions, residuals, embeddings and positions stay in 16 bits, as does the
// output head, which quantised checkpoints leave alone.
const std::vector<MixedPrecision>& mixed_precisions();

// Throws std::invalid_argument that lists the names and the nearest.
const MixedPrecision& find_mixed_precision(std::string_view name);
std::vector<std::string> mixed_precision_names();

}  // namespace kvfuse::roofline
