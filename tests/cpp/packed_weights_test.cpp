// Models of packed weights against the same models of weights in rows.
#include "csrc/model/packed_weights.h"

#include "csrc/model/layer_sharing.h"
#include "csrc/model/quantized_weights.h"
#include "csrc/model/training.h"
#include "csrc/ops/cpu_step.h"
#include "tests/cpp/error_of.h"
#include "tests/cpp/sequences_fixture.h"

namespace kvfuse {
namespace {

Gpt2 packed(Gpt2Weights weights) {
  Gpt2Weights* const all[] = {&weights};
  pack_weights(all);
  return Gpt2(std::move(weights));
}

// Whole groups of 4-bit weights.
constexpr ModelConfig kOfGroups{.n_layer = 1, .n_head = 2, .n_embd = 32, .block_size = 32, .vocab_size = 57};

Gpt2Weights wide_weights(const ModelConfig& config = kModel) {
  return random_weights(config, at::kFloat, 7, 0.2);
}

class PackedWeights : public Sequences {};

TEST_P(PackedWeights, GiveTheLogitsOfWeightsInRows) {
  const WeightDtype dtype = strategy().weight_dtype;
  const bool packs_them = dtype != WeightDtype::kInt8 || ops::cpu_multiplies_bytes();
  const Gpt2 other = packed(prepare_weights(wide_weights(), strategy(), {}, random_row(512)[0]).weights);
  ASSERT_EQ(other.weights().packed, packs_them);
  ASSERT_EQ(other.weights().packed_tokens, dtype == WeightDtype::kModel || ops::cpu_multiplies_bytes());
  if (strategy().q_alignment == QAlignment::kFit || !packs_them) return;  // drawn anew, not packed
  const double allowed = (is_int8() ? 2e-2 : 0.0) + rounding_of_products();
  const std::vector<at::Tensor> rows = {random_row(1), random_row(47), random_row(30), random_row(13)};
  std::optional<KvCache> got_cache = cache(4), want_cache = cache(4);
  for (const LogitsOf which : {LogitsOf::kLastToken, LogitsOf::kEveryToken}) {
    if (got_cache) got_cache->reset();
    if (want_cache) want_cache->reset();
    const at::Tensor got = other.forward(padded(rows, 0), held(got_cache), which);
    EXPECT_TRUE(close(got, model_.forward(padded(rows, 0), held(want_cache), which), allowed));
  }
  if (!strategy().use_cache) return;
  for (int step = 0; step < 8; ++step) {
    const at::Tensor tokens = random_row(4).transpose(0, 1);
    const at::Tensor want = model_.forward_unfused(tokens, held(want_cache), LogitsOf::kLastToken);
    EXPECT_TRUE(close(other.forward(tokens, held(got_cache), LogitsOf::kLastToken), want, allowed)) << step;
  }
}

INSTANTIATE_TEST_SUITE_P(All, PackedWeights, testing::ValuesIn(cases()),
                         [](const auto& info) { return info.param.name; });

// A batch is cut into groups of rows, a prompt alone into others; products are the same sums in each.
TEST(PackedModels, APromptHasTheSameBitsInAnyBatch) {
  const c10::InferenceMode inference;
  const Gpt2 model = packed(wide_weights());
  const std::vector<at::Tensor> rows = {random_row(37), random_row(5), random_row(21)};
  KvCache together(kModel, cached_baseline(), 3, 64, at::kFloat);
  const at::Tensor got = model.forward(padded(rows, -1), &together, LogitsOf::kLastToken);
  for (std::size_t b = 0; b < rows.size(); ++b) {
    KvCache own(kModel, cached_baseline(), 1, 64, at::kFloat);
    const at::Tensor want = model.forward(rows[b], &own, LogitsOf::kLastToken);
    EXPECT_TRUE(at::equal(got[static_cast<std::int64_t>(b)], want[0])) << b;
  }
}

// Layers of 24 queries: those that a layer shares with a longer weight do not end with a panel.
TEST(PackedModels, ShareTheMemoryThatTheirVersionsShare) {
  const c10::InferenceMode inference;
  for (const ModelConfig& config :
       {kModel, ModelConfig{.n_layer = 4, .n_head = 3, .n_embd = 24, .block_size = 32, .vocab_size = 57}}) {
    const Gpt2Weights own = wide_weights(config);
    std::vector<Gpt2Weights> all = {with_shared_layers(own, find_version("v3")), own,
                                    with_shared_layers(own, find_version("v3a"))};
    const at::Tensor tokens = random_token_ids({2, 20}, config.vocab_size, 3);
    std::vector<at::Tensor> want;
    for (const Gpt2Weights& weights : all)
      want.push_back(Gpt2(weights).forward(tokens, nullptr, LogitsOf::kEveryToken));
    pack_weights(std::vector{&all[0], &all[1], &all[2]});
    for (std::size_t i = 0; i < all.size(); ++i) {
      EXPECT_EQ(all[i].token_embedding.data_ptr(), own.token_embedding.data_ptr());
      EXPECT_EQ(all[i].layers[1].qkv_weight.data_ptr() == own.layers[1].qkv_weight.data_ptr(),
                i == 1 || (i == 0 && config.n_embd % 16 == 0));
      EXPECT_TRUE(close(Gpt2(all[i]).forward(tokens, nullptr, LogitsOf::kEveryToken), want[i], 1e-5)) << i;
    }
  }
}

TEST(PackedModels, UnpackToWhatTheyWere) {
  for (const WeightDtype dtype : {WeightDtype::kModel, WeightDtype::kInt8, WeightDtype::kInt4}) {
    if (dtype == WeightDtype::kInt8 && !ops::cpu_multiplies_bytes()) continue;
    const auto draw = [&] {
      Gpt2Weights weights = wide_weights(dtype == WeightDtype::kInt4 ? kOfGroups : kModel);
      return dtype == WeightDtype::kModel ? weights : with_quantized_linears(std::move(weights), dtype);
    };
    Gpt2Weights weights = draw(), own = draw();
    pack_weights(std::vector{&weights});
    EXPECT_FALSE(at::equal(weights.layers[0].qkv_weight, own.layers[0].qkv_weight));
    EXPECT_NE(at::equal(weights.token_embedding, own.token_embedding), weights.packed_tokens);
    unpack_weights(weights);
    EXPECT_FALSE(weights.packed || weights.packed_tokens);
    const std::vector<NamedTensor> got = weights.tensors(), want = own.tensors();
    for (std::size_t i = 0; i < got.size(); ++i) EXPECT_TRUE(at::equal(*got[i].tensor, *want[i].tensor));
  }
}

// Stored as codes, whose versions are of the same codes.
TEST(PackedModels, VersionsOfCodesShareTheirMemory) {
  if (!ops::cpu_multiplies_bytes()) GTEST_SKIP() << "no products of bytes (VNNI)";
  Gpt2Weights own = with_quantized_linears(wide_weights(), WeightDtype::kInt8);
  pack_weights(std::vector{&own});
  const Gpt2Weights version = prepare_weights(own, find_version("v2w8"), {}, {}).weights;
  EXPECT_TRUE(version.packed);
  EXPECT_EQ(version.token_embedding.data_ptr(), own.token_embedding.data_ptr());
}

TEST(PackedModels, AreTrainedAsTheOthers) {
  const at::Tensor tokens = random_token_ids({2, 20}, kModel.vocab_size, 3);
  Trainer trainer(packed(wide_weights()).weights()), plain(wide_weights());
  for (int step = 0; step < 3; ++step) EXPECT_EQ(trainer.step(tokens, 1e-3), plain.step(tokens, 1e-3));
}

TEST(PackedModels, OnlyOfWeightsThatTheKernelsHave) {
  EXPECT_TRUE(suits_packing(wide_weights()));
  EXPECT_FALSE(suits_packing(packed(wide_weights()).weights()));
  EXPECT_FALSE(suits_packing(random_weights(kModel, at::kDouble, 7)));
  EXPECT_EQ(suits_packing(with_quantized_linears(wide_weights(), WeightDtype::kInt8)),
            ops::cpu_multiplies_bytes());
  EXPECT_TRUE(suits_packing(with_quantized_linears(wide_weights(kOfGroups), WeightDtype::kInt4)));
}

TEST(PackedModels, RefuseTokensOutsideTheVocabulary) {
  const Gpt2 model = packed(wide_weights());
  for (const std::int64_t id : {std::int64_t{-1}, kModel.vocab_size})
    EXPECT_EQ(error_of([&] {
                model.forward(at::full({1, 3}, id, at::kLong), nullptr, LogitsOf::kLastToken);
              }),
              "Gpt2::forward: expected tokens in [0, 211), got " + std::to_string(id));
}

}  // namespace
}  // namespace kvfuse
