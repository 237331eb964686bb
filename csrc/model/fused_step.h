// One new token for each of a few sequences, through the whole model in one call of the kernels.
#pragma once

#include <ATen/core/Tensor.h>

#include "csrc/model/kv_cache.h"
#include "csrc/model/weights.h"
#include "kernels/decode_step.h"

namespace kvfuse {

// Whether `tokens` [batch, T] are such: on the CPU, of a dtype that the kernels have, and of no more
// sequences than a matrix product would need to do better.
bool suits_fused_step(const Gpt2Weights& weights, const at::Tensor& tokens);

// Logits [batch, 1, vocab_size] in the weights' dtype behind `tokens` [batch, 1], which are appended to
// `cache`. The caller has checked that they fit and that the cache is this model's.
at::Tensor fused_step(const Gpt2Weights& weights, const at::Tensor& tokens, KvCache& cache,
                      const OnPhase& on_phase);

}  // namespace kvfuse
