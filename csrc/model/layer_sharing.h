// Cross-layer sharing: the layers of a group attend to the keys and values of its first, the owner. The
// others borrow: they compute queries alone.
#pragma once

#include "csrc/model/weights.h"

namespace kvfuse {

// `weights` as `strategy` runs them: a borrowing layer keeps only the query rows of its fused QKV projection,
// or takes its owner's if its q_alignment is kCopy. Views of the same memory: nothing is copied. Packed
// weights (packed_weights.h) need an n_embd of whole panels.
// Throws std::invalid_argument if the weights share layers already, if groups are smaller than 1, or if
// q_alignment is kFit, which takes fit_shared_layers.
Gpt2Weights with_shared_layers(Gpt2Weights weights, const Strategy& strategy);

}  // namespace kvfuse
