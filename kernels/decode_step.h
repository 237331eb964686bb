// One GPT-2 decode step as pointers and sizes: one new token for every sequence of a batch, from token to
// next token.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "kernels/attention.h"
#include "kernels/weight_format.h"

namespace kvfuse {

// The parts of generating a token, norms and residuals counted to what they serve. kOther: outside the model.
enum class Phase { kEmbedding, kAttention, kMlp, kHead, kOther };
inline constexpr int kPhases = 5;
// Told when a part begins, and with it that the one before has been enqueued.
using OnPhase = std::function<void(Phase)>;

// Weights of one layer, of DecodeStepParams::dtype. A linear's weight is [out, in] of
// DecodeStepParams::layer_format, with scales if that has codes; a bias may be null.
struct Gpt2LayerPointers {
  const void* ln_1_weight = nullptr;  // [n_embd]
  const void* ln_1_bias = nullptr;
  const void* qkv_weight = nullptr;  // [3 * n_embd, n_embd]: queries, keys, values
  const void* qkv_weight_scale = nullptr;
  const void* qkv_bias = nullptr;
  const void* attn_proj_weight = nullptr;  // [n_embd, n_embd]
  const void* attn_proj_weight_scale = nullptr;
  const void* attn_proj_bias = nullptr;
  const void* ln_2_weight = nullptr;  // [n_embd]
  const void* ln_2_bias = nullptr;
  const void* fc_weight = nullptr;  // [4 * n_embd, n_embd]
  const void* fc_weight_scale = nullptr;
  const void* fc_bias = nullptr;
  const void* mlp_proj_weight = nullptr;  // [n_embd, 4 * n_embd]
  const void* mlp_proj_weight_scale = nullptr;
  const void* mlp_proj_bias = nullptr;
  std::int64_t cache_layer = 0;  // index into DecodeStepParams::caches
  bool appends = true;  // false: attends to what an earlier layer has appended, and computes only its queries
};

// Whether the linear of a layer's queries, keys and values, beside int8 weights, takes fine activations, as
// the head does. In the first layer eight bits cost more than in all other linears together
// (docs/decisions.md).
constexpr bool takes_fine_activations(std::int64_t layer) { return layer == 0; }

struct DecodeStepParams {
  const void* token_embedding = nullptr;         // [vocab_size, n_embd] of token_format; the output head too
  const float* token_embedding_scale = nullptr;  // [vocab_size], of codes
  const void* position_embedding = nullptr;      // [block_size, n_embd]
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
  WeightFormat layer_format = WeightFormat::kFloat;  // of the layers' linears
  WeightFormat token_format = WeightFormat::kFloat;  // never of 4 bits
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

namespace cpu {

// Of the sizes and dtype in `params`.
std::int64_t decode_step_workspace_bytes(const DecodeStepParams& params);

// From the newest tokens to p.logits, appending to the caches. Chooses no token and advances nothing: tokens
// and cache_seqlens stay, steps, out_tokens and what decides the choice are not read. The residual stream is
// float32, the rows between operations are of `dtype`. Throws std::invalid_argument if caches or layers do
// not fit. A sequence that has outgrown block_size gets NaN logits; one that has outgrown a cache is the
// caller's fault.
void decode_step(const DecodeStepParams& params, const OnPhase& on_phase = {});

}  // namespace cpu
}  // namespace kvfuse
