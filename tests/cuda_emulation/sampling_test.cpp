// Argmax and sampling, run by the emulator and judged by a sort in double precision.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "kernels/cuda/sampling.cu"

namespace kvfuse {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr std::uint64_t kSeeds[] = {1, 2, 3};  // schedules

// The state of a batch on the device.
struct Sequences {
  std::vector<float> logits;
  std::vector<std::int64_t> tokens, out_tokens;
  std::vector<std::int32_t> steps, cache_seqlens;
  SamplingParams params;

  Sequences(const std::vector<std::vector<float>>& rows, std::int64_t out_capacity = 4) {
    for (const std::vector<float>& row : rows) logits.insert(logits.end(), row.begin(), row.end());
    tokens.assign(rows.size(), -1);
    out_tokens.assign(rows.size() * static_cast<std::size_t>(out_capacity), -1);
    steps.assign(rows.size(), 0);
    cache_seqlens.assign(rows.size(), 10);
    params.batch = static_cast<std::int64_t>(rows.size());
    params.vocab_size = static_cast<std::int64_t>(rows.front().size());
    params.out_capacity = out_capacity;
  }

  cudaError_t sample() {
    params.logits = logits.data();
    params.tokens = tokens.data();
    params.out_tokens = out_tokens.data();
    params.steps = steps.data();
    params.cache_seqlens = cache_seqlens.data();
    return cuda::sample(params, /*overlap_previous=*/true, nullptr);
  }
};

std::vector<float> random_logits(std::size_t count, unsigned seed, float step = 0.0F) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0F, 3.0F);
  std::vector<float> logits;
  for (std::size_t i = 0; i < count; ++i) {
    const float logit = normal(random);
    logits.push_back(step == 0.0F ? logit : std::round(logit / step) * step);
  }
  return logits;
}

std::int64_t greedy(const std::vector<float>& logits) {
  Sequences sequences({logits});
  EXPECT_EQ(sequences.sample(), cudaSuccess) << emulation::last_error();
  return sequences.tokens[0];
}

TEST(GreedyTest, FirstOfTheLargest) {
  EXPECT_EQ(greedy({1.0F, 3.0F, 2.0F, 3.0F, 3.0F, -1.0F, 0.0F}), 1);
  EXPECT_EQ(greedy({-5.0F, -3.0F, -4.0F}), 1);
  EXPECT_EQ(greedy({-1.0F, -0.0F, 0.0F}), 1);  // equal
  EXPECT_EQ(greedy({-1.0F, 0.0F, -0.0F}), 1);
  EXPECT_EQ(greedy({2.0F}), 0);
  for (const std::size_t vocab : {7, 1000, 5003}) {
    for (const std::uint64_t seed : kSeeds) {
      emulation::set_options({seed});
      std::vector<float> logits = random_logits(vocab, static_cast<unsigned>(seed));
      logits[vocab / 2] = logits[vocab - 1] = logits[vocab - 2] = 100.0F;
      EXPECT_EQ(greedy(logits), static_cast<std::int64_t>(vocab / 2));
      logits[vocab - 1] = 101.0F;
      EXPECT_EQ(greedy(logits), static_cast<std::int64_t>(vocab - 1));
    }
  }
}

TEST(GreedyTest, NanNeverWins) {
  EXPECT_EQ(greedy({kNan, -kInfinity, kNan}), 1);
  EXPECT_EQ(greedy({kNan, 1.0F, -kNan, 2.0F, kNan}), 3);
  EXPECT_EQ(greedy({1.0F, kInfinity, kNan}), 1);
  EXPECT_EQ(greedy(std::vector<float>(1500, kNan)), 0);
}

