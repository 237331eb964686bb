// One GPT-2 decode step as pointers and sizes: one new token for every sequence of a batch, from token to
// next token.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/attention.h"

namespace kvfuse {

// Weights of one layer, of DecodeStepParams::dtype. A linear's weight is [out, in]; a bias may be null.
struct Gpt2LayerPointers {
  const void* ln_1_weight = nullptr;  // [n_embd]
  const void* ln_1_bias = nullptr;
  const void* qkv_weight = nullptr;  // [3 * n_embd, n_embd]: queries, keys, values
  const void* qkv_bias = nullptr;
  const void* attn_proj_weight = nullptr;  // [n_embd, n_embd]
  const void* attn_proj_bias = nullptr;
  const void* ln_2_weight = nullptr;  // [n_embd]
  const void* ln_2_bias = nullptr;
  const void* fc_weight = nullptr;  // [4 * n_embd, n_embd]
  const void* fc_bias = nullptr;
  const void* mlp_proj_weight = nullptr;  // [n_embd, 4 * n_embd]
  const void* mlp_proj_bias = nullptr;
  std::int64_t cache_layer = 0;  // index into DecodeStepParams::caches
  bool appends = true;  // false: attends to what an earlier layer has appended, and computes only its queries
};

struct DecodeStepParams {
  const void* token_embedding = nullptr;     // [vocab_size, n_embd], the output head as well
  const void* position_embedding = nullptr;  // [block_size, n_embd]
  std::span<const Gpt2LayerPointers> layers;
  const void* ln_f_weight = nullptr;  // [n_embd]
  const void* ln_f_bias = nullptr;
  std::span<const CacheView> caches;  // kv_heads == n_head

  // Where the sequences stand, in device memory: read at the start of the step and advanced at its end.
  std::int64_t* tokens = nullptr;  // [batch]: the newest token, not yet in the cache; then the one chosen
  std::int32_t* cache_seqlens = nullptr;  // [batch]: cached tokens, the position of the newest
  std::int32_t* steps = nullptr;          // [batch]: tokens chosen so far
  std::int64_t* out_tokens = nullptr;     // [batch, out_capacity]: receives the token at steps[b]; null: none
  std::int64_t out_capacity = 0;

  float* logits = nullptr;    // [batch, vocab_size]: those the token was chosen from
  void* workspace = nullptr;  // decode_step_workspace_bytes(...), 16-byte aligned, zero before its first use

  DType dtype = DType::kFloat32;
  bool gelu_tanh = true;
  std::int64_t batch = 0;
  std::int64_t n_embd = 0;
  std::int64_t n_head = 0;
  std::int64_t vocab_size = 0;
  std::int64_t block_size = 0;
  std::int64_t splits = 1;        // of the attention: decode_splits(...)
  bool overlap_previous = false;  // programmatic dependent launch of every kernel, the first one included

  float temperature = 0.0F;  // these four as in SamplingParams
  std::int64_t top_k = 0;
  double top_p = 1.0;
  std::uint64_t seed = 0;
};

}  // namespace kvfuse
