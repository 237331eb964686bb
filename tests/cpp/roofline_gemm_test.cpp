// Matrix products on the roofline against figures worked out from the definition: FLOPs 2 M N K; bytes of the
// weights with their scales and of 16-bit activations (32-bit beside FP32 weights); each over the machine's
// rate.
#include "csrc/roofline/gemm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "tests/cpp/error_of.h"

namespace kvfuse::roofline {
namespace {

const HardwareRegistry& registry() { return HardwareRegistry::builtin(); }

using enum Precision;
using enum Bound;

struct Case {
  const char* hardware;
  GemmShape shape;
  Precision precision;
  double flops, bytes, ai, memory_us, compute_us;
  Precision computed_in;
  Bound bound;
};

const Case kCases[] = {
    {"a6000", {1, 4096, 4096}, kFp16, 33554432, 33570816, 0.999512, 43.712, 0.21676, kFp16, kMemory},
    {"a6000", {1, 14336, 4096}, kFp8, 117440512, 58757120, 1.99875, 76.5067, 0.75866, kFp16, kMemory},
    {"a6000", {1, 50257, 768}, kInt8, 77194752, 38900454, 1.98442, 50.6516, 0.249257, kInt8, kMemory},
    {"a6000", {16, 4096, 4096}, kInt4, 536870912, 8912896, 60.2353, 11.6053, 0.8669, kInt4, kMemory},
    {"a6000", {512, 3072, 768}, kNvfp4, 2415919104, 5259264, 459.364, 6.848, 15.6067, kFp16, kCompute},
    {"a6000", {4096, 4096, 4096}, kFp32, 137438953472, 201326592, 682.667, 262.144, 3551.39, kFp32, kCompute},
    {"a6000",
     {8192, 28672, 8192},
     kFp16,
     3848290697216,
     1073741824,
     3584.0,
     1398.1,
     24859.8,
     kFp16,
     kCompute},
    {"a6000", {1, 1, 1}, kFp8, 2, 5, 0.4, 6.51042e-06, 1.29199e-08, kFp16, kMemory},
    {"a6000", {7, 100, 130}, kInt8, 182000, 16620, 10.9507, 0.0216406, 0.000587665, kInt8, kMemory},
    {"rtx4090", {1, 4096, 4096}, kInt4, 33554432, 8667136, 3.87146, 8.59835, 0.0253969, kInt4, kMemory},
    {"rtx4090", {1, 14336, 4096}, kNvfp4, 117440512, 33067008, 3.55159, 32.8046, 0.710899, kFp16, kMemory},
    {"rtx4090", {1, 50257, 768}, kFp32, 77194752, 154593604, 0.49934, 153.367, 0.934561, kFp32, kMemory},
    {"rtx4090", {16, 4096, 4096}, kFp16, 536870912, 33816576, 15.876, 33.5482, 3.24982, kFp16, kMemory},
    {"rtx4090", {512, 3072, 768}, kFp8, 2415919104, 6291456, 384.0, 6.24152, 7.31432, kFp8, kCompute},
    {"rtx4090",
     {4096, 4096, 4096},
     kInt8,
     137438953472,
     83902464,
     1638.08,
     83.2366,
     208.052,
     kInt8,
     kCompute},
    {"rtx4090",
     {8192, 28672, 8192},
     kInt4,
     3848290697216,
     725090304,
     5307.33,
     719.336,
     2912.72,
     kInt4,
     kCompute},
    {"rtx4090", {1, 1, 1}, kNvfp4, 2, 5.5, 0.363636, 5.45635e-06, 1.21065e-08, kFp16, kMemory},
    {"rtx4090", {7, 100, 130}, kFp32, 182000, 58440, 3.11431, 0.0579762, 0.00220339, kFp32, kMemory},
    {"a100-80", {1, 4096, 4096}, kFp16, 33554432, 33570816, 0.999512, 16.4644, 0.107546, kFp16, kMemory},
    {"a100-80", {1, 14336, 4096}, kFp8, 117440512, 58757120, 1.99875, 28.8166, 0.376412, kFp16, kMemory},
    {"a100-80", {1, 50257, 768}, kInt8, 77194752, 38900454, 1.98442, 19.0782, 0.12371, kInt8, kMemory},
    {"a100-80", {16, 4096, 4096}, kInt4, 536870912, 8912896, 60.2353, 4.37121, 0.430185, kInt4, kMemory},
    {"a100-80", {512, 3072, 768}, kNvfp4, 2415919104, 5259264, 459.364, 2.57933, 7.74333, kFp16, kCompute},
    {"a100-80",
     {4096, 4096, 4096},
     kFp32,
     137438953472,
     201326592,
     682.667,
     98.7379,
     7048.15,
     kFp32,
     kCompute},
    {"a100-80",
     {8192, 28672, 8192},
     kFp16,
     3848290697216,
     1073741824,
     3584.0,
     526.602,
     12334.3,
     kFp16,
     kCompute},
    {"a100-80", {1, 1, 1}, kFp8, 2, 5, 0.4, 2.45218e-06, 6.41026e-09, kFp16, kMemory},
    {"a100-80", {7, 100, 130}, kInt8, 182000, 16620, 10.9507, 0.00815105, 0.000291667, kInt8, kMemory},
    {"h100", {1, 4096, 4096}, kInt4, 33554432, 8667136, 3.87146, 2.5872, 0.0339139, kFp16, kMemory},
    {"h100", {1, 14336, 4096}, kNvfp4, 117440512, 33067008, 3.55159, 9.87075, 0.118699, kFp16, kMemory},
    {"h100", {1, 50257, 768}, kFp32, 77194752, 154593604, 0.49934, 46.1473, 1.15388, kFp32, kMemory},
    {"h100", {16, 4096, 4096}, kFp16, 536870912, 33816576, 15.876, 10.0945, 0.542623, kFp16, kMemory},
    {"h100", {512, 3072, 768}, kFp8, 2415919104, 6291456, 384.0, 1.87805, 1.22084, kFp8, kMemory},
    {"h100", {4096, 4096, 4096}, kInt8, 137438953472, 83902464, 1638.08, 25.0455, 69.4522, kInt8, kCompute},
    {"h100",
     {8192, 28672, 8192},
     kInt4,
     3848290697216,
     725090304,
     5307.33,
     216.445,
     3889.52,
     kFp16,
     kCompute},
    {"h100", {1, 1, 1}, kNvfp4, 2, 5.5, 0.363636, 1.64179e-06, 2.02143e-09, kFp16, kMemory},
    {"h100", {7, 100, 130}, kFp32, 182000, 58440, 3.11431, 0.0174448, 0.00272048, kFp32, kMemory},
    {"b200", {1, 4096, 4096}, kFp16, 33554432, 33570816, 0.999512, 4.19635, 0.0149131, kFp16, kMemory},
    {"b200", {1, 14336, 4096}, kFp8, 117440512, 58757120, 1.99875, 7.34464, 0.0260979, kFp8, kMemory},
    {"b200", {1, 50257, 768}, kInt8, 77194752, 38900454, 1.98442, 4.86256, 0.0171544, kInt8, kMemory},
    {"b200", {16, 4096, 4096}, kInt4, 536870912, 8912896, 60.2353, 1.11411, 0.238609, kFp16, kMemory},
    {"b200", {512, 3072, 768}, kNvfp4, 2415919104, 5259264, 459.364, 0.657408, 0.268435, kNvfp4, kMemory},
    {"b200", {4096, 4096, 4096}, kFp32, 137438953472, 201326592, 682.667, 25.1658, 1717.99, kFp32, kCompute},
    {"b200",
     {8192, 28672, 8192},
     kFp16,
     3848290697216,
     1073741824,
     3584.0,
     134.218,
     1710.35,
     kFp16,
     kCompute},
    {"b200", {1, 1, 1}, kFp8, 2, 5, 0.4, 6.25e-07, 4.44444e-10, kFp8, kMemory},
    {"b200", {7, 100, 130}, kInt8, 182000, 16620, 10.9507, 0.0020775, 4.04444e-05, kInt8, kMemory},
    {"gb10", {1, 4096, 4096}, kInt4, 33554432, 8667136, 3.87146, 31.7478, 0.268435, kFp16, kMemory},
    {"gb10", {1, 14336, 4096}, kNvfp4, 117440512, 33067008, 3.55159, 121.125, 0.234881, kNvfp4, kMemory},
    {"gb10", {1, 50257, 768}, kFp16, 77194752, 77296802, 0.99868, 283.138, 0.617558, kFp16, kMemory},
    {"gb10", {16, 4096, 4096}, kFp16, 536870912, 33816576, 15.876, 123.87, 4.29497, kFp16, kMemory},
    {"gb10", {512, 3072, 768}, kFp8, 2415919104, 6291456, 384.0, 23.0456, 9.66368, kFp8, kMemory},
    {"gb10", {4096, 4096, 4096}, kInt8, 137438953472, 83902464, 1638.08, 307.335, 549.756, kInt8, kCompute},
    {"gb10",
     {8192, 28672, 8192},
     kInt4,
     3848290697216,
     725090304,
     5307.33,
     2656.01,
     30786.3,
     kFp16,
     kCompute},
    {"gb10", {1, 1, 1}, kNvfp4, 2, 5.5, 0.363636, 2.01465e-05, 4e-09, kNvfp4, kMemory},
    {"gb10", {7, 100, 130}, kFp16, 182000, 29220, 6.22861, 0.107033, 0.001456, kFp16, kMemory},
};

TEST(Gemm, EveryCase) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(std::string(c.hardware) + " " + std::string(precision_name(c.precision)));
    const GemmPrediction got = predict_gemm(registry().find(c.hardware), c.shape, c.precision);
    EXPECT_EQ(got.flops, c.flops);
    EXPECT_EQ(got.bytes, c.bytes);
    EXPECT_NEAR(got.ai / c.ai, 1, 1e-5);                       // six digits are given
    EXPECT_NEAR(got.memory_time_us / c.memory_us, 1, 1e-5);    // six digits are given
    EXPECT_NEAR(got.compute_time_us / c.compute_us, 1, 1e-5);  // six digits are given
    EXPECT_EQ(got.predicted_time_us, std::max(got.memory_time_us, got.compute_time_us));
    EXPECT_EQ(got.computed_in, c.computed_in);
    EXPECT_EQ(got.storage_only, c.precision != c.computed_in);
    EXPECT_EQ(got.bottleneck, c.bound);
  }
}

