// Operations and bytes that a GPT-2 forward pass cannot do without, and the shortest time that they allow.
#pragma once

#include <cstdint>

namespace kvfuse::roofline {

struct TransformerShape {
  std::int64_t n_layer = 0;
  std::int64_t borrowing_layers = 0;  // of them, those that compute no K and V
  std::int64_t n_embd = 0;
  std::int64_t vocab_size = 0;
  std::int64_t parameters = 0;          // without the position table
  std::int64_t weight_bytes = 4;        // a parameter
  std::int64_t kv_bytes_per_token = 0;  // K and V of all layers, scales included; 0: nothing is cached
};

struct Cost {
  double flops = 0;
  double bytes = 0;  // of memory that must be read: every weight once, every visible cached token once
};

// One pass over `tokens` new tokens a sequence after `past` earlier ones, with logits for the last token
// only. FLOPs: 2 a multiply-add; linear layers 12 n_embd^2 a layer and token (10 where K and V are
// borrowed), causal attention 2 n_embd
// multiply-adds a layer and visible pair, head n_embd * vocab_size.
Cost forward_cost(const TransformerShape& shape, std::int64_t batch, std::int64_t past, std::int64_t tokens);

// What the machine was measured to do in the same process.
struct MachineLimits {
  double read_bytes_per_s = 0;
  double matmul_flops_per_s = 0;  // in the model's dtype
};

struct GenerationCost {
  Cost total;
  double shortest_ms = 0;  // each pass at the slower of its two limits
};

// Generating `new_tokens` after a prompt: cached (one pass over the prompt, then one token each) or
// recomputing the whole sequence for every token.
GenerationCost generation_cost(const TransformerShape& shape, bool cached, std::int64_t batch,
                               std::int64_t prompt_length, std::int64_t new_tokens,
                               const MachineLimits& limits);

}  // namespace kvfuse::roofline
