#include "csrc/model/generate.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "csrc/model/overflow.h"

namespace kvfuse {
namespace {

// The tokens that are seen at once at most.
std::int64_t window_of(const Gpt2& model, const KvCache* cache) {
  return cache == nullptr ? model.config().block_size : cache->capacity();
}

void check_fits(const Gpt2& model, const KvCache* cache, const TokenBatch& prompt, std::int64_t new_tokens,
                const OverflowPolicy& overflow) {
  check_token_batch("generate", prompt);
  const std::int64_t longest = prompt.longest();
  if (overflow.kind == Overflow::kError && longest + new_tokens > model.config().block_size)
    throw std::invalid_argument("generate: expected prompt + new tokens <= block_size " +
                                std::to_string(model.config().block_size) + ", got " +
                                std::to_string(longest) + " + " + std::to_string(new_tokens));
  const std::int64_t window = window_of(model, cache);
  check_policy(overflow, window, cache != nullptr);
  if (overflow.kind != Overflow::kError && longest > window)
    throw std::invalid_argument("generate: expected a prompt of at most " + std::to_string(window) +
                                " tokens, seen at once, got " + std::to_string(longest));
}

// Sequences that grow in place.
class Growing {
 public:
  Growing(const TokenBatch& prompt, std::int64_t room)
      : batch_(at::zeros({prompt.tokens.size(0), prompt.longest() + room}, prompt.tokens.options()),
               prompt.lengths) {
    for (std::int64_t b = 0; b < prompt.tokens.size(0); ++b) {
      const std::int64_t length = prompt.lengths[static_cast<std::size_t>(b)];
      batch_.tokens.select(0, b).narrow(0, 0, length).copy_(prompt.tokens.select(0, b).narrow(0, 0, length));
    }
  }

  // next [batch, count]
  void append(const at::Tensor& next) {
    if (batch_.uniform()) {
      batch_.tokens.narrow(1, batch_.longest(), next.size(1)).copy_(next);
    } else {
      for (std::int64_t b = 0; b < next.size(0); ++b)
        batch_.tokens.select(0, b)
            .narrow(0, batch_.lengths[static_cast<std::size_t>(b)], next.size(1))
            .copy_(next.select(0, b));
    }
    for (std::int64_t& length : batch_.lengths) length += next.size(1);
  }

  TokenBatch grown() const { return {batch_.tokens.narrow(1, 0, batch_.longest()), batch_.lengths}; }

 private:
  TokenBatch batch_;
};

// Runs the prompts into `cache` and chooses the token after each: int64 [batch] on their device. As many
// sequences at a time as prompts_at_once allows.
at::Tensor run_prompts(const Gpt2& model, KvCache& cache, const TokenBatch& prompt, Sampler& sampler,
                       const OnPhase& on_phase) {
  const auto choose = [&](const TokenBatch& sequences, KvCache& into) {
    const at::Tensor logits = model.forward(sequences, &into, LogitsOf::kLastToken, on_phase);
    return sampler.sample(logits.select(1, 0)).to(prompt.tokens.device());
  };
  const std::int64_t batch = prompt.tokens.size(0);
  const std::int64_t at_once = prompts_at_once(prompt.longest());
  if (batch <= at_once) return choose(prompt, cache);
  std::vector<at::Tensor> chosen;
  for (std::int64_t first = 0; first < batch; first += at_once) {
    const std::int64_t count = std::min(at_once, batch - first);
    std::vector<std::int64_t> sequences(static_cast<std::size_t>(count));
    std::iota(sequences.begin(), sequences.end(), first);
    const auto lengths = prompt.lengths.begin() + first;
    KvCache part = cache.make_empty(count, prompt.longest());
    chosen.push_back(choose(
        {prompt.tokens.narrow(0, first, count).narrow(1, 0, *std::max_element(lengths, lengths + count)),
         {lengths, lengths + count}},
        part));
    cache.replace(sequences, part);
  }
  return at::cat(chosen);
}

}  // namespace

TokenBatch generate(const Gpt2& model, KvCache* cache, const TokenBatch& prompt, std::int64_t new_tokens,
                    Sampler& sampler, const GenerateOptions& options) {
  const c10::InferenceMode inference;
  check_fits(model, cache, prompt, new_tokens, options.overflow);
  if (cache != nullptr) cache->reset();
  Growing sequences(prompt, new_tokens);
  at::Tensor newest;  // [batch, 1]
  const auto next_pass = [&]() -> TokenBatch {
    const TokenBatch all = sequences.grown();
    if (cache == nullptr) return visible_windows(all, window_of(model, cache), options.overflow);
    make_room(model, *cache, all, options.overflow);
    return newest;
  };
  for (std::int64_t i = 0; i < new_tokens; ++i) {
    if (cache != nullptr && i == 0) {
      newest = run_prompts(model, *cache, prompt, sampler, options.on_phase).unsqueeze(1);
    } else {
      const at::Tensor logits = model.forward(next_pass(), cache, LogitsOf::kLastToken, options.on_phase);
      newest = sampler.sample(logits.select(1, 0)).unsqueeze(1).to(prompt.tokens.device());
    }
    sequences.append(newest);
    if (options.on_token && !options.on_token(newest.squeeze(1))) break;
  }
  return sequences.grown();
}

TokenBatch generate(const Gpt2& model, KvCache& cache, DecodeGraph& graph, const TokenBatch& prompt,
                    std::int64_t new_tokens, Sampler& sampler, const GenerateOptions& options) {
  const c10::InferenceMode inference;
  check_fits(model, &cache, prompt, new_tokens, options.overflow);
  cache.reset();
  const at::Tensor first = run_prompts(model, cache, prompt, sampler, options.on_phase);
  graph.start(first);
  std::int64_t steps = 0;
  const auto sequences = [&] {
    Growing all(prompt, steps + 1);
    all.append(at::cat({first.unsqueeze(1), graph.chosen(steps)}, 1));
    return all.grown();
  };
  bool wanted = !options.on_token || options.on_token({});
  for (; wanted && steps + 1 < new_tokens; ++steps) {
    if (cache.length() == cache.capacity()) make_room(model, cache, sequences(), options.overflow);
    cache.note_appended(1);  // the device counts itself
    graph.step();
    wanted = !options.on_token || options.on_token({});
  }
  return sequences();
}

}  // namespace kvfuse
