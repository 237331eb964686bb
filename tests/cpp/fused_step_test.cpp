// The fused decode step of every version against the same pass operation by operation.
#include "csrc/model/fused_step.h"

#include <ATen/ops/equal.h>

#include "tests/cpp/error_of.h"
#include "tests/cpp/sequences_fixture.h"

namespace kvfuse {
namespace {

class FusedStep : public Sequences {};

TEST_P(FusedStep, GivesTheLogitsOfThePassByOperations) {
  if (!strategy().use_cache) GTEST_SKIP() << "keeps no cache";
  const std::vector<at::Tensor> rows = {random_row(1), random_row(7), random_row(40), random_row(13)};
  std::optional<KvCache> fused = cache(4), plain = cache(4);
  model_.forward_unfused(padded(rows, 0), held(fused), LogitsOf::kLastToken);
  model_.forward_unfused(padded(rows, 0), held(plain), LogitsOf::kLastToken);
  for (int step = 0; step < 8; ++step) {
    const at::Tensor tokens = random_row(4).transpose(0, 1);  // not contiguous
    ASSERT_TRUE(suits_fused_step(model_.weights(), tokens));
    const at::Tensor got = model_.forward(tokens, held(fused), LogitsOf::kLastToken);
    const at::Tensor want = model_.forward_unfused(tokens, held(plain), LogitsOf::kEveryToken);
    // A value on the edge of two codes of an int8 cache may fall to either side.
    const double allowed = (is_int8() ? 2e-2 : 0.0) + rounding_of_products();
    EXPECT_TRUE(close(got, want, allowed)) << "step " << step;
    EXPECT_EQ(fused->lengths(), plain->lengths());
    EXPECT_TRUE(at::equal(fused->cache_seqlens(), plain->cache_seqlens()));
  }
}

TEST_P(FusedStep, TellsThePhasesAsThePassByOperationsDoes) {
  if (!strategy().use_cache) GTEST_SKIP() << "keeps no cache";
  const auto phases_of = [&](auto forward) {
    std::optional<KvCache> fresh = cache(1);
    std::vector<Phase> phases;
    (model_.*forward)(random_row(1), held(fresh), LogitsOf::kLastToken,
                      [&](Phase phase) { phases.push_back(phase); });
    return phases;
  };
  EXPECT_EQ(phases_of(&Gpt2::forward), phases_of(&Gpt2::forward_unfused));
}

INSTANTIATE_TEST_SUITE_P(All, FusedStep, testing::ValuesIn(cases()),
                         [](const auto& info) { return info.param.name; });

TEST(FusedStepDtypes, SixteenBitWeights) {
  const c10::InferenceMode inference;
  for (const at::ScalarType dtype : {at::kBFloat16, at::kHalf}) {
    const Gpt2 model(random_weights(kModel, dtype, 7, 0.2));
    KvCache fused(kModel, cached_baseline(), 1, 64, dtype), plain(kModel, cached_baseline(), 1, 64, dtype);
    for (int step = 0; step < 4; ++step) {
      const at::Tensor token = random_row(1);
      const at::Tensor got = model.forward(token, &fused, LogitsOf::kLastToken);
      const at::Tensor want = model.forward_unfused(token, &plain, LogitsOf::kLastToken);
      EXPECT_EQ(got.scalar_type(), dtype);
      EXPECT_TRUE(close(got.to(at::kFloat), want.to(at::kFloat), dtype == at::kHalf ? 5e-3 : 4e-2));
    }
  }
}

TEST(FusedStepDtypes, IsNotForWhatItCannotDo) {
  const Gpt2Weights small = random_weights(kModel, at::kFloat, 7);
  EXPECT_TRUE(suits_fused_step(small, random_row(1)));
  EXPECT_FALSE(suits_fused_step(small, random_row(2)));
  EXPECT_FALSE(suits_fused_step(small, random_row(65).transpose(0, 1)));
  EXPECT_FALSE(suits_fused_step(random_weights(kModel, at::kDouble, 7), random_row(1)));
}

TEST(FusedStepErrors, TokensOutsideTheVocabulary) {
  const Gpt2 model(random_weights(kModel, at::kFloat, 7));
  KvCache cache(kModel, cached_baseline(), 1, 64, at::kFloat);
  for (const std::int64_t id : {std::int64_t{-1}, kModel.vocab_size})
    EXPECT_EQ(error_of([&] {
                model.forward(at::full({1, 1}, id, at::kLong), &cache, LogitsOf::kLastToken);
              }),
              "Gpt2::forward: expected tokens in [0, 211), got " + std::to_string(id));
  EXPECT_EQ(cache.length(), 0);
}

}  // namespace
}  // namespace kvfuse
