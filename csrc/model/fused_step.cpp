#include "csrc/model/fused_step.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "csrc/model/step_pointers.h"
#include "csrc/ops/cpu_step.h"
#include "csrc/ops/dtype.h"

namespace kvfuse {
namespace {

constexpr std::int64_t kMostSequences = 64;  // beyond it matrix products are no slower (docs/decisions.md)

void check_ids(const at::Tensor& tokens, std::int64_t vocab_size) {
  const auto* ids = tokens.const_data_ptr<std::int64_t>();
  for (std::int64_t b = 0; b < tokens.numel(); ++b)
    if (ids[b] < 0 || ids[b] >= vocab_size)
      throw std::invalid_argument("Gpt2::forward: expected tokens in [0, " + std::to_string(vocab_size) +
                                  "), got " + std::to_string(ids[b]));
}

}  // namespace

bool suits_fused_step(const Gpt2Weights& weights, const at::Tensor& tokens) {
  return tokens.dim() == 2 && tokens.size(1) == 1 && tokens.size(0) <= kMostSequences &&
         weights.device().is_cpu() && ops::to_dtype(weights.dtype()).has_value() &&
         !(at::GradMode::is_enabled() && weights.token_embedding.requires_grad());
}

at::Tensor fused_step(const Gpt2Weights& weights, const at::Tensor& tokens, KvCache& cache,
                      const OnPhase& on_phase) {
  const at::Tensor contiguous = tokens.contiguous();
  check_ids(contiguous, weights.config.vocab_size);
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