// The published GB10 at 287 GB/s.
TEST(Gemm, PublishedGoldenValues) {
  struct Golden {
    Precision precision;
    Accounting accounting;
    double bytes, time_us, ai;
  };
  const Golden goldens[] = {{Precision::kFp16, Accounting::kComplete, 33570816, 116.97, 0.9995},
                            {Precision::kFp8, Accounting::kComplete, 16793600, 58.51, 1.998},
                            {Precision::kInt4, Accounting::kPayloadOnly, 8404992, 29.29, 3.992},
                            {Precision::kNvfp4, Accounting::kPayloadOnly, 8404992, 29.29, 3.992},
                            {Precision::kNvfp4, Accounting::kComplete, 9453568, 32.94, 3.549}};
  for (const Golden& golden : goldens) {
    const GemmPrediction got =
        predict_gemv(registry().find("b10", Profile::kReference), 4096, 4096, golden.precision,
                     {.activations = std::nullopt, .accounting = golden.accounting});
    EXPECT_EQ(got.bytes, golden.bytes);
    EXPECT_NEAR(got.predicted_time_us, golden.time_us, 0.005);
    EXPECT_NEAR(got.ai, golden.ai, 0.0005);
    EXPECT_EQ(got.bottleneck, Bound::kMemory);
  }
}

