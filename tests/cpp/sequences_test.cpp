// Batches of sequences that differ in length, of every version, judged by each sequence alone.
#include <ATen/ops/log_softmax.h>

#include <cmath>

#include "tests/cpp/error_of.h"
#include "tests/cpp/sequences_fixture.h"

namespace kvfuse {
namespace {

constexpr std::int64_t kTokens = 20;  // generated
const std::vector<std::int64_t> kLengths = {1, 7, 40, 13};

std::vector<at::Tensor> random_rows() {
  std::vector<at::Tensor> rows;
  for (const std::int64_t length : kLengths) rows.push_back(random_row(length));
  return rows;
}

// Sum of -log p of each token but the first.
double loss_of(const at::Tensor& logits, const at::Tensor& row) {
  const at::Tensor log_p = at::log_softmax(logits.to(at::kDouble), -1);
  double sum = 0;
  for (std::int64_t t = 0; t + 1 < row.size(1); ++t)
    sum -= log_p[0][t][row[0][t + 1].item<std::int64_t>()].item<double>();
  return sum;
}

// Codes of two runs whose matrix products round differently. Those of the first layer depend on nothing that
// was quantised: only a value on the edge between two codes may fall on the other side. Behind it codes may
// differ as much as rounding leaves: an rms of 1 / sqrt(12) of a step.
// Weights that are codes round activations in ways of their own, which moves codes by some steps.
testing::AssertionResult same_codes(const at::Tensor& got, const at::Tensor& want, bool first_layer,
                                    bool rounds_activations) {
  constexpr int kStepsOfActivations = 16;
  const at::Tensor steps = (got.to(at::kInt) - want.to(at::kInt)).abs();
  if (rounds_activations && steps.max().item<int>() <= kStepsOfActivations)
    return testing::AssertionSuccess();
  const auto differing = (steps > 0).sum().item<std::int64_t>();
  if (steps.max().item<int>() <= 1 && differing <= (first_layer ? 2 : steps.numel() / 12))
    return testing::AssertionSuccess();
  return testing::AssertionFailure() << differing << " of " << steps.numel() << " codes differ";
}

// The rows that a cache holds of sequence b are those of another's first sequence.
void expect_same_rows(const KvCache& got, std::int64_t b, const KvCache& want, std::int64_t length,
                      double relative, bool rounds_activations) {
  for (std::int64_t index = 0; index < kModel.n_layer; index += want.sharing_group()) {
    const KvCacheLayer &a = got.layer(index), &e = want.layer(index);
    const auto rows = [&](const at::Tensor& tensor, std::int64_t i) {
      return tensor[i].narrow(1, 0, length);
    };
    const double allowed = index == 0 && !rounds_activations ? 1e-5 : relative;
    for (const auto& [x, y] : {std::pair(a.k, e.k), std::pair(a.v, e.v)})
      EXPECT_TRUE(x.scalar_type() == at::kChar
                      ? same_codes(rows(x, b), rows(y, 0), index == 0, rounds_activations)
                      : close(rows(x, b), rows(y, 0), allowed))
          << "sequence " << b << ", layer " << index;
    if (!a.k_scale) continue;
    EXPECT_TRUE(close(rows(*a.k_scale, b), rows(*e.k_scale, 0), allowed)) << "layer " << index;
    EXPECT_TRUE(close(rows(*a.v_scale, b), rows(*e.v_scale, 0), allowed)) << "layer " << index;
  }
}

TEST_P(Sequences, OfMixedLengthsGiveTheLogitsOfEachAlone) {
  const std::vector<at::Tensor> rows = random_rows();
  for (const std::int64_t padding : {-1L, 0L}) {  // what stands behind a sequence does not matter
    const TokenBatch batch = padded(rows, padding);
    std::optional<KvCache> together = cache(4), every = cache(4);
    const at::Tensor last = model_.forward(batch, held(together), LogitsOf::kLastToken);
    const at::Tensor all = model_.forward(batch, held(every), LogitsOf::kEveryToken);
    for (std::int64_t b = 0; b < 4; ++b) {
      const at::Tensor& row = rows[static_cast<std::size_t>(b)];
      std::optional<KvCache> own = cache(1);
      const at::Tensor want = model_.forward(row, held(own), LogitsOf::kEveryToken);
      const std::int64_t length = row.size(1);
      const double allowed = relative(row);
      EXPECT_TRUE(close(last.narrow(0, b, 1), want.narrow(1, length - 1, 1), allowed)) << b;
      const at::Tensor got = all.narrow(0, b, 1).narrow(1, 0, length);
      EXPECT_TRUE(close(got, want, allowed)) << b;
      EXPECT_NEAR(loss_of(got, row), loss_of(want, row), allowed * loss_of(want, row));
      if (own) expect_same_rows(*together, b, *own, length, allowed, has_codes_for_weights());
    }
    if (together) {
      EXPECT_EQ(together->lengths(), kLengths);
      for (std::int64_t b = 0; b < 4; ++b)
        EXPECT_EQ(together->cache_seqlens()[b].item<std::int64_t>(), kLengths[static_cast<std::size_t>(b)]);
    }
  }
}

TEST_P(Sequences, WhatStandsBehindASequenceChangesNoBit) {
  const std::vector<at::Tensor> rows = random_rows();
  std::vector<at::Tensor> last;
  std::vector<std::optional<KvCache>> caches;
  for (const std::int64_t padding : {-1L, 0L, 210L}) {
    caches.push_back(cache(4));
    last.push_back(model_.forward(padded(rows, padding), held(caches.back()), LogitsOf::kLastToken));
    EXPECT_TRUE(at::equal(last.back(), last.front()));
    if (!caches.back()) continue;
    for (std::int64_t b = 0; b < 4; ++b) {
      const std::int64_t length = kLengths[static_cast<std::size_t>(b)];
      const auto row = [&](const std::optional<KvCache>& of) {
        return of->layer(kModel.n_layer - 1).v[b].narrow(1, 0, length);
      };
      EXPECT_TRUE(at::equal(row(caches.back()), row(caches.front())));
    }
  }
}

TEST_P(Sequences, NeighboursChangeNoBit) {
  if (!strategy().use_cache)
    GTEST_SKIP() << "keeps no cache: each step runs as many tokens as the longest has";
  expect_neighbours_do_not_matter(random_rows(), kTokens, {});
}

// An int8 cache may part with another where a moved code decides between near equals; NeighboursChangeNoBit
// is for it.
TEST_P(Sequences, OfMixedLengthsAreDecodedAsEachAlone) {
  const std::vector<at::Tensor> rows = random_rows();
  std::optional<KvCache> together = cache(4), own = cache(1);
  Sampler greedy({});
  const TokenBatch got = generate(model_, held(together), padded(rows, -1), kTokens, greedy);
  const TokenBatch again = generate(model_, held(together), padded(rows, 0), kTokens, greedy);
  EXPECT_TRUE(at::equal(got.tokens, again.tokens));
  for (std::size_t b = 0; b < 4; ++b) {
    ASSERT_EQ(got.lengths[b], kLengths[b] + kTokens);
    const at::Tensor row = got.tokens.narrow(0, static_cast<std::int64_t>(b), 1);
    EXPECT_EQ(row.narrow(1, got.lengths[b], row.size(1) - got.lengths[b]).abs().sum().item<std::int64_t>(),
              0);
    if (is_int8()) continue;
    const at::Tensor want = generate(model_, held(own), rows[b], kTokens, greedy).tokens;
    EXPECT_TRUE(at::equal(row.narrow(1, 0, got.lengths[b]), want)) << b;
    if (own)
      expect_same_rows(*together, static_cast<std::int64_t>(b), *own, want.size(1) - 1,
                       rounding_of_products(), has_codes_for_weights());
  }
}

TEST_P(Sequences, GoOnFromMixedLengthsWithSeveralTokensAtATime) {
  if (!strategy().use_cache) GTEST_SKIP() << "keeps no cache";
  const std::vector<at::Tensor> rows = random_rows();
  const std::vector<at::Tensor> more = {random_row(3), random_row(1), random_row(5), random_row(2)};
  std::optional<KvCache> together = cache(4);
  model_.forward(padded(rows, -1), held(together), LogitsOf::kLastToken);
  const at::Tensor got = model_.forward(padded(more, -1), held(together), LogitsOf::kLastToken);
  for (std::size_t b = 0; b < 4; ++b) {
    std::optional<KvCache> own = cache(1);
    model_.forward(rows[b], held(own), LogitsOf::kLastToken);
    const at::Tensor want = model_.forward(more[b], held(own), LogitsOf::kLastToken);
    const double allowed = relative(at::cat({rows[b], more[b]}, 1));
    EXPECT_TRUE(close(got.narrow(0, static_cast<std::int64_t>(b), 1), want, allowed)) << b;
    EXPECT_EQ(together->lengths()[b], own->length());
  }
}

INSTANTIATE_TEST_SUITE_P(All, Sequences, testing::ValuesIn(cases()),
                         [](const auto& info) { return info.param.name; });

TEST(SequencesErrors, NameTheRuleAndTheValue) {
  const Gpt2 model(random_weights(kModel, at::kFloat, 7));
  KvCache cache(kModel, cached_baseline(), 2, 64, at::kFloat);
  const at::Tensor two = at::cat({random_row(8), random_row(8)});
  const auto forward = [&](const TokenBatch& batch) { model.forward(batch, &cache, LogitsOf::kLastToken); };
  EXPECT_EQ(error_of([&] {
              forward({two, {8}});
            }),
            "Gpt2::forward: expected 2 lengths, one a sequence, got 1");
  EXPECT_EQ(error_of([&] { forward({two, {8, 0}}); }), "Gpt2::forward: expected lengths from 1 to 8, got 0");
  EXPECT_EQ(error_of([&] { forward({two, {9, 1}}); }), "Gpt2::forward: expected lengths from 1 to 8, got 9");
  forward({two, {8, 3}});
  EXPECT_EQ(error_of([&] { cache.advance({57, 1}); }), "KvCache: expected length 8 + 57 <= capacity 64");
  EXPECT_EQ(error_of([&] { cache.crop(4); }), "KvCache: expected 0 <= length <= 3 to crop to, got 4");
  EXPECT_EQ(error_of([&] { cache.drop({1}, 1, 3); }),
            "KvCache: expected tokens within the length 3 to drop, got 3 from 1 on");
  EXPECT_EQ(cache.lengths(), (std::vector<std::int64_t>{8, 3}));
}

}  // namespace
}  // namespace kvfuse
