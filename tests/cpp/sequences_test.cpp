// Batches of sequences that differ in length, and generation beyond the window, of every version: judged by
// each sequence alone and by plain loops that run every window from scratch.
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/randint.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "csrc/model/generate.h"
#include "csrc/model/layer_fit.h"
#include "csrc/model/layer_sharing.h"
#include "csrc/model/overflow.h"
#include "csrc/versions/registry.h"

namespace kvfuse {
namespace {

constexpr ModelConfig kModel = {.n_layer = 5, .n_head = 4, .n_embd = 64, .block_size = 64, .vocab_size = 211};
constexpr std::int64_t kTokens = 20;  // generated
const std::vector<std::int64_t> kLengths = {1, 7, 40, 13};

// A registry row, or one with groups that do not divide the layers.
struct Case {
  std::string name;
  Strategy strategy;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const Strategy& version : versions()) all.push_back({std::string(version.name), version});
  for (const KvCacheDtype dtype : {KvCacheDtype::kModel, KvCacheDtype::kInt8})
    for (const int group : {3, 5})
      all.push_back(
          {(dtype == KvCacheDtype::kInt8 ? "int8_groups_of_" : "groups_of_") + std::to_string(group),
           {.name = "g",
            .description = "",
            .use_cache = true,
            .kv_cache_dtype = dtype,
            .sharing_group = group}});
  return all;
}

at::Tensor random_row(std::int64_t length) {
  return at::randint(0, kModel.vocab_size, {1, length}, at::TensorOptions().dtype(at::kLong));
}

// Wide enough for greedy output to vary.
Gpt2 model_of(const Strategy& strategy) {
  const Gpt2Weights weights = random_weights(kModel, at::kFloat, 7, 0.2);
  if (strategy.q_alignment == QAlignment::kFit)
    return Gpt2(fit_shared_layers(weights, strategy, random_row(512)[0]).weights);
  return Gpt2(with_shared_layers(weights, strategy));
}

class Sequences : public testing::TestWithParam<Case> {
 protected:
  const Strategy& strategy() const { return GetParam().strategy; }
  const Gpt2 model_ = model_of(GetParam().strategy);
  const c10::InferenceMode inference_;

  // An int8 cache may part with another after a while, where a moved code decides between two near equals.
  testing::AssertionResult same_tokens(const at::Tensor& got, const at::Tensor& want,
                                       std::int64_t prompt_length) const {
    constexpr std::int64_t kBeginning = 4;
    const bool is_int8 = strategy().kv_cache_dtype == KvCacheDtype::kInt8;
    const std::int64_t compared = is_int8 ? std::min(prompt_length + kBeginning, want.size(1)) : want.size(1);
    if (at::equal(got.narrow(1, 0, compared), want.narrow(1, 0, compared)))
      return testing::AssertionSuccess();
    return testing::AssertionFailure() << got << " for " << want;
  }

