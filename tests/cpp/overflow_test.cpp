// Generation beyond the window, of every version: judged by plain loops that run every window from scratch,
// and by caches put together by hand.
#include "csrc/model/overflow.h"

#include <deque>

#include "tests/cpp/error_of.h"
#include "tests/cpp/sequences_fixture.h"

namespace kvfuse {
namespace {

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
      const double allowed = relative(random_row(window));
      const auto* tokens = got.tokens[static_cast<std::int64_t>(b)].const_data_ptr<std::int64_t>();
      for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t token = tokens[rows[b].size(1) + i];
        const at::Tensor logits = scratch.logits().view({-1});
        // The likeliest token, or one that rounding cannot tell from it.
        ASSERT_LE((logits.max() - logits[token]).item<double>(), allowed * logits.abs().max().item<double>())
            << "sequence " << b << ", token " << i << ", keep " << keep;
        scratch.add(token);
      }
    }
  }
}

TEST_P(Sequences, SinkChangesNothingBeforeTheWindowIsFull) {
  if (!strategy().use_cache) GTEST_SKIP() << "keeps no cache";
  const TokenBatch prompt = padded({random_row(1), random_row(7), random_row(40), random_row(13)}, -1);
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
  const GenerateOptions sink{.overflow = {.kind = Overflow::kSink, .keep = 32, .sink = 4}};
  expect_neighbours_do_not_matter(rows, 170, sink);
  if (is_int8()) return;  // alone, the matrix products have another shape: see relative()
  Sampler greedy({});
  std::optional<KvCache> together = cache(2), own = cache(1);
  const TokenBatch got = generate(model_, held(together), padded(rows, -1), 170, greedy, sink);
  for (std::size_t b = 0; b < 2; ++b) {
    const at::Tensor want = generate(model_, held(own), rows[b], 170, greedy, sink).tokens;
    EXPECT_TRUE(
        at::equal(got.tokens.narrow(0, static_cast<std::int64_t>(b), 1).narrow(1, 0, got.lengths[b]), want));
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

TEST(OverflowErrors, NameTheRuleAndTheValue) {
  const Gpt2 model(random_weights(kModel, at::kFloat, 7));
  KvCache cache(kModel, cached_baseline(), 2, 64, at::kFloat);
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
