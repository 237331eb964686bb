// GPT-2 on LibTorch: pre-norm transformer with learned positions and an output head tied to the token
// embedding.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "csrc/model/kv_cache.h"
#include "csrc/model/token_batch.h"
#include "csrc/model/weights.h"
#include "kernels/decode_step.h"

namespace kvfuse {

enum class LogitsOf { kLastToken, kEveryToken };

class Gpt2 {
 public:
  explicit Gpt2(Gpt2Weights weights) : weights_(std::move(weights)) {}

  // One forward pass over `batch`; returns logits [batch, 1 or T, vocab_size] in the weights' dtype: of each
  // sequence's own last token, or of all, where those behind its length mean nothing. Without a cache the
  // tokens are whole sequences. With one they follow those it holds, at positions of their own: their keys
  // and values are appended, and they attend to all of their sequence. What is behind a length is run too,
  // seen by nothing and forgotten. Throws std::invalid_argument if rows would leave block_size, the cache's
  // capacity or its batch, or if the cache is for other layers.
  //
  // On the CPU one token each of a few sequences goes through the whole model in one call (fused_step.h).
  at::Tensor forward(const TokenBatch& batch, KvCache* cache, LogitsOf which,
                     const OnPhase& on_phase = {}) const;

  // The same operation by operation, in any case: what the fused step is judged by.
  at::Tensor forward_unfused(const TokenBatch& batch, KvCache* cache, LogitsOf which,
                             const OnPhase& on_phase = {}) const;

  const ModelConfig& config() const { return weights_.config; }
  const Gpt2Weights& weights() const { return weights_; }
  at::ScalarType dtype() const { return weights_.dtype(); }

 private:
  // What the layers of one pass hand on: the cache, or the owner's keys and values for those that borrow.
  struct Pass {
    KvCache* cache;
    at::Tensor visible;  // int32 [batch]: tokens in the cache once the owners have appended
    at::Tensor k, v;     // [batch, n_head, T, head_dim] of the last owner; used without a cache
  };

  void check(const TokenBatch& batch, const KvCache* cache) const;
  at::Tensor embed(const at::Tensor& tokens, const KvCache* cache) const;
  at::Tensor attention(const at::Tensor& x, const LayerWeights& layer, std::int64_t index, Pass& pass) const;
  at::Tensor cached_attention(const at::Tensor& q, bool owns, std::int64_t index, const Pass& pass) const;
  at::Tensor mlp(const at::Tensor& x, const LayerWeights& layer) const;

  Gpt2Weights weights_;
};

}  // namespace kvfuse
