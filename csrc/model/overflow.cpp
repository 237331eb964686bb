#include "csrc/model/overflow.h"

#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <stdexcept>
#include <string>

namespace kvfuse {
namespace {

void expect(bool holds, const std::string& rule, std::int64_t got) {
  if (!holds) throw std::invalid_argument("overflow: expected " + rule + ", got " + std::to_string(got));
}

// Runs `tokens` ([full sequences, keep - 1]) as the beginning of the sequences `full`.
void anchor_anew(const Gpt2& model, KvCache& cache, const std::vector<std::int64_t>& full,
                 const at::Tensor& tokens) {
  if (static_cast<std::int64_t>(full.size()) == cache.batch()) {
    cache.reset();
    if (tokens.size(1) > 0) model.forward(tokens, &cache, LogitsOf::kLastToken);
    return;
  }
  // The others keep what they have, so these are run in a cache of their own.
  KvCache part =
      cache.make_empty(static_cast<std::int64_t>(full.size()), std::max<std::int64_t>(tokens.size(1), 1));
  if (tokens.size(1) > 0) model.forward(tokens, &part, LogitsOf::kLastToken);
  cache.replace(full, part);
}

}  // namespace

void check_policy(const OverflowPolicy& policy, std::int64_t window, bool cached) {
  if (policy.kind == Overflow::kError) return;
  expect(policy.keep >= 1 && policy.keep <= window,
         "to keep 1 to " + std::to_string(window) + " tokens (the window)", policy.keep);
  if (policy.kind != Overflow::kSink) return;
  if (!cached) throw std::invalid_argument("overflow: expected a cache for sink, got none");
  expect(policy.sink >= 1 && policy.sink < policy.keep,
         "1 <= sink tokens < " + std::to_string(policy.keep) + " (the tokens to keep)", policy.sink);
}

void make_room(const Gpt2& model, KvCache& cache, const TokenBatch& sequences, const OverflowPolicy& policy) {
  if (policy.kind == Overflow::kError || cache.length() < cache.capacity()) return;
  const std::int64_t kept = policy.keep - 1;  // the newest is not in the cache
  std::vector<std::int64_t> full;
  std::vector<at::Tensor> windows;
  for (std::int64_t b = 0; b < cache.batch(); ++b) {
    const auto row = static_cast<std::size_t>(b);
    if (cache.lengths()[row] < cache.capacity()) continue;
    full.push_back(b);
    windows.push_back(sequences.tokens.select(0, b).narrow(0, sequences.lengths[row] - policy.keep, kept));
  }
  if (policy.kind == Overflow::kSink)
    cache.drop(full, policy.sink, cache.capacity() - kept);
  else
    anchor_anew(model, cache, full, at::stack(windows));
}

TokenBatch visible_windows(const TokenBatch& sequences, std::int64_t window, const OverflowPolicy& policy) {
  const auto start_of = [&](std::int64_t length) {
    return policy.kind == Overflow::kSlide ? window_start(length, window, policy.keep) : 0;
  };
  const std::int64_t longest = sequences.longest();
  if (sequences.uniform() || start_of(longest) == 0) {
    const std::int64_t start = start_of(longest);
    std::vector<std::int64_t> lengths = sequences.lengths;
    for (std::int64_t& length : lengths) length -= start;
    return {sequences.tokens.narrow(1, start, longest - start), std::move(lengths)};
  }
  std::vector<std::int64_t> lengths;
  for (const std::int64_t length : sequences.lengths) lengths.push_back(length - start_of(length));
  const std::int64_t widest = *std::max_element(lengths.begin(), lengths.end());
  const auto batch = static_cast<std::int64_t>(lengths.size());
  at::Tensor tokens = at::zeros({batch, widest}, sequences.tokens.options());
  for (std::int64_t b = 0; b < batch; ++b) {
    const auto row = static_cast<std::size_t>(b);
    tokens.select(0, b)
        .narrow(0, 0, lengths[row])
        .copy_(sequences.tokens.select(0, b).narrow(0, sequences.lengths[row] - lengths[row], lengths[row]));
  }
  return {std::move(tokens), std::move(lengths)};
}

}  // namespace kvfuse
