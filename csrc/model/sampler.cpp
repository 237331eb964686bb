#include "csrc/model/sampler.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "csrc/ops/cpu_step.h"

namespace kvfuse {
namespace {

void expect(bool holds, const char* rule, double got) {
  if (!holds)
    throw std::invalid_argument("Sampler: expected " + std::string(rule) + ", got " + std::to_string(got));
}

// A token and its probability in units that add up without rounding: sums do not depend on their order. A
// token less likely than the likeliest by 2^40 has none.
struct Candidate {
  std::int64_t token;
  std::uint64_t mass;
};
constexpr double kLikeliestMass = 0x1p40;  // of 2^24 tokens, the most of a vocabulary, below 2^64

// Of equals the first.
bool more_likely(const Candidate& a, const Candidate& b) {
  return a.mass != b.mass ? a.mass > b.mass : a.token < b.token;
}

std::uint64_t total_mass(std::span<const Candidate> candidates) {
  std::uint64_t sum = 0;
  for (const Candidate& candidate : candidates) sum += candidate.mass;
  return sum;
}

// The least likely of the fewest likeliest that hold `wanted` mass. Reorders them: each turn splits what is
// left in halves, so that all turns together look at twice the candidates.
Candidate last_to_reach(std::span<Candidate> candidates, double wanted) {
  std::uint64_t before = 0;
  while (candidates.size() > 1) {
    const std::size_t half = candidates.size() / 2;
    std::nth_element(candidates.begin(), candidates.begin() + static_cast<std::ptrdiff_t>(half),
                     candidates.end(), more_likely);
    const std::uint64_t upper = total_mass(candidates.first(half));
    if (static_cast<double>(before + upper) >= wanted) {
      candidates = candidates.first(half);
    } else {
      before += upper;
      candidates = candidates.subspan(half);
    }
  }
  return candidates.front();
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
  const auto* logit = rows.const_data_ptr<float>();
  at::Tensor tokens = at::empty({rows.size(0)}, at::TensorOptions().dtype(at::kLong));
  auto* token = tokens.mutable_data_ptr<std::int64_t>();
  std::vector<float> most(static_cast<std::size_t>(rows.size(0)));
  ops::cpu_find_largest({logit, most.data(), token, rows.size(0), vocab_size});
  for (std::int64_t b = 0; b < rows.size(0); ++b) {
    if (!std::isfinite(most[b]))
      throw std::invalid_argument("Sampler: expected finite logits, got NaN or infinity in row " +
                                  std::to_string(b) + " (are the weights damaged?)");
    if (options_.temperature > 0.0) token[b] = draw(logit + b * vocab_size, most[b], vocab_size);
  }
  return tokens;
}

std::int64_t Sampler::draw(const float* logits, float most, std::int64_t vocab_size) {
  std::vector<Candidate> candidates;
  candidates.reserve(static_cast<std::size_t>(vocab_size));
  for (std::int64_t i = 0; i < vocab_size; ++i) {
    const double probability = std::exp((double{logits[i]} - double{most}) / options_.temperature);
    candidates.push_back({i, static_cast<std::uint64_t>(probability * kLikeliestMass)});
  }
  // What the selection reorders is a copy: a token is drawn by its order in the vocabulary.
  const auto keep_up_to = [&](const Candidate& last) {
    std::erase_if(candidates, [&](const Candidate& candidate) { return more_likely(last, candidate); });
  };
  if (options_.top_k > 0 && options_.top_k < vocab_size) {
    std::vector<Candidate> copy = candidates;
    const auto last = copy.begin() + options_.top_k - 1;
    std::nth_element(copy.begin(), last, copy.end(), more_likely);
    keep_up_to(*last);
  }
  if (options_.top_p < 1.0) {
    std::vector<Candidate> copy = candidates;
    keep_up_to(last_to_reach(copy, options_.top_p * static_cast<double>(total_mass(candidates))));
  }
  __extension__ using Wide = unsigned __int128;
  auto left = static_cast<std::uint64_t>((Wide{random_()} * total_mass(candidates)) >> 64);
  for (const Candidate& candidate : candidates) {
    if (left < candidate.mass) return candidate.token;
    left -= candidate.mass;
  }
  return candidates.back().token;  // not reached: the point lies within the total
}

}  // namespace kvfuse
