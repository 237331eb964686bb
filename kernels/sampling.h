// The last launch of a decode step: the next token of every sequence from its logits.
#pragma once

#include <cstdint>

namespace kvfuse {

// Greedy takes the largest logit, the first of equals. Otherwise the top_k largest are kept (of equals the
// first ones), of these the fewest whose probabilities reach top_p, and one is drawn. A NaN never wins,
// except that a row of nothing else gives token 0; a row whose largest logit is infinite is decided greedily.
struct SamplingParams {
  const float* logits = nullptr;   // [batch, vocab_size]
  std::int64_t* tokens = nullptr;  // [batch]: receives the token
  std::int64_t* out_tokens =
      nullptr;  // [batch, out_capacity]: receives it at steps[b], if there is room; null: none
  std::int32_t* steps = nullptr;          // [batch]: advanced by one
  std::int32_t* cache_seqlens = nullptr;  // [batch]: advanced by one; null: none
  std::int64_t batch = 0;
  std::int64_t vocab_size = 0;  // at most 2^22
  std::int64_t out_capacity = 0;
  float temperature = 0.0F;  // 0: greedy
  std::int64_t top_k = 0;    // 0: all
  double top_p = 1.0;        // in (0, 1]
  std::uint64_t seed = 0;    // the draw is a function of (seed, steps[b], b)
};

}  // namespace kvfuse
