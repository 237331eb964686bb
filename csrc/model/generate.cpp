#include "csrc/model/generate.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <c10/core/InferenceMode.h>

#include <stdexcept>
#include <string>

namespace kvfuse {
namespace {

void check_fits(const Gpt2& model, std::int64_t prompt_length, std::int64_t new_tokens) {
  if (prompt_length + new_tokens > model.config().block_size)
    throw std::invalid_argument("generate: expected prompt + new tokens <= block_size " +
                                std::to_string(model.config().block_size) + ", got " +
                                std::to_string(prompt_length) + " + " + std::to_string(new_tokens));
}

}  // namespace

at::Tensor generate(const Gpt2& model, KvCache* cache, const at::Tensor& prompt, std::int64_t new_tokens,
                    Sampler& sampler, const GenerateHooks& hooks) {
  const c10::InferenceMode inference;
  const std::int64_t prompt_length = prompt.size(1);
  check_fits(model, prompt_length, new_tokens);
  if (cache != nullptr) cache->reset();
  at::Tensor tokens = at::empty({prompt.size(0), prompt_length + new_tokens}, prompt.options());
  tokens.narrow(1, 0, prompt_length).copy_(prompt);
  std::int64_t length = prompt_length;
  for (std::int64_t i = 0; i < new_tokens; ++i) {
    const std::int64_t first = cache == nullptr ? 0 : cache->length();
    const at::Tensor logits =
        model.forward(tokens.narrow(1, first, length - first), cache, LogitsOf::kLastToken, hooks.on_phase);
    tokens.select(1, length++).copy_(sampler.sample(logits.select(1, 0)));
    if (hooks.on_token && !hooks.on_token()) break;
  }
  return tokens.narrow(1, 0, length);
}

at::Tensor generate(const Gpt2& model, KvCache& cache, DecodeGraph& graph, const at::Tensor& prompt,
                    std::int64_t new_tokens, Sampler& sampler, const GenerateHooks& hooks) {
  const c10::InferenceMode inference;
  check_fits(model, prompt.size(1), new_tokens);
  cache.reset();
  const at::Tensor logits = model.forward(prompt, &cache, LogitsOf::kLastToken);
  const at::Tensor first = sampler.sample(logits.select(1, 0)).to(prompt.device());
  graph.start(first);
  std::int64_t steps = 0;
  bool wanted = !hooks.on_token || hooks.on_token();
  for (; wanted && steps + 1 < new_tokens; ++steps) {
    graph.step();
    wanted = !hooks.on_token || hooks.on_token();
  }
  cache.advance(steps);  // the device has counted already
  return at::cat({prompt, first.unsqueeze(1), graph.chosen(steps)}, 1);
}

}  // namespace kvfuse