TEST(Gemm, AGemvIsAGemmOfOneRow) {
  const Hardware& h100 = registry().find("h100");
  const GemmPrediction gemv = predict_gemv(h100, 300, 500, Precision::kFp8);
  const GemmPrediction gemm = predict_gemm(h100, {1, 300, 500}, Precision::kFp8);
  EXPECT_EQ(gemv.bytes, gemm.bytes);
  EXPECT_EQ(gemv.predicted_time_us, gemm.predicted_time_us);
}

TEST(Gemm, RatesAreOfThePredictedTime) {
  const GemmPrediction got = predict_gemm(registry().find("a100"), {64, 4096, 4096}, Precision::kFp16);
  EXPECT_DOUBLE_EQ(got.predicted_bandwidth_gb_s, 2039);  // it is memory that bounds it
  EXPECT_NEAR(got.predicted_tflops, got.ai * 2039e9 / 1e12, 1e-9);
}

TEST(Gemm, AtTheRidgeArithmeticCountsAsTheBound) {
  Hardware flat = registry().find("h100");
  flat.bandwidth_gb_s.value = 1;
  flat.peak_tflop_s = {{Precision::kFp16, {0.001, "made up"}}};  // 1 FLOP a byte
  // 2 M N K = 2 (N K + M K + M N) for M = 2, N = 4, K = 4: 64 FLOPs, 64 bytes
  const GemmPrediction got = predict_gemm(flat, {2, 4, 4}, Precision::kFp16);
  EXPECT_EQ(got.ai, 1);
  EXPECT_EQ(got.critical_ai, 1);
  EXPECT_EQ(got.bottleneck, Bound::kCompute);
}