TEST(GreedyTest, AdvancesTheSequences) {
  Sequences sequences({{0.0F, 1.0F}, {1.0F, 0.0F}, {0.0F, 2.0F}}, /*out_capacity=*/2);
  sequences.steps = {0, 1, 2};  // the last has no room left
  for (int i = 0; i < 2; ++i) ASSERT_EQ(sequences.sample(), cudaSuccess) << emulation::last_error();
  EXPECT_EQ(sequences.tokens, (std::vector<std::int64_t>{1, 0, 1}));
  EXPECT_EQ(sequences.out_tokens, (std::vector<std::int64_t>{1, 1, -1, 0, -1, -1}));
  EXPECT_EQ(sequences.steps, (std::vector<std::int32_t>{2, 3, 4}));
  EXPECT_EQ(sequences.cache_seqlens, (std::vector<std::int32_t>{12, 12, 12}));
}

// ---- the kept tokens ----

struct Settings {
  float temperature = 1.0F;
  std::int64_t top_k = 0;
  double top_p = 1.0;
};

void set(SamplingParams& params, const Settings& settings, std::uint64_t seed = 0) {
  params.temperature = settings.temperature;
  params.top_k = settings.top_k;
  params.top_p = settings.top_p;
  params.seed = seed;
}

// Probabilities in the order of the tokens, 0 for those not kept: as csrc/model/sampler.cpp chooses them.
std::vector<double> kept_probabilities(const std::vector<float>& logits, const Settings& settings) {
  std::vector<std::size_t> order;
  for (std::size_t i = 0; i < logits.size(); ++i)
    if (!std::isnan(logits[i])) order.push_back(i);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return logits[a] > logits[b]; });
  if (settings.top_k > 0 && settings.top_k < static_cast<std::int64_t>(order.size()))
    order.resize(static_cast<std::size_t>(settings.top_k));
  std::vector<double> probabilities(logits.size(), 0.0);
  const auto weight = [&](std::size_t i) {
    return std::exp((static_cast<double>(logits[i]) - logits[order.front()]) / settings.temperature);
  };
  double sum = 0.0;
  for (const std::size_t i : order) sum += weight(i);
  double kept = 0.0;
  for (const std::size_t i : order) {
    probabilities[i] = weight(i);
    kept += weight(i);
    if (kept >= settings.top_p * sum) break;
  }
  for (double& probability : probabilities) probability /= kept;
  return probabilities;
}

// Shows which tokens the kernel keeps.
struct ProbeParams {
  SamplingParams sampling;
  cuda::Kept* kept;
};

void probe_kernel(ProbeParams p) {
  cuda::DrawShared& shared = cuda::block_shared<cuda::DrawShared>();
  const int vocab_size = static_cast<int>(p.sampling.vocab_size);
  const cuda::Best best = cuda::block_best<cuda::kDrawThreads>(p.sampling.logits, vocab_size, shared.best);
  const cuda::LogitRow row{p.sampling.logits, vocab_size, cuda::logit_of(best.key),
                           cuda::kLog2E / p.sampling.temperature};
  const cuda::Kept kept = cuda::keep(p.sampling, row, shared);
  if (threadIdx.x == 0) *p.kept = kept;
}

std::vector<bool> kept_by_kernel(const std::vector<float>& logits, const Settings& settings) {
  cuda::Kept kept{};
  ProbeParams params{{.logits = logits.data(), .vocab_size = static_cast<std::int64_t>(logits.size())},
                     &kept};
  set(params.sampling, settings);
  EXPECT_EQ(
      cuda::launch(probe_kernel, {dim3(1), cuda::kDrawThreads, sizeof(cuda::DrawShared)}, nullptr, params),
      cudaSuccess)
      << emulation::last_error();
  std::vector<bool> is_kept;
  cuda::Mass ties = 0;
  for (const float logit : logits) {
    const unsigned key = cuda::order_key(logit);
    is_kept.push_back(!std::isnan(logit) && (key > kept.key || (key == kept.key && ties++ < kept.ties)));
  }
  return is_kept;
}

