// A configured model under a version as the closed forms of csrc/roofline take it.
#pragma once

#include "benchmark/config.h"
#include "csrc/roofline/cost.h"

namespace kvfuse::bench {

roofline::TransformerShape transformer_shape(const BenchConfig& config, const Strategy& strategy);

}  // namespace kvfuse::bench
