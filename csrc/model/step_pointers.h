// Weights and caches as the kernels of a whole decode step take them.
#pragma once

#include <vector>

#include "csrc/model/kv_cache.h"
#include "csrc/model/weights.h"
#include "kernels/decode_step.h"

namespace kvfuse {

// They point into the tensors, which must outlive them.
std::vector<Gpt2LayerPointers> layer_pointers(const Gpt2Weights& weights);
std::vector<CacheView> cache_views(const KvCache& cache, const Gpt2Weights& weights);

// What a step needs to know of the model and its sequences, but for where tokens, logits and workspace are.
// `layers` and `caches` are the above.
DecodeStepParams step_params(const Gpt2Weights& weights, const KvCache& cache,
                             const std::vector<Gpt2LayerPointers>& layers,
                             const std::vector<CacheView>& caches);

}  // namespace kvfuse
