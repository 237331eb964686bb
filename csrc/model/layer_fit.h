// Cross-layer sharing whose borrowers are fitted: a borrower's keys and values are taken for a linear map of
// its owner's, head by head. The map is folded into the borrower's query and output projections, so that
// decoding costs nothing more.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "csrc/model/weights.h"

namespace kvfuse {

// What the maps of a borrower leave over: the root of the squared error's share in the squared deviation of
// its own rows from their mean (for values of a model without biases: from zero). 0 is exact; 1: the owner's
// rows tell nothing.
struct LayerFit {
  std::int64_t layer = 0;
  std::int64_t owner = 0;
  double k_error = 0;
  double v_error = 0;
};

struct FittedLayers {
  Gpt2Weights weights;
  std::vector<LayerFit> fits;  // of every borrower, in order
};

// `weights` as with_shared_layers shares them for a `strategy` whose q_alignment is kFit. The maps are least
// squares, with a ridge, over the keys and values that the unshared model makes of `tokens`: int64 [count] on
// the weights' device, run in windows of block_size one after the other, the last one shorter.
// Throws std::invalid_argument if there are no tokens, or keys or values are not finite.
FittedLayers fit_shared_layers(const Gpt2Weights& weights, const Strategy& strategy,
                               const at::Tensor& tokens);

}  // namespace kvfuse
