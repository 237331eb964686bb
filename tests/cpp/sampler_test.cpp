// Choosing the next token.
#include "csrc/model/sampler.h"

#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "tests/cpp/error_of.h"

namespace kvfuse {
namespace {

at::Tensor logits_of(std::vector<float> values) {
  const auto count = static_cast<std::int64_t>(values.size());
  at::Tensor logits = at::zeros({1, count});
  std::copy(values.begin(), values.end(), logits.mutable_data_ptr<float>());
  return logits;
}

std::vector<double> frequencies(const SamplerOptions& options, const at::Tensor& logits) {
  Sampler sampler(options);
  std::vector<double> counts(static_cast<std::size_t>(logits.size(1)), 0.0);
  for (int i = 0; i < 20000; ++i)
    counts[static_cast<std::size_t>(sampler.sample(logits).item<std::int64_t>())] += 1.0 / 20000;
  return counts;
}

TEST(Sampler, GreedyTakesTheFirstOfEquals) {
  Sampler greedy({});
  EXPECT_EQ(greedy.sample(logits_of({0.0F, 3.0F, -1.0F, 3.0F})).item<std::int64_t>(), 1);
}

TEST(Sampler, DrawsByProbability) {
  const at::Tensor logits = logits_of({std::log(0.5F), std::log(0.3F), std::log(0.15F), std::log(0.05F)});
  const std::vector<double> plain = frequencies({.temperature = 1.0}, logits);
  for (int i = 0; i < 4; ++i)
    EXPECT_NEAR(plain[static_cast<std::size_t>(i)],
                (std::vector{0.5, 0.3, 0.15, 0.05})[static_cast<std::size_t>(i)], 0.02);
  // Squared and normalised: 0.25, 0.09, 0.0225, 0.0025 over 0.365
  EXPECT_NEAR(frequencies({.temperature = 0.5}, logits)[0], 0.25 / 0.365, 0.02);
  const std::vector<double> two = frequencies({.temperature = 1.0, .top_k = 2}, logits);
  EXPECT_NEAR(two[0], 0.625, 0.02);
  EXPECT_EQ(two[2] + two[3], 0.0);
  const std::vector<double> nucleus = frequencies({.temperature = 1.0, .top_p = 0.7}, logits);
  EXPECT_NEAR(nucleus[1], 0.375, 0.02);
  EXPECT_EQ(nucleus[2] + nucleus[3], 0.0);
  EXPECT_NEAR(frequencies({.temperature = 1.0, .top_k = 1}, logits)[0], 1.0, 1e-9);
}

// Against a sort: of 5,000 tokens, many of them equals, none is drawn that a sorted list would not keep, and
// every likely one that it keeps is.
TEST(Sampler, KeepsWhatASortedListKeeps) {
  std::mt19937 random(3);
  std::vector<float> logits(5000);
  for (float& logit : logits) logit = static_cast<float>(random() % 40) / 10.0F;
  std::vector<std::size_t> order(logits.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return logits[a] > logits[b]; });
  for (const SamplerOptions& options :
       {SamplerOptions{.temperature = 1.0, .top_k = 7}, SamplerOptions{.temperature = 0.7, .top_p = 0.01},
        SamplerOptions{.temperature = 1.3, .top_k = 40, .top_p = 0.6}}) {
    const auto mass = [&](std::size_t rank) { return std::exp(logits[order[rank]] / options.temperature); };
    const std::size_t most = options.top_k == 0 ? order.size() : static_cast<std::size_t>(options.top_k);
    double sum = 0, reached = 0;
    for (std::size_t rank = 0; rank < most; ++rank) sum += mass(rank);
    std::set<std::int64_t> kept;
    for (std::size_t rank = 0; rank < most && reached < options.top_p * sum; ++rank) {
      reached += mass(rank);
      kept.insert(static_cast<std::int64_t>(order[rank]));
    }
    Sampler sampler(options);
    std::set<std::int64_t> drawn;
    for (std::size_t i = 0; i < 30 * kept.size(); ++i)
      drawn.insert(sampler.sample(logits_of(logits)).item<std::int64_t>());
    EXPECT_EQ(drawn, kept);
  }
}

TEST(Sampler, ASeedRepeats) {
  const at::Tensor logits = at::zeros({1, 50});
  Sampler first({.temperature = 1.0, .seed = 5});
  Sampler second({.temperature = 1.0, .seed = 5});
  Sampler other({.temperature = 1.0, .seed = 6});
  int different = 0;
  for (int i = 0; i < 100; ++i) {
    const auto token = first.sample(logits).item<std::int64_t>();
    EXPECT_EQ(token, second.sample(logits).item<std::int64_t>());
    different += token != other.sample(logits).item<std::int64_t>();
  }
  EXPECT_GT(different, 50);
}

TEST(Sampler, RefusesWhatCannotBe) {
  EXPECT_NE(error_of([] { Sampler({.temperature = -1.0}); }).find("temperature >= 0"), std::string::npos);
  EXPECT_NE(error_of([] { Sampler({.top_k = -1}); }).find("top_k >= 0"), std::string::npos);
  EXPECT_NE(error_of([] { Sampler({.top_p = 0.0}); }).find("0 < top_p <= 1"), std::string::npos);
  Sampler greedy({});
  EXPECT_NE(error_of([&] {
              greedy.sample(logits_of({1.0F, std::numeric_limits<float>::quiet_NaN()}));
            }).find("finite logits"),
            std::string::npos);
}

}  // namespace
}  // namespace kvfuse
