#include "csrc/roofline/memory_need.h"

#include <algorithm>

namespace kvfuse::roofline {

MemoryNeed generation_memory(const TransformerShape& shape, bool cached, std::int64_t prompt_length,
                             std::int64_t new_tokens) {
  constexpr std::int64_t kRows = 7;
  constexpr std::int64_t kTokenBytes = 8;
  const std::int64_t longest = prompt_length + new_tokens - 1;  // the last token is not run
  const std::int64_t pass = cached ? prompt_length : longest;
  const std::int64_t layers = kRows * pass * shape.n_embd;
  const std::int64_t head = (pass + 1) * shape.n_embd + shape.vocab_size;
  return {.cache_bytes = cached ? longest * shape.kv_bytes_per_token : 0,
          .activation_bytes = std::max(layers, head) * shape.weight_bytes + 2 * pass * kTokenBytes};
}

}  // namespace kvfuse::roofline
