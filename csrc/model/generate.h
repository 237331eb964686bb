// Token by token generation with or without a KV cache.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>

#include "csrc/model/decode_graph.h"
#include "csrc/model/gpt2.h"
#include "csrc/model/overflow_policy.h"
#include "csrc/model/sampler.h"
#include "csrc/model/token_batch.h"

namespace kvfuse {

// Called with the newest token of each sequence, int64 [batch]: undefined where nothing waits for it. False
// ends the generation early.
using OnToken = std::function<bool(const at::Tensor& newest)>;

struct GenerateOptions {
  OnToken on_token = {};
  OnPhase on_phase = {};  // not called by a captured step
  OverflowPolicy overflow = {};
};

// Extends each sequence of `prompt` by `new_tokens` tokens and returns them with it, each to a length of its
// own; zeros stand behind the shorter ones. With a cache (emptied first) the prompt is one pass and each
// further token another; without one every token recomputes what it sees. The last token is sampled but not
// run. Throws std::invalid_argument if a sequence would outgrow block_size and nothing is to be done about
// that, or if a prompt outgrows what can be seen at once.
TokenBatch generate(const Gpt2& model, KvCache* cache, const TokenBatch& prompt, std::int64_t new_tokens,
                    Sampler& sampler, const GenerateOptions& options = {});

// The same with `graph`, made for this model and cache: the prompt and the first token as above, every
// further token a replay, sampled on the device as the graph was told. The host waits for nothing, so
// on_token is called when a step is enqueued, without its tokens.
TokenBatch generate(const Gpt2& model, KvCache& cache, DecodeGraph& graph, const TokenBatch& prompt,
                    std::int64_t new_tokens, Sampler& sampler, const GenerateOptions& options = {});

}  // namespace kvfuse
