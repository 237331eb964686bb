// Exact rewritings of the attention weights under which a quantised cache loses less. The model computes the
// same function; only what it caches changes. Folded in once, at load: decoding costs nothing more.
#pragma once

#include "csrc/model/weights.h"

namespace kvfuse {

// `weights` with `transforms` folded into their projections, computed in float64 and rounded once. A layer
// that borrows keys and values gets its owner's. The rotations are drawn from a fixed seed. What "typical
// size" means is taken from the weights: the norm of the channel's row, weighted by the gain of the layer
// norm before.
Gpt2Weights fold_transforms(Gpt2Weights weights, const Transforms& transforms);

}  // namespace kvfuse
