#include "csrc/model/sampler.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

namespace kvfuse {
namespace {

void expect(bool holds, const char* rule, double got) {
  if (!holds)
    throw std::invalid_argument("Sampler: expected " + std::string(rule) + ", got " + std::to_string(got));
}

std::int64_t argmax(const float* logits, std::int64_t count) {
  std::int64_t best = 0;
  for (std::int64_t i = 1; i < count; ++i)
    if (logits[i] > logits[best]) best = i;
  return best;
}

}  // namespace

Sampler::Sampler(const SamplerOptions& options) : options_(options), random_(options.seed) {
  expect(options.temperature >= 0.0 && std::isfinite(options.temperature), "a finite temperature >= 0",
         options.temperature);
  expect(options.top_k >= 0, "top_k >= 0", static_cast<double>(options.top_k));
  expect(options.top_p > 0.0 && options.top_p <= 1.0, "0 < top_p <= 1", options.top_p);
}

at::Tensor Sampler::sample(const at::Tensor& logits) {
  const at::Tensor rows = logits.to(at::kCPU, at::kFloat).contiguous();
  const std::int64_t vocab_size = rows.size(1);
  at::Tensor tokens = at::empty({rows.size(0)}, at::TensorOptions().dtype(at::kLong));
  for (std::int64_t b = 0; b < rows.size(0); ++b) {
    const float* row = rows.const_data_ptr<float>() + b * vocab_size;
    if (std::any_of(row, row + vocab_size, [](float x) { return std::isnan(x); }) ||
        !std::isfinite(row[argmax(row, vocab_size)]))
      throw std::invalid_argument("Sampler: expected finite logits, got NaN or infinity in row " +
                                  std::to_string(b) + " (are the weights damaged?)");
    tokens.mutable_data_ptr<std::int64_t>()[b] =
        options_.temperature == 0.0 ? argmax(row, vocab_size) : draw(row, vocab_size);
  }
  return tokens;
}

std::int64_t Sampler::draw(const float* logits, std::int64_t vocab_size) {
  struct Candidate {
    std::int64_t token;
    double weight;  // not normalised
  };
  const double most = logits[argmax(logits, vocab_size)];
  std::vector<Candidate> candidates;
  candidates.reserve(static_cast<std::size_t>(vocab_size));
  for (std::int64_t i = 0; i < vocab_size; ++i)
    candidates.push_back({i, std::exp((logits[i] - most) / options_.temperature)});

  if (options_.top_k > 0 || options_.top_p < 1.0) {
    std::stable_sort(candidates.begin(), candidates.end(),
                     [](const Candidate& a, const Candidate& b) { return a.weight > b.weight; });
    if (options_.top_k > 0 && options_.top_k < vocab_size)
      candidates.resize(static_cast<std::size_t>(options_.top_k));
  }
  double sum = 0.0;
  for (const Candidate& candidate : candidates) sum += candidate.weight;
  if (options_.top_p < 1.0) {
    double reached = 0.0;
    const auto last = std::find_if(candidates.begin(), candidates.end(), [&](const Candidate& candidate) {
      return (reached += candidate.weight) >= options_.top_p * sum;
    });
    if (last != candidates.end()) candidates.erase(last + 1, candidates.end());
    sum = std::min(reached, sum);
  }

  // 53 random bits: std::uniform_real_distribution differs between standard libraries.
  double left = static_cast<double>(random_() >> 11) * 0x1p-53 * sum;
  for (const Candidate& candidate : candidates)
    if ((left -= candidate.weight) < 0.0) return candidate.token;
  return candidates.back().token;
}

}  // namespace kvfuse
