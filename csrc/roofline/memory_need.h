// The memory that generating takes beside the weights, in closed form.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "csrc/roofline/cost.h"

namespace kvfuse::roofline {

inline constexpr std::int64_t kAllAtOnce = std::numeric_limits<std::int64_t>::max();

// Bytes, each of one sequence.
struct MemoryNeed {
  std::int64_t cache = 0;
  std::int64_t tokens = 0;  // their ids
  std::int64_t step = 0;    // at the peak of a step, which all sequences take together
  std::int64_t prompt = 0;  // at the peak of a pass over prompts, which so many sequences take at once
  std::int64_t prompts_at_once = 1;
  std::int64_t prompt_cache = 0;  // of a pass over prompts that are not all: its own cache

  // What `batch` sequences hold beside the cache, at the peak.
  std::int64_t activations(std::int64_t batch) const {
    const bool at_once = batch <= prompts_at_once;
    return batch * tokens +
           std::max(batch * step, at_once ? batch * prompt : prompts_at_once * (prompt + prompt_cache));
  }
  std::int64_t bytes(std::int64_t batch) const { return batch * cache + activations(batch); }
  // The largest batch that fits into `free_bytes`; 0 if not even one does.
  std::int64_t most_sequences(std::int64_t free_bytes) const;
};

// Generating `new_tokens` after a prompt. A pass over n tokens holds 7 rows of n_embd a token: the residual
// stream, its norm, the projection (3 rows and the attention's result, or 4 rows of the MLP) and what is
// added next; then one row of logits. Token ids are 8 bytes each, held twice. Without a cache every step is a
// pass over all tokens so far, of all sequences.
MemoryNeed generation_memory(const TransformerShape& shape, bool cached, std::int64_t prompt_length,
                             std::int64_t new_tokens, std::int64_t prompts_at_once);

// Scoring a window of `tokens`: in one pass with logits for every token, or token by token through a cache.
// Beside the logits their float32 copy, where they are not that already, and one temporary of the same size.
MemoryNeed scoring_memory(const TransformerShape& shape, bool cached, std::int64_t tokens);

}  // namespace kvfuse::roofline
