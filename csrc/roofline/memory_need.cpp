#include "csrc/roofline/memory_need.h"

namespace kvfuse::roofline {
namespace {

constexpr std::int64_t kTokenBytes = 8;

// Of a pass over `tokens` with logits for `scored` of them, each taking `logit_bytes`.
std::int64_t pass_bytes(const TransformerShape& shape, std::int64_t tokens, std::int64_t scored,
                        std::int64_t logit_bytes) {
  constexpr std::int64_t kRows = 7;
  const std::int64_t layers = kRows * tokens * shape.n_embd * shape.element_bytes;
  const std::int64_t head =
      (tokens + scored) * shape.n_embd * shape.element_bytes + scored * shape.vocab_size * logit_bytes;
  return std::max(layers, head);
}

}  // namespace

std::int64_t MemoryNeed::most_sequences(std::int64_t free_bytes) const {
  std::int64_t fits = 0;
  // So many need more for their caches and steps alone.
  std::int64_t refused =
      std::max<std::int64_t>(free_bytes, 0) / std::max<std::int64_t>(cache + tokens + step, 1) + 1;
  while (refused - fits > 1) {
    const std::int64_t middle = fits + (refused - fits) / 2;
    (bytes(middle) <= free_bytes ? fits : refused) = middle;
  }
  return fits;
}

MemoryNeed generation_memory(const TransformerShape& shape, bool cached, std::int64_t prompt_length,
                             std::int64_t new_tokens, std::int64_t prompts_at_once) {
  const std::int64_t longest = prompt_length + new_tokens - 1;  // the last token is not run
  const std::int64_t of_prompt = pass_bytes(shape, prompt_length, 1, shape.element_bytes);
  const std::int64_t ids = 2 * longest * kTokenBytes;
  if (!cached)
    return {.tokens = ids, .step = pass_bytes(shape, longest, 1, shape.element_bytes), .prompt = 0};
  return {.cache = longest * shape.kv_bytes_per_token,
          .tokens = ids,
          .step = pass_bytes(shape, 1, 1, shape.element_bytes),
          .prompt = of_prompt,
          .prompts_at_once = prompts_at_once,
          .prompt_cache = prompt_length * shape.kv_bytes_per_token};
}

MemoryNeed scoring_memory(const TransformerShape& shape, bool cached, std::int64_t tokens) {
  constexpr std::int64_t kFloatBytes = 4;
  const std::int64_t copy_bytes = shape.element_bytes == kFloatBytes ? 0 : kFloatBytes;
  const std::int64_t pass = cached ? 1 : tokens;
  return {.cache = cached ? tokens * shape.kv_bytes_per_token : 0,
          .tokens = 2 * tokens * kTokenBytes,
          .step = pass_bytes(shape, pass, pass, shape.element_bytes + copy_bytes + kFloatBytes)};
}

}  // namespace kvfuse::roofline
