// Scalar double-precision twins of the decode step: a fused linear layer, and GPT-2 token by token.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/dtype.h"
#include "kernels/linear.h"

namespace kvfuse::reference {

// What the weight stands for: [out_size, in].
std::vector<double> weight_values(const LinearParams& params);

// To multiples of what products beside int8 weights round each element of a row of activations
// (docs/numerics.md); zeros for a row of zeros.
std::vector<double> activation_steps(const std::vector<double>& x, bool fine);
std::vector<double> rounded_activations(const std::vector<double>& x, bool fine);

// [rows, out_size]; for Epilogue::kAdd on top of what params.out holds. Beside 4-bit weights x is not
// rounded.
std::vector<double> linear(const LinearParams& params);

// Weights and what the keys and values of a layer have become, one sequence. Everything is in double; an int8
// cache is rounded as the kernels round it.
struct Gpt2Layer {
  std::vector<double> ln_1_weight, ln_1_bias;
  std::vector<double> qkv_weight, qkv_bias;
  std::vector<double> attn_proj_weight, attn_proj_bias;
  std::vector<double> ln_2_weight, ln_2_bias;
  std::vector<double> fc_weight, fc_bias;
  std::vector<double> mlp_proj_weight, mlp_proj_bias;
  std::size_t cache_layer = 0;
  bool appends = true;
};

struct Gpt2 {
  std::size_t n_embd = 0, n_head = 0;
  bool gelu_tanh = true;
  DType dtype = DType::kFloat32;  // that rows between operations are rounded to, but for the residual stream
  bool int8_cache = false;
  bool int8_layers = false, int8_head = false;  // weights: the products round what they take
  std::vector<double> token_embedding, position_embedding;
  std::vector<Gpt2Layer> layers;
  std::vector<double> ln_f_weight, ln_f_bias;

  // Of each owned cache the rows [tokens][n_embd] of one sequence, as attention reads them.
  struct Cache {
    std::vector<std::vector<double>> k, v;
  };
  using Caches = std::vector<Cache>;

  // The logits after `token`, whose keys and values are appended to `caches`.
  std::vector<double> step(std::int64_t token, Caches& caches) const;
};

}  // namespace kvfuse::reference
