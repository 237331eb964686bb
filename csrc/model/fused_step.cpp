#include "csrc/model/fused_step.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <vector>

#include "csrc/model/step_pointers.h"
#include "csrc/ops/cpu_step.h"
#include "csrc/ops/dtype.h"

namespace kvfuse {
namespace {

constexpr std::int64_t kMostSequences = 64;  // beyond it matrix products are no slower (docs/decisions.md)

}  // namespace

bool suits_fused_step(const Gpt2Weights& weights, const at::Tensor& tokens) {
  return tokens.dim() == 2 && tokens.size(1) == 1 && tokens.size(0) <= kMostSequences &&
         weights.device().is_cpu() && ops::to_dtype(weights.dtype()).has_value() &&
         !(at::GradMode::is_enabled() && weights.token_embedding.requires_grad());
}

at::Tensor fused_step(const Gpt2Weights& weights, const at::Tensor& tokens, KvCache& cache,
                      const OnPhase& on_phase) {
  const at::Tensor contiguous = tokens.contiguous();
  const std::vector<Gpt2LayerPointers> layers = layer_pointers(weights);
  const std::vector<CacheView> caches = cache_views(cache, weights);
  at::Tensor logits =
      at::empty({tokens.size(0), 1, weights.config.vocab_size}, weights.options().dtype(at::kFloat));
  DecodeStepParams params = step_params(weights, cache, layers, caches);
  params.tokens = contiguous.mutable_data_ptr<std::int64_t>();
  params.logits = logits.mutable_data_ptr<float>();
  ops::cpu_decode_step(params, on_phase);
  cache.advance(1);
  return logits.to(weights.dtype());
}

}  // namespace kvfuse