  // Matrix products of another batch round differently; where that moves an int8 code, all behind it follows.
  double relative() const { return strategy().kv_cache_dtype == KvCacheDtype::kInt8 ? 5e-3 : 1e-5; }
  std::optional<KvCache> cache(std::int64_t batch, std::int64_t capacity = kModel.block_size) const {
    if (!strategy().use_cache) return std::nullopt;
    return KvCache(kModel, strategy(), batch, capacity, at::kFloat);
  }
};

KvCache* held(std::optional<KvCache>& cache) { return cache ? &*cache : nullptr; }

// Rows of different lengths, `padding` (random ids if negative) behind the shorter ones.
TokenBatch padded(const std::vector<at::Tensor>& rows, std::int64_t padding) {
  std::int64_t longest = 0;
  for (const at::Tensor& row : rows) longest = std::max(longest, row.size(1));
  std::vector<at::Tensor> filled;
  std::vector<std::int64_t> lengths;
  for (const at::Tensor& row : rows) {
    const std::int64_t missing = longest - row.size(1);
    filled.push_back(
        at::cat({row, padding < 0 ? random_row(missing) : at::full({1, missing}, padding, at::kLong)}, 1));
    lengths.push_back(row.size(1));
  }
  return {at::cat(filled), lengths};
}

std::vector<at::Tensor> random_rows() {
  std::vector<at::Tensor> rows;
  for (const std::int64_t length : kLengths) rows.push_back(random_row(length));
  return rows;
}

testing::AssertionResult close(const at::Tensor& got, const at::Tensor& want, double relative) {
  if (got.sizes() != want.sizes())
    return testing::AssertionFailure() << got.sizes() << " for " << want.sizes();
  const double error = (got - want).abs().max().item<double>();
  const double scale = want.abs().max().item<double>();
  if (error <= relative * scale) return testing::AssertionSuccess();
  return testing::AssertionFailure() << "off by " << error << " of " << scale;
}

// Sum of -log p of each token but the first.
double loss_of(const at::Tensor& logits, const at::Tensor& row) {
  const at::Tensor log_p = at::log_softmax(logits.to(at::kDouble), -1);
  double sum = 0;
  for (std::int64_t t = 0; t + 1 < row.size(1); ++t)
    sum -= log_p[0][t][row[0][t + 1].item<std::int64_t>()].item<double>();
  return sum;
}

// Codes of two runs whose sums round differently: a few are on the edge between two values.
testing::AssertionResult same_codes(const at::Tensor& got, const at::Tensor& want) {
  const at::Tensor steps = (got.to(at::kInt) - want.to(at::kInt)).abs();
  const auto differing = (steps > 0).sum().item<std::int64_t>();
  if (steps.max().item<int>() <= 1 && differing <= 2 + steps.numel() / 20) return testing::AssertionSuccess();
  return testing::AssertionFailure() << differing << " of " << steps.numel() << " codes differ";
}

// The rows that a cache holds of sequence b are those of another's first sequence.
void expect_same_rows(const KvCache& got, std::int64_t b, const KvCache& want, std::int64_t length,
                      double relative) {
  for (std::int64_t index = 0; index < kModel.n_layer; index += want.sharing_group()) {
    const KvCacheLayer &a = got.layer(index), &e = want.layer(index);
    const auto rows = [&](const at::Tensor& tensor, std::int64_t i) {
      return tensor[i].narrow(1, 0, length);
    };
    for (const auto& [x, y] : {std::pair(a.k, e.k), std::pair(a.v, e.v)})
      EXPECT_TRUE(x.scalar_type() == at::kChar ? same_codes(rows(x, b), rows(y, 0))
                                               : close(rows(x, b), rows(y, 0), relative))
          << "sequence " << b;
    if (!a.k_scale) continue;
    EXPECT_TRUE(close(rows(*a.k_scale, b), rows(*e.k_scale, 0), relative));
    EXPECT_TRUE(close(rows(*a.v_scale, b), rows(*e.v_scale, 0), relative));
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
      EXPECT_TRUE(close(last.narrow(0, b, 1), want.narrow(1, length - 1, 1), relative())) << b;
      const at::Tensor got = all.narrow(0, b, 1).narrow(1, 0, length);
      EXPECT_TRUE(close(got, want, relative())) << b;
      EXPECT_NEAR(loss_of(got, row), loss_of(want, row), relative() * loss_of(want, row));
      if (own) expect_same_rows(*together, b, *own, length, relative());
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

TEST_P(Sequences, OfMixedLengthsAreDecodedAsEachAlone) {
  const std::vector<at::Tensor> rows = random_rows();
  std::optional<KvCache> together = cache(4), own = cache(1);
  Sampler greedy({});
  const TokenBatch got = generate(model_, held(together), padded(rows, -1), kTokens, greedy);
  const TokenBatch again = generate(model_, held(together), padded(rows, 0), kTokens, greedy);
  EXPECT_TRUE(at::equal(got.tokens, again.tokens));
  for (std::size_t b = 0; b < 4; ++b) {
    const at::Tensor want = generate(model_, held(own), rows[b], kTokens, greedy).tokens;
    ASSERT_EQ(got.lengths[b], kLengths[b] + kTokens);
    const at::Tensor row = got.tokens.narrow(0, static_cast<std::int64_t>(b), 1);
    EXPECT_TRUE(same_tokens(row.narrow(1, 0, got.lengths[b]), want, rows[b].size(1))) << b;
    EXPECT_EQ(row.narrow(1, got.lengths[b], row.size(1) - got.lengths[b]).abs().sum().item<std::int64_t>(),
              0);
    if (own && at::equal(row.narrow(1, 0, got.lengths[b]), want))
      expect_same_rows(*together, static_cast<std::int64_t>(b), *own, want.size(1) - 1, relative());
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
    EXPECT_TRUE(close(got.narrow(0, static_cast<std::int64_t>(b), 1), want, relative())) << b;
    EXPECT_EQ(together->lengths()[b], own->length());
  }
}

// The newest token's logits of a sequence whose window is run from scratch, alone and by the rule: when it
// is full, `keep` tokens remain.
class Scratch {
 public:
  Scratch(const Gpt2& model, const Strategy& strategy, const at::Tensor& prompt, std::int64_t window,
          std::int64_t keep)
      : model_(model), strategy_(strategy), window_(window), keep_(keep) {
    for (std::int64_t t = 0; t < prompt.size(1); ++t) seen_.push_back(prompt[0][t].item<std::int64_t>());
  }
  at::Tensor logits() const {
    at::Tensor tokens = at::full({1, static_cast<std::int64_t>(seen_.size())}, 0, at::kLong);
    std::copy(seen_.begin(), seen_.end(), tokens.mutable_data_ptr<std::int64_t>());
    std::optional<KvCache> cache;  // an empty one: an int8 cache changes the result
    if (strategy_.kv_cache_dtype == KvCacheDtype::kInt8)
      cache.emplace(kModel, strategy_, 1, kModel.block_size, at::kFloat);
    return model_.forward(tokens, held(cache), LogitsOf::kLastToken);
  }
  void add(std::int64_t token) {
    seen_.push_back(token);
    if (static_cast<std::int64_t>(seen_.size()) > window_)
      while (static_cast<std::int64_t>(seen_.size()) > keep_) seen_.pop_front();
  }

 private:
  const Gpt2& model_;
  const Strategy& strategy_;
  const std::int64_t window_, keep_;
  std::deque<std::int64_t> seen_;
};

TEST_P(Sequences, SlideIsTheWindowFromScratch) {
  const std::int64_t window = kModel.block_size;
  const std::vector<at::Tensor> rows = {random_row(3), random_row(60), random_row(64), random_row(31)};
  Sampler greedy({});
  for (const auto& [keep, count] : {std::pair(32L, 75L), {1L, 8L}, {63L, 8L}, {64L, 8L}}) {
    std::optional<KvCache> together = cache(4);
    const GenerateOptions slide{.overflow = {.kind = Overflow::kSlide, .keep = keep}};
    const TokenBatch got = generate(model_, held(together), padded(rows, -1), count, greedy, slide);
    for (std::size_t b = 0; b < 4; ++b) {
      Scratch scratch(model_, strategy(), rows[b], window, keep);
      const auto* tokens = got.tokens[static_cast<std::int64_t>(b)].const_data_ptr<std::int64_t>();
      for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t token = tokens[rows[b].size(1) + i];
        const at::Tensor logits = scratch.logits().view({-1});
        // The likeliest token, or one that rounding cannot tell from it.
        ASSERT_LE((logits.max() - logits[token]).item<double>(),
                  relative() * logits.abs().max().item<double>())
            << "sequence " << b << ", token " << i << ", keep " << keep;
        scratch.add(token);
      }
    }
  }
}

TEST_P(Sequences, SinkChangesNothingBeforeTheWindowIsFull) {
  if (!strategy().use_cache) GTEST_SKIP() << "keeps no cache";
  const TokenBatch prompt = padded(random_rows(), -1);
  Sampler greedy({});
  const GenerateOptions sink{.overflow = {.kind = Overflow::kSink, .keep = 32, .sink = 4}};
  std::optional<KvCache> plain = cache(4), dropping = cache(4);
  const TokenBatch want = generate(model_, held(plain), prompt, 24, greedy);  // 40 + 24: just full
  EXPECT_TRUE(at::equal(generate(model_, held(dropping), prompt, 24, greedy, sink).tokens, want.tokens));
  EXPECT_EQ(dropping->lengths(), plain->lengths());
}

TEST_P(Sequences, SinkKeepsTheFirstRowsAndTheNewest) {
  if (!strategy().use_cache) GTEST_SKIP() << "keeps no cache";
  const OverflowPolicy policy{.kind = Overflow::kSink, .keep = 20, .sink = 4};
  const TokenBatch prompt = padded({random_row(64), random_row(30), random_row(64)}, -1);
  std::optional<KvCache> before = cache(3), after = cache(3);
  for (std::optional<KvCache>* run : {&before, &after})
    model_.forward(prompt, held(*run), LogitsOf::kLastToken);
  make_room(model_, *after, padded({random_row(65), random_row(31), random_row(65)}, -1), policy);
  EXPECT_EQ(after->lengths(), (std::vector<std::int64_t>{19, 30, 19}));

  // The rows that should be left, put together by hand.
  std::optional<KvCache> by_hand = cache(3);
  const auto put_together = [](const at::Tensor& rows, const at::Tensor& into) {
    for (const std::int64_t b : {0, 1, 2}) {
      const at::Tensor left = b == 1 ? rows[b].narrow(1, 0, 30)
                                     : at::cat({rows[b].narrow(1, 0, 4), rows[b].narrow(1, 64 - 15, 15)}, 1);
      into[b].narrow(1, 0, left.size(1)).copy_(left);
    }
  };
  for (std::int64_t index = 0; index < kModel.n_layer; index += before->sharing_group()) {
    const KvCacheLayer &rows = before->layer(index), &into = by_hand->layer(index);
    put_together(rows.k, into.k);
    put_together(rows.v, into.v);
    if (rows.k_scale) put_together(*rows.k_scale, *into.k_scale);
    if (rows.k_scale) put_together(*rows.v_scale, *into.v_scale);
  }
  by_hand->advance({19, 30, 19});
  const at::Tensor next = random_row(3).view({3, 1});
  EXPECT_TRUE(at::equal(model_.forward(next, held(after), LogitsOf::kLastToken),
                        model_.forward(next, held(by_hand), LogitsOf::kLastToken)));
}

TEST_P(Sequences, SinkGoesOnAndOnAsEachAlone) {
  if (!strategy().use_cache) GTEST_SKIP() << "keeps no cache";
  const std::vector<at::Tensor> rows = {random_row(50), random_row(9)};
  Sampler greedy({});  // refuses what is not finite
  const GenerateOptions sink{.overflow = {.kind = Overflow::kSink, .keep = 32, .sink = 4}};
  std::optional<KvCache> together = cache(2), own = cache(1);
  const TokenBatch got = generate(model_, held(together), padded(rows, -1), 170, greedy, sink);
  for (std::size_t b = 0; b < 2; ++b) {
    const at::Tensor want = generate(model_, held(own), rows[b], 170, greedy, sink).tokens;
    EXPECT_EQ(got.lengths[b], want.size(1));
    EXPECT_TRUE(
        same_tokens(got.tokens.narrow(0, static_cast<std::int64_t>(b), 1).narrow(1, 0, got.lengths[b]), want,
                    rows[b].size(1)));
  }
}

INSTANTIATE_TEST_SUITE_P(All, Sequences, testing::ValuesIn(cases()),
                         [](const auto& info) { return info.param.name; });

TEST(WindowStart, MovesWhenTheWindowIsFull) {
  // A window of 4 that keeps 2: tokens 0123, then 34 and on to 3456, then 67.
  const std::vector<std::int64_t> want = {0, 0, 0, 0, 3, 3, 3, 6, 6, 6, 9};
  for (std::size_t i = 0; i < want.size(); ++i)
    EXPECT_EQ(window_start(static_cast<std::int64_t>(i) + 1, 4, 2), want[i]) << i + 1;
  for (std::int64_t length = 5; length < 20; ++length) EXPECT_EQ(window_start(length, 4, 4), length - 4);
}

// The message of the std::exception that f throws; "" if it throws none.
template <typename F>
std::string error_of(F&& f) {
  try {
    f();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

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

  Sampler greedy({});
  const auto run = [&](KvCache* held, std::int64_t prompt, const OverflowPolicy& policy) {
    return error_of([&] {
      generate(model, held, at::cat({random_row(prompt), random_row(prompt)}), 70, greedy,
               {.overflow = policy});
    });
  };
  EXPECT_EQ(run(&cache, 8, {}), "generate: expected prompt + new tokens <= block_size 64, got 8 + 70");
  EXPECT_EQ(run(&cache, 65, {.kind = Overflow::kSlide, .keep = 8}),
            "generate: expected a prompt of at most 64 tokens, seen at once, got 65");
  EXPECT_EQ(run(&cache, 8, {.kind = Overflow::kSlide, .keep = 65}),
            "overflow: expected to keep 1 to 64 tokens (the window), got 65");
  EXPECT_EQ(run(&cache, 8, {.kind = Overflow::kSlide}),
            "overflow: expected to keep 1 to 64 tokens (the window), got 0");
  EXPECT_EQ(run(&cache, 8, {.kind = Overflow::kSink, .keep = 8, .sink = 8}),
            "overflow: expected 1 <= sink tokens < 8 (the tokens to keep), got 8");
  EXPECT_EQ(run(nullptr, 8, {.kind = Overflow::kSink, .keep = 8, .sink = 4}),
            "overflow: expected a cache for sink, got none");
}

}  // namespace
}  // namespace kvfuse