void expect_same_kept(const std::vector<float>& logits, const Settings& settings) {
  SCOPED_TRACE("vocab " + std::to_string(logits.size()) + " temperature " +
               std::to_string(settings.temperature) + " top_k " + std::to_string(settings.top_k) + " top_p " +
               std::to_string(settings.top_p));
  const std::vector<double> want = kept_probabilities(logits, settings);
  const std::vector<bool> got = kept_by_kernel(logits, settings);
  for (std::size_t i = 0; i < logits.size(); ++i) ASSERT_EQ(got[i], want[i] > 0.0) << "token " << i;
}

TEST(KeptTest, EqualsASort) {
  for (const std::size_t vocab : {7, 1000, 5003})
    for (const float step : {0.0F, 0.5F})  // with a step there are many equals
      for (const std::int64_t top_k : {0, 1, 5, 40, 6000})
        for (const double top_p : {1.0, 0.9, 0.5, 1e-9}) {
          emulation::set_options({vocab + static_cast<std::size_t>(top_k)});
          expect_same_kept(random_logits(vocab, 5, step),
                           {.temperature = 0.8F, .top_k = top_k, .top_p = top_p});
        }
}

TEST(KeptTest, EqualsInTheOrderOfTheTokens) {
  const std::vector<float> equal(1000, 1.25F);
  expect_same_kept(equal, {.top_k = 600});
  expect_same_kept(equal, {.top_p = 0.5});
  expect_same_kept(equal, {.top_k = 300, .top_p = 0.5});
  expect_same_kept({1.0F, 2.0F, -0.0F, 2.0F, 0.0F, 2.0F, 1.0F}, {.top_k = 2});
  expect_same_kept({-1.0F, -0.0F, 0.0F, -0.0F, -1.0F, 0.0F, -1.0F}, {.top_k = 3});
}

TEST(KeptTest, TopPNearOne) {
  expect_same_kept(random_logits(1000, 8), {.top_p = 0.999});
  // The fixed point holds 40 bits: of the tokens beyond, none is drawn.
  const std::vector<bool> kept = kept_by_kernel({0.0F, -100.0F, -1.0F}, {.top_p = 1.0 - 1e-9});
  EXPECT_EQ(kept, (std::vector<bool>{true, false, true}));
}

// ---- draws ----

std::vector<std::int64_t> draw(const std::vector<float>& logits, const Settings& settings, std::uint64_t seed,
                               std::size_t batch, int steps) {
  Sequences sequences(std::vector<std::vector<float>>(batch, logits));
  set(sequences.params, settings, seed);
  std::vector<std::int64_t> all;
  for (int i = 0; i < steps; ++i) {
    EXPECT_EQ(sequences.sample(), cudaSuccess) << emulation::last_error();
    all.insert(all.end(), sequences.tokens.begin(), sequences.tokens.end());
  }
  EXPECT_EQ(sequences.steps, std::vector<std::int32_t>(batch, steps));
  EXPECT_EQ(sequences.cache_seqlens, std::vector<std::int32_t>(batch, 10 + steps));
  return all;
}

// Draws against the exact probabilities: chi-square, whose 1 in 10000 values are in the table.
void expect_distribution(const std::vector<float>& logits, const Settings& settings, std::size_t draws) {
  const std::map<int, double> limits = {{1, 15.1}, {2, 18.4}, {3, 21.1}, {4, 23.5}, {5, 25.7}, {6, 27.9}};
  const std::vector<std::int64_t> tokens =
      draw(logits, settings, /*seed=*/99, /*batch=*/draws / 4, /*steps=*/4);
  const std::vector<double> probabilities = kept_probabilities(logits, settings);
  std::vector<double> count(logits.size(), 0.0);
  for (const std::int64_t token : tokens) count.at(static_cast<std::size_t>(token)) += 1.0;
  double statistic = 0.0;
  int cells = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const double expected = probabilities[i] * static_cast<double>(tokens.size());
    if (expected == 0.0) {
      EXPECT_EQ(count[i], 0.0) << "token " << i << " is not among the kept";
      continue;
    }
    statistic += (count[i] - expected) * (count[i] - expected) / expected;
    ++cells;
  }
  EXPECT_TRUE(statistic <= limits.at(cells - 1)) << statistic << " with " << cells << " tokens";
}

