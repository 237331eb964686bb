// The gradient of causal attention, from what a forward pass saved.
#pragma once

#include <ATen/core/Tensor.h>

namespace kvfuse::ops {

// What prefill_attention attended to. The cache may since have been overwritten, so none of it is in there.
struct SavedAttention {
  at::Tensor q;                   // [batch, heads, q_len, head_dim]
  at::Tensor k, v;                // [batch, kv_heads, q_len, head_dim]: the tokens that it appended
  at::Tensor k_prefix, v_prefix;  // [batch, kv_heads, longest, head_dim]: those before them, constants
  at::Tensor lengths;             // int32 [batch]: how many of these each sequence has; the rest is not read
  double softmax_scale = 1;
};

struct AttentionGradients {
  at::Tensor q, k, v;
};

// Computed in float32 from probabilities that are computed anew, [batch, heads, q_len, longest + q_len] at a
// time. Made of differentiable operations alone, and reads no element: it can be traced, and differentiated
// again.
AttentionGradients attention_gradients(const SavedAttention& saved, const at::Tensor& grad_out);

}  // namespace kvfuse::ops
