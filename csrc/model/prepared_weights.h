// The weights as a version runs them, made once at load.
#pragma once

#include "csrc/model/layer_fit.h"

namespace kvfuse {

// `own` with layers shared as `strategy` says, then with `transforms` folded in, then quantised as it says;
// what none of them changes shares its memory, unless `own` is packed (packed_weights.h): then what changes
// anything but the number of layers that attend to one's keys and values has memory of its own.
// `calibration`, int64 [count] on the weights' device, is used by a strategy that fits its borrowers alone.
// Throws std::invalid_argument like the functions that do the work: with_shared_layers, fit_shared_layers,
// with_quantized_linears.
FittedLayers prepare_weights(const Gpt2Weights& own, const Strategy& strategy, const Transforms& transforms,
                             const at::Tensor& calibration);

}  // namespace kvfuse
