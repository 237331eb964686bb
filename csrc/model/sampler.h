// Chooses the next token from logits: greedy, or drawn with temperature, top-k and top-p from a seeded
// generator.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <random>

namespace kvfuse {

struct SamplerOptions {
  double temperature = 0.0;  // 0: greedy, the most likely token (the first of equals)
  std::int64_t top_k = 0;    // draw from the k most likely tokens; 0: from all
  double top_p = 1.0;        // then from the fewest of them whose probabilities reach p
  std::uint64_t seed = 42;
};

class Sampler {
 public:
  // Throws std::invalid_argument naming the option, the rule and the value.
  explicit Sampler(const SamplerOptions& options);

  // logits [batch, vocab_size], floating point, on any device; returns int64 [batch] on the CPU. Throws
  // std::invalid_argument if a row holds a NaN or no finite logit. The same seed and the same logits give the
  // same tokens on every machine.
  at::Tensor sample(const at::Tensor& logits);

 private:
  std::int64_t draw(const float* logits, float most, std::int64_t vocab_size);

  SamplerOptions options_;
  std::mt19937_64 random_;
};

}  // namespace kvfuse