// Random shapes on every machine and in every format.
class GemmProperties : public ::testing::Test {
 protected:
  template <typename F>
  void for_random_products(F&& check) {
    std::mt19937 random(7);
    std::uniform_real_distribution<double> exponent(0, 16);
    const auto size = [&] { return static_cast<std::int64_t>(std::exp2(exponent(random))); };
    for (int i = 0; i < 2000; ++i) {
      const auto& machines = registry().all();
      check(machines[random() % machines.size()], GemmShape{size(), size(), size()},
            kAllPrecisions[random() % kAllPrecisions.size()]);
    }
  }
};

TEST_F(GemmProperties, NeverFasterThanEitherRoof) {
  for_random_products([](const Hardware& h, const GemmShape& shape, Precision p) {
    const GemmPrediction got = predict_gemm(h, shape, p);
    EXPECT_GE(got.predicted_time_us, 1e6 * got.bytes / h.bytes_per_s());
    EXPECT_GE(got.predicted_time_us, 1e6 * got.flops / peak_of(h, p).flops_per_s);
    EXPECT_GT(got.ai, 0);
    EXPECT_TRUE(std::isfinite(got.predicted_tflops));
  });
}

TEST_F(GemmProperties, GrowsWithEverySize) {
  for_random_products([](const Hardware& h, const GemmShape& s, Precision p) {
    const double time_us = predict_gemm(h, s, p).predicted_time_us;
    EXPECT_GT(predict_gemm(h, {s.M * 2, s.N, s.K}, p).predicted_time_us, time_us);
    EXPECT_GT(predict_gemm(h, {s.M, s.N * 2, s.K}, p).predicted_time_us, time_us);
    EXPECT_GT(predict_gemm(h, {s.M, s.N, s.K * 2}, p).predicted_time_us, time_us);
  });
}

TEST_F(GemmProperties, AMachineTwiceAsFastTakesHalfTheTime) {
  for_random_products([](const Hardware& h, const GemmShape& s, Precision p) {
    Hardware twice = h;
    twice.bandwidth_gb_s.value *= 2;
    for (auto& [precision, figure] : twice.peak_tflop_s) figure.value *= 2;
    EXPECT_EQ(predict_gemm(twice, s, p).predicted_time_us * 2, predict_gemm(h, s, p).predicted_time_us);
  });
}

TEST_F(GemmProperties, ANarrowerFormatMovesNoMoreBytes) {
  for_random_products([](const Hardware& h, const GemmShape& s, Precision) {
    if (s.K < 128) return;  // a block of scales wants values to share it
    const auto bytes = [&](Precision p) { return predict_gemm(h, s, p).bytes; };
    EXPECT_LE(bytes(Precision::kFp16), bytes(Precision::kFp32));
    EXPECT_LE(bytes(Precision::kInt8), bytes(Precision::kFp16));
    EXPECT_LE(bytes(Precision::kFp8), bytes(Precision::kInt8));
    EXPECT_LE(bytes(Precision::kNvfp4), bytes(Precision::kFp8));
    EXPECT_LE(bytes(Precision::kInt4), bytes(Precision::kNvfp4));
  });
}

TEST(Gemm, RefusesSizesThatCannotBe) {
  const Hardware& h100 = registry().find("h100");
  const auto error = [&](std::int64_t M, std::int64_t N, std::int64_t K) {
    return error_of([&] { predict_gemm(h100, {M, N, K}, Precision::kFp16); });
  };
  EXPECT_EQ(error(0, 1, 1), "roofline: expected 1 <= M <= 2147483648, got 0");
  EXPECT_EQ(error(1, -4096, 1), "roofline: expected 1 <= N <= 2147483648, got -4096");
  EXPECT_EQ(error(1, 1, std::int64_t{1} << 40), "roofline: expected 1 <= K <= 2147483648, got 1099511627776");
}

TEST(Gemm, RefusesAFormatNothingComputes) {
  Hardware only_fp8 = registry().find("h100");
  only_fp8.peak_tflop_s = {{Precision::kFp8, {100, "made up"}}};
  EXPECT_EQ(error_of([&] { predict_gemv(only_fp8, 8, 8, Precision::kFp32); }),
            "roofline: hardware h100 (vendor figures): expected a peak for fp32 or a wider format, got none");
}

}  // namespace
}  // namespace kvfuse::roofline
