// The models of attention kernels.
#include "csrc/roofline/attention_model.h"

#include <gtest/gtest.h>

#include <random>

#include "tests/cpp/error_of.h"

namespace kvfuse::roofline {
namespace {

using enum AttentionKernel;

const Hardware& vendor(const char* name) { return HardwareRegistry::builtin().find(name); }
const Hardware& gb10() { return HardwareRegistry::builtin().find("gb10", Profile::kReference); }

struct Case {
  AttentionKernel kernel;
  AttentionShape shape;
  double flops, bytes;
};

constexpr AttentionShape kDecode = {
    .batch = 2, .n_head = 8, .n_kv_head = 2, .head_dim = 64, .query_tokens = 1, .kv_len = 1000};
constexpr AttentionShape kPrefill = {
    .batch = 1, .n_head = 4, .n_kv_head = 4, .head_dim = 32, .query_tokens = 3, .kv_len = 3};

AttentionShape changed(AttentionShape shape, bool causal, double kept_share) {
  shape.causal = causal;
  shape.kept_share = kept_share;
  return shape;
}

TEST(Attention, FlopsAndBytes) {
  // Decode: 2 x 8 queries of 64 and as many results in 16 bits; 2 x 1000 x 2 rows of 64 for K and for V.
  constexpr double kQueries = 2 * 2 * 8 * 64 * 2;
  constexpr double kRows = 2.0 * 2 * 1000 * 2;
  // Prefill: 6 of 9 pairs are visible.
  constexpr double kPrompt = 2 * 3 * 4 * 32 * 2;
  const Case cases[] = {
      {kFlash1, kDecode, 4.0 * 2 * 8 * 64 * 1000, kQueries + kRows * 128},
      {kFlash2, kDecode, 4.0 * 2 * 8 * 64 * 1000, kQueries + kRows * 128},
      {kFlash3, kDecode, 4.0 * 2 * 8 * 64 * 1000, kQueries + kRows * 64},
      {kFlash4, kDecode, 4.0 * 2 * 8 * 64 * 1000, kQueries + kRows * 64},
      {kKvfuseInt8, kDecode, 4.0 * 2 * 8 * 64 * 1000, kQueries + kRows * (64 + 4)},
      {kStandard, kDecode, 4.0 * 2 * 8 * 64 * 1000, kQueries + kRows * 64 + 4 * 2 * 8 * 1000 * 2},
      {kFlash4, changed(kDecode, true, 0.25), 2 * 8 * 64 * 1000, kQueries + kRows * 16},
      {kFlash2, kPrefill, 4 * 4 * 32 * 6, kPrompt + 2 * 3 * 4 * 64},
      {kFlash2, changed(kPrefill, false, 1), 4 * 4 * 32 * 9, kPrompt + 2 * 3 * 4 * 64},
      {kStandard, kPrefill, 4 * 4 * 32 * 6, kPrompt + 2 * 3 * 4 * 32 + 4 * 4 * 9 * 2},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(attention_name(c.kernel));
    const AttentionPrediction got = predict_attention(vendor("h100"), c.kernel, c.shape, Precision::kFp8);
    EXPECT_EQ(got.flops, c.flops);
    EXPECT_EQ(got.bytes, c.bytes);
    EXPECT_DOUBLE_EQ(got.ai, c.flops / c.bytes);
  }
}

TEST(Attention, ThePublishedRatiosHoldWhereOneLimitBounds) {
  // 33.8, 29.4, 15.4 and 15.4 ms: FA3 and FA4 in FP8.
  const AttentionShape prompt{
      .n_head = 32, .n_kv_head = 32, .head_dim = 128, .query_tokens = 8192, .kv_len = 8192};
  const std::vector<AttentionPrediction> got =
      compare_attention(gb10(), prompt, EfficiencyProfile::kReference);
  ASSERT_EQ(got.size(), 5U);  // 8192 query tokens are no decode step
  EXPECT_DOUBLE_EQ(got[1].speedup, 1);
  EXPECT_NEAR(got[2].speedup, 33.8 / 29.4, 1e-12);
  EXPECT_NEAR(got[3].speedup, 33.8 / 15.4, 1e-12);
  EXPECT_NEAR(got[4].speedup, 33.8 / 15.4, 1e-12);
  EXPECT_NEAR(got[3].speedup, 2.20, 0.01);
  EXPECT_EQ(got[3].precision, Precision::kFp8);
}

TEST(Attention, ThePapersUtilisationIsOfTheArithmetic) {
  const AttentionShape prompt{
      .batch = 4, .n_head = 16, .n_kv_head = 16, .head_dim = 128, .query_tokens = 16384, .kv_len = 16384};
  const auto tflops = [&](const char* hardware, AttentionKernel kernel, Precision precision) {
    const AttentionPrediction got = predict_attention(vendor(hardware), kernel, prompt, precision);
    EXPECT_EQ(got.bound, Bound::kCompute);
    return got.flops / got.time_ms / 1e9;
  };
  EXPECT_NEAR(tflops("a100", kFlash1, Precision::kFp16), 0.325 * 312, 1e-9);
  EXPECT_NEAR(tflops("a100", kFlash2, Precision::kFp16), 0.615 * 312, 1e-9);
  EXPECT_NEAR(tflops("h100", kFlash3, Precision::kFp16), 742.05, 1e-9);  // the paper has 740
  EXPECT_NEAR(tflops("h100", kFlash3, Precision::kFp8), 1200, 1e-9);
  EXPECT_NEAR(tflops("b200", kFlash4, Precision::kBf16), 1597.5, 1e-9);  // the paper has 1613
}

TEST(Attention, DecodeOverAnInt8CacheIsBoundByItsBytes) {
  const AttentionPrediction wide = predict_attention(vendor("h200"), kFlash2, kDecode, Precision::kFp16);
  const AttentionPrediction int8 = predict_attention(vendor("h200"), kKvfuseInt8, kDecode, Precision::kFp16);
  EXPECT_EQ(int8.precision, Precision::kInt8);
  EXPECT_EQ(int8.bound, Bound::kMemory);
  EXPECT_DOUBLE_EQ(int8.time_ms, int8.memory_ms / 0.79);
  EXPECT_DOUBLE_EQ(wide.bytes / int8.bytes, (4096 + 8000 * 128.0) / (4096 + 8000 * 68.0));
}

TEST(Attention, SkippedBlocksTakeNoTime) {
  const AttentionShape prompt{
      .n_head = 16, .n_kv_head = 16, .head_dim = 128, .query_tokens = 8192, .kv_len = 8192};
  const double dense = predict_attention(vendor("b200"), kFlash4, prompt, Precision::kFp8).time_ms;
  const double sparse =
      predict_attention(vendor("b200"), kFlash4, changed(prompt, true, 0.25), Precision::kFp8).time_ms;
  EXPECT_NEAR(sparse / dense, 0.25, 1e-12);
}

TEST(Attention, NeverBelowItsRoofs) {
  std::mt19937 random(9);
  const auto& machines = HardwareRegistry::builtin().all();
  for (int i = 0; i < 1000; ++i) {
    const std::int64_t length = 1 + static_cast<std::int64_t>(random() % 5000);
    const std::int64_t kv_heads = 1 << (random() % 4);
    const AttentionShape shape{.batch = 1 + static_cast<std::int64_t>(random() % 9),
                               .n_head = kv_heads * (1 << (random() % 3)),
                               .n_kv_head = kv_heads,
                               .head_dim = 64 << (random() % 2),
                               .query_tokens = 1 + static_cast<std::int64_t>(random()) % length,
                               .kv_len = length};
    for (const AttentionPrediction& got : compare_attention(machines[random() % machines.size()], shape)) {
      EXPECT_GE(got.time_ms, got.memory_ms);
      EXPECT_GE(got.time_ms, got.compute_ms);
      EXPECT_GT(got.ai, 0);
      EXPECT_FALSE(got.efficiency.source.empty());
    }
  }
}

TEST(Attention, RefusesWhatCannotBe) {
  const auto error = [](AttentionKernel kernel, auto&& change) {
    AttentionShape shape = kDecode;
    change(shape);
    return error_of([&] { predict_attention(vendor("h100"), kernel, shape, Precision::kFp16); });
  };
  EXPECT_EQ(error(kFlash2, [](AttentionShape& s) { s.kept_share = 0.5; }),
            "roofline: expected kept_share to be 1 for FA2, which skips no blocks, got 0.5");
  EXPECT_EQ(error(kFlash4, [](AttentionShape& s) { s.kept_share = std::nan(""); }),
            "roofline: expected 0 < kept_share <= 1, got nan");
  EXPECT_EQ(error(kFlash4, [](AttentionShape& s) { s.kept_share = -1; }),
            "roofline: expected 0 < kept_share <= 1, got -1");
  EXPECT_EQ(error(kFlash2, [](AttentionShape& s) { s.n_kv_head = 3; }),
            "roofline: expected n_head to be a multiple of n_kv_head, got n_head 8 and n_kv_head 3");
  EXPECT_EQ(error(kFlash2, [](AttentionShape& s) { s.query_tokens = 1001; }),
            "roofline: expected 1 <= query_tokens <= 1000, got 1001");
  EXPECT_EQ(parse_attention("fa3"), kFlash3);
  EXPECT_EQ(parse_attention("kvfuse_int8"), kKvfuseInt8);
  EXPECT_EQ(
      error_of([] { parse_attention("FA5"); }),
      "roofline: attention: expected one of standard, FA1, FA2, FA3, FA4, kvfuse-int8, got \"FA5\" (did "
      "you mean FA1?)");
}

}  // namespace
}  // namespace kvfuse::roofline
