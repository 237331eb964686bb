// What a perplexity is made of: negative log-likelihood, and how far one model's predictions are from
// another's.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include <nlohmann/json.hpp>

namespace kvfuse {

// Sum of -log p(target) in nats. logits [batch, T, vocab_size], targets [batch, T].
double negative_log_likelihood(const at::Tensor& logits, const at::Tensor& targets);

// Kullback-Leibler divergence from the reference's predictions, and how often both find the same token
// likeliest, by the position in the window: an error of a cache grows with what it holds.
class Divergence {
 public:
  // logits and reference [batch, 1, vocab_size], predicting from `position` + 1 tokens.
  void add(const at::Tensor& logits, const at::Tensor& reference, std::int64_t position);

  // {mean_kl, same_top_1, by_position: [{first_position, last_position, num_tokens, mean_kl, same_top_1}]};
  // kl in nats.
  nlohmann::ordered_json summary() const;

 private:
  struct Bucket {
    std::int64_t tokens = 0;
    double kl = 0;
    std::int64_t same = 0;

    nlohmann::ordered_json means() const;
  };
  std::vector<Bucket> buckets_;  // bucket i: positions 2^i - 1 to 2^(i + 1) - 2
};

}  // namespace kvfuse
