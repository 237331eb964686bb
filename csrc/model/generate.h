// Token by token generation with or without a KV cache.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>

#include "csrc/model/decode_graph.h"
#include "csrc/model/gpt2.h"
#include "csrc/model/sampler.h"

namespace kvfuse {

// Called after each new token; false ends the generation early.
using OnToken = std::function<bool()>;

struct GenerateHooks {
  OnToken on_token = {};
  OnPhase on_phase = {};  // not called by a captured step
};

// Extends `prompt` (int64 [batch, P]) by `new_tokens` tokens a sequence and returns int64 [batch, P +
// generated]. With a cache (emptied first) the prompt is one pass and each further token another; without one
// every token recomputes the whole sequence. The last token is sampled but not run. Throws
// std::invalid_argument if P + new_tokens exceeds block_size.
at::Tensor generate(const Gpt2& model, KvCache* cache, const at::Tensor& prompt, std::int64_t new_tokens,
                    Sampler& sampler, const GenerateHooks& hooks = {});

// The same with `graph`, made for this model and cache: the prompt and the first token as above, every
// further token a replay, sampled on the device as the graph was told. The host waits for nothing, so
// on_token is called when a step is enqueued.
at::Tensor generate(const Gpt2& model, KvCache& cache, DecodeGraph& graph, const at::Tensor& prompt,
                    std::int64_t new_tokens, Sampler& sampler, const GenerateHooks& hooks = {});

}  // namespace kvfuse