TEST(DrawTest, Distribution) {
  const std::vector<float> logits = {0.3F, -1.2F, 1.1F, 0.3F, -0.4F, 0.9F, -0.1F};
  expect_distribution(logits, {.temperature = 1.0F}, 2000);
  expect_distribution(logits, {.temperature = 2.5F}, 2000);
  // The radix select costs ten times the draw; that it keeps the right tokens is for other tests to say.
  expect_distribution(logits, {.temperature = 0.7F, .top_k = 3}, 200);  // cuts between the two of 0.3
  expect_distribution(logits, {.temperature = 1.3F, .top_k = 5, .top_p = 0.8}, 200);
}

struct Words {
  std::uint32_t a, b, c, d;
};

// Philox4x32-10, after its paper.
Words philox(Words x, std::uint32_t key_low, std::uint32_t key_high) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t first = 0xD2511F53ULL * x.a, second = 0xCD9E8D57ULL * x.c;
    x = {static_cast<std::uint32_t>(second >> 32) ^ x.b ^ key_low, static_cast<std::uint32_t>(second),
         static_cast<std::uint32_t>(first >> 32) ^ x.d ^ key_high, static_cast<std::uint32_t>(first)};
    key_low += 0x9E3779B9U;
    key_high += 0xBB67AE85U;
  }
  return x;
}

// The known answers of the generator's authors.
TEST(DrawTest, Philox) {
  const auto got = [](std::uint32_t counter, std::uint64_t seed) {
    const cuda::RandomBlock block = cuda::philox({{counter, counter, counter, counter}}, seed);
    return std::vector<std::uint32_t>(block.word, block.word + 4);
  };
  EXPECT_EQ(got(0, 0), (std::vector<std::uint32_t>{0x6627e8d5U, 0xe169c58dU, 0xbc57ac4cU, 0x9b00dbd8U}));
  EXPECT_EQ(got(~0U, ~0ULL),
            (std::vector<std::uint32_t>{0x408f276dU, 0x41c83b0eU, 0xa20bc7c6U, 0x6d5451fdU}));
}

// The very token that the random number stands for, in a walk over the vocabulary with double sums.
std::size_t expected_token(const std::vector<double>& probabilities, std::uint64_t seed, std::uint32_t step,
                           std::uint32_t row) {
  const Words words =
      philox({step, row, 0, 0}, static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32));
  double left = std::ldexp(words.b, -32) + std::ldexp(words.a, -64);
  std::size_t last = 0;
  for (std::size_t i = 0; i < probabilities.size(); ++i) {
    if (probabilities[i] == 0.0) continue;
    last = i;
    if ((left -= probabilities[i]) < 0.0) break;
  }
  return last;
}

TEST(DrawTest, TokensOfTheRandomNumbers) {
  for (const std::size_t vocab : {7, 1000, 5003})
    for (const Settings& settings :
         {Settings{.temperature = 1.1F}, Settings{.temperature = 2.0F, .top_k = 50},
          Settings{.temperature = 1.0F, .top_k = 400, .top_p = 0.9}}) {
      const std::vector<float> logits = random_logits(vocab, 21, 0.25F);
      const std::vector<double> probabilities = kept_probabilities(logits, settings);
      const std::uint64_t seed = 0x123456789abcdefULL;
      for (const std::uint64_t schedule : kSeeds) {
        emulation::set_options({schedule});
        const std::vector<std::int64_t> tokens = draw(logits, settings, seed, /*batch=*/8, /*steps=*/2);
        for (std::uint32_t i = 0; i < tokens.size(); ++i)
          ASSERT_EQ(tokens[i], expected_token(probabilities, seed, i / 8, i % 8))
              << "vocab " << vocab << ", draw " << i << ", schedule " << schedule;
      }
    }
}

