// The memory that generating takes beside the weights, in closed form.
#pragma once

#include <cstdint>

#include "csrc/roofline/cost.h"

namespace kvfuse::roofline {

// Of one sequence.
struct MemoryNeed {
  std::int64_t cache_bytes = 0;
  std::int64_t activation_bytes = 0;  // at the peak of a pass

  std::int64_t bytes() const { return cache_bytes + activation_bytes; }
  // How many fit into `free_bytes`; 0 if that is negative.
  std::int64_t most_sequences(std::int64_t free_bytes) const {
    return free_bytes > 0 ? free_bytes / bytes() : 0;
  }
};

// Generating `new_tokens` after a prompt. A pass over n tokens holds 7 rows of n_embd a token: the residual
// stream, its norm, the projection (3 rows and the attention's result, or 4 rows of the MLP) and what is
// added next; then one row of logits. Token ids are 8 bytes each, held twice in the longest pass.
MemoryNeed generation_memory(const TransformerShape& shape, bool cached, std::int64_t prompt_length,
                             std::int64_t new_tokens);

}  // namespace kvfuse::roofline
