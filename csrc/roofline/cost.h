// Operations and bytes that a GPT-2 forward pass cannot do without, and the shortest time that they allow.
#pragma once

#include <algorithm>
#include <cstdint>

namespace kvfuse::roofline {

struct TransformerShape {
  std::int64_t n_layer = 0;
  std::int64_t borrowing_layers = 0;  // of them, those that compute no K and V
  std::int64_t n_embd = 0;
  std::int64_t vocab_size = 0;
  std::int64_t weight_bytes = 0;        // of all weights as they are kept, without the position table
  std::int64_t element_bytes = 4;       // of an activation
  std::int64_t kv_bytes_per_token = 0;  // K and V of all layers, scales included; 0: nothing is cached
};

struct Cost {
  double flops = 0;
  double bytes = 0;  // of memory that must be moved: every weight once, every visible cached token once

  double intensity() const { return flops / bytes; }  // FLOPs a byte
};

// One pass over `tokens` new tokens a sequence after `past` earlier ones, with logits for the last token
// only. FLOPs: 2 a multiply-add; linear layers 12 n_embd^2 a layer and token (10 where K and V are
// borrowed), causal attention 2 n_embd multiply-adds a layer and visible pair, head n_embd * vocab_size.
Cost forward_cost(const TransformerShape& shape, std::int64_t batch, std::int64_t past, std::int64_t tokens);

// What the machine was measured to do in the same process.
struct MachineLimits {
  double read_bytes_per_s = 0;
  double matmul_flops_per_s = 0;  // in the model's dtype

  // The intensity at which both limits allow the same rate: below it memory is the slower one.
  double ridge() const { return matmul_flops_per_s / read_bytes_per_s; }
  // The roof at an intensity.
  double attainable_flops_per_s(double intensity) const {
    return std::min(matmul_flops_per_s, intensity * read_bytes_per_s);
  }
};

// At the slower of the two limits.
double shortest_ms(const Cost& cost, const MachineLimits& limits);

struct GenerationCost {
  Cost total;
  double shortest_ms = 0;  // each pass at the slower of its two limits
};

// What becomes of a sequence that outgrows the tokens that are seen at once.
struct SeenTokens {
  std::int64_t most = INT64_MAX;
  std::int64_t keep = 0;   // of one token more than that, so many stay
  bool run_again = false;  // cached: those that stay are run again, in one pass
};

// Generating `new_tokens` after a prompt: cached (one pass over the prompt, then one token each) or
// recomputing all that is seen for every token.
GenerationCost generation_cost(const TransformerShape& shape, bool cached, std::int64_t batch,
                               std::int64_t prompt_length, std::int64_t new_tokens,
                               const MachineLimits& limits, const SeenTokens& seen = {});

}  // namespace kvfuse::roofline