TEST(DrawTest, SeedDecides) {
  const std::vector<float> logits = random_logits(1000, 4);
  const Settings settings{.temperature = 1.5F, .top_p = 0.95};
  const std::vector<std::int64_t> tokens = draw(logits, settings, 5, 6, 3);
  EXPECT_EQ(tokens, draw(logits, settings, 5, 6, 3));
  EXPECT_NE(tokens, draw(logits, settings, 6, 6, 3));
  EXPECT_NE(tokens, draw(logits, settings, 5 + (1ULL << 32), 6, 3));
  EXPECT_GT(std::set<std::int64_t>(tokens.begin(), tokens.end()).size(), 9U);  // rows and steps differ
}

TEST(DrawTest, EdgesOfTheSettings) {
  const std::vector<float> logits = random_logits(1000, 6);
  const std::int64_t most = std::max_element(logits.begin(), logits.end()) - logits.begin();
  const std::vector<std::int64_t> always(8, most);
  EXPECT_EQ(draw(logits, {.temperature = 5.0F, .top_k = 1}, 1, 4, 2), always);
  EXPECT_EQ(draw(logits, {.temperature = 5.0F, .top_p = 1e-12}, 1, 4, 2), always);
  EXPECT_EQ(draw(logits, {.temperature = 1e-6F}, 1, 4, 2), always);
  EXPECT_EQ(draw(logits, {.temperature = 1e-42F}, 1, 4, 2), always);  // its inverse is infinite
  const std::vector<std::int64_t> all = draw(logits, {.temperature = 2.0F}, 1, 4, 2);
  EXPECT_EQ(draw(logits, {.temperature = 2.0F, .top_k = 1000}, 1, 4, 2), all);
  EXPECT_EQ(draw(logits, {.temperature = 2.0F, .top_k = 1 << 30}, 1, 4, 2), all);
}

TEST(DrawTest, NanAndInfinity) {
  const Settings settings{.temperature = 1.0F, .top_k = 3, .top_p = 0.99};
  for (const std::int64_t token : draw({kNan, 1.0F, kNan, 1.0F, -kInfinity}, settings, 1, 8, 2))
    EXPECT_TRUE(token == 1 || token == 3) << token;
  EXPECT_EQ(draw({0.0F, kInfinity, kInfinity}, settings, 1, 1, 1), std::vector<std::int64_t>{1});
  EXPECT_EQ(draw({-kInfinity, -kInfinity, -kInfinity}, settings, 1, 1, 1), std::vector<std::int64_t>{0});
  EXPECT_EQ(draw({kNan, kNan, kNan}, settings, 1, 1, 1), std::vector<std::int64_t>{0});
}

TEST(SamplingTest, RefusesWhatItCannotDo) {
  const auto refused = [](auto&& change) {
    Sequences sequences({{0.0F, 1.0F, 2.0F}});
    change(sequences.params);
    return sequences.sample() == cudaErrorInvalidValue;
  };
  EXPECT_FALSE(refused([](SamplingParams&) {}));
  EXPECT_TRUE(refused([](SamplingParams& p) { p.batch = 0; }));
  EXPECT_TRUE(refused([](SamplingParams& p) { p.vocab_size = 0; }));
  EXPECT_TRUE(refused([](SamplingParams& p) { p.vocab_size = std::int64_t{1} << 23; }));
  EXPECT_TRUE(refused([](SamplingParams& p) { p.temperature = -1.0F; }));
  EXPECT_TRUE(refused([](SamplingParams& p) { p.temperature = kNan; }));
  EXPECT_TRUE(refused([](SamplingParams& p) { p.temperature = kInfinity; }));
  EXPECT_TRUE(refused([](SamplingParams& p) { p.top_k = -1; }));
  EXPECT_TRUE(refused([](SamplingParams& p) { p.top_p = 0.0; }));
  EXPECT_TRUE(refused([](SamplingParams& p) { p.top_p = 1.5; }));
  EXPECT_TRUE(refused([](SamplingParams& p) { p.top_p = static_cast<double>(kNan); }));
}

}  // namespace
}  // namespace kvfuse
