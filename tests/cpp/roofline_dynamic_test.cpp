// Precision that follows the values.
#include "csrc/roofline/dynamic_quantization.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/cpp/error_of.h"

namespace kvfuse::roofline {
namespace {

using enum Precision;

std::vector<float> calm() {
  std::vector<float> values(1000, 1);
  for (std::size_t i = 0; i < 500; ++i) values[i] = -1;
  return values;
}

// One value of 1000 so far out that it is an outlier: mean 0.1, deviation 3.3.
std::vector<float> wild() {
  std::vector<float> values = calm();
  values[7] = 100;
  values[8] = -100;
  return values;
}

TEST(Dynamic, ShareOfOutliers) {
  EXPECT_EQ(outlier_share(calm(), 6), 0);
  EXPECT_EQ(outlier_share(wild(), 6), 0.002);
  EXPECT_EQ(outlier_share(wild(), 30), 0);
  EXPECT_EQ(outlier_share(std::vector<float>{}, 6), 0);
  EXPECT_EQ(outlier_share(std::vector<float>(9, 3.5F), 1), 0);  // all equal
  // Mean 0, deviation 1: three of six are as far as 1, none is beyond.
  EXPECT_EQ(outlier_share(std::vector<float>{-1, 1}, 1), 0);
  EXPECT_EQ(outlier_share(std::vector<float>{0, 0, 0, 4}, 1.5), 0.25);  // mean 1, deviation sqrt(3)
}

TEST(Dynamic, RisesAtOnceAndFallsAfterCalmSteps) {
  DynamicQuantizer quantizer({.calm_steps = 3});
  const std::vector<float> quiet = calm();
  const std::vector<float> loud = wild();
  const std::vector<Precision> want = {kNvfp4, kFp8, kFp16, kFp16,  kFp16, kFp16,
                                       kFp8,   kFp8, kFp8,  kNvfp4, kNvfp4};
  const std::vector<bool> outliers = {false, true,  true,  true,  false, false,
                                      false, false, false, false, false};
  for (std::size_t step = 0; step < want.size(); ++step) {
    const DynamicDecision got = quantizer.observe("q", outliers[step] ? loud : quiet);
    EXPECT_EQ(got.step, static_cast<std::int64_t>(step));
    EXPECT_EQ(got.after, want[step]) << step << " " << got.reason;
    EXPECT_EQ(quantizer.precision_of("q"), want[step]);
  }
  ASSERT_EQ(quantizer.log().size(), want.size());
  EXPECT_EQ(quantizer.log()[1].reason, "raised: 0.2 % beyond 6 sigmas");
  EXPECT_EQ(quantizer.log()[1].before, kNvfp4);
  EXPECT_EQ(quantizer.log()[3].reason, "kept at the highest: 0.2 % beyond 6 sigmas");
  EXPECT_EQ(quantizer.log()[6].reason, "lowered: calm for 3 steps");
}

TEST(Dynamic, AnOutlierStartsTheCountAgain) {
  DynamicQuantizer quantizer({.ladder = {kInt8, kFp16}, .calm_steps = 2});
  for (const bool loud : {true, false, true, false}) quantizer.observe("v", loud ? wild() : calm());
  EXPECT_EQ(quantizer.precision_of("v"), kFp16);
  quantizer.observe("v", calm());
  EXPECT_EQ(quantizer.precision_of("v"), kInt8);
}

TEST(Dynamic, TensorsAreApart) {
  DynamicQuantizer quantizer;
  quantizer.observe("a", wild());
  EXPECT_EQ(quantizer.precision_of("a"), kFp8);
  EXPECT_EQ(quantizer.precision_of("b"), kNvfp4);
}

TEST(Dynamic, TheLargestMagnitudeRolls) {
  DynamicQuantizer quantizer({.absmax_window = 2});
  const float magnitudes[] = {1, 9, 2, 3};
  const double want[] = {1, 9, 9, 3};
  for (int i = 0; i < 4; ++i) {
    const DynamicDecision got = quantizer.observe("k", std::vector<float>{-magnitudes[i], 0});
    EXPECT_EQ(got.absmax, magnitudes[i]);
    EXPECT_EQ(got.rolling_absmax, want[i]);
  }
}

TEST(Dynamic, TheLogHoldsTheLatestDecisions) {
  DynamicQuantizer quantizer;
  const std::vector<float> one = {1};
  for (std::size_t step = 0; step < kMostLogged + 5; ++step) quantizer.observe("k", one);
  ASSERT_EQ(quantizer.log().size(), kMostLogged);
  EXPECT_EQ(quantizer.log().front().step, 5);
  EXPECT_EQ(quantizer.log().back().step, static_cast<std::int64_t>(kMostLogged) + 4);
}

TEST(Dynamic, RefusesWhatCannotBe) {
  EXPECT_EQ(error_of([] { DynamicQuantizer({.ladder = {}}); }),
            "roofline: ladder: expected at least one format, got none");
  EXPECT_EQ(error_of([] {
              DynamicQuantizer({.ladder = {kFp16, kFp8}});
            }),
            "roofline: ladder: expected formats of growing size, got fp8 after fp16");
  EXPECT_EQ(error_of([] { DynamicQuantizer({.outlier_sigmas = std::nan("")}); }),
            "roofline: expected outlier_sigmas to be a positive finite number, got nan");
  EXPECT_EQ(error_of([] { DynamicQuantizer({.raise_share = 0}); }),
            "roofline: expected 0 < raise_share <= 1, got 0");
  EXPECT_EQ(error_of([] { DynamicQuantizer({.calm_steps = 0}); }),
            "roofline: expected 1 <= calm_steps <= 1048576, got 0");
  DynamicQuantizer quantizer;
  EXPECT_EQ(error_of([&] { quantizer.observe("k", std::vector<float>{}); }),
            "roofline: observe k: expected at least one value, got none");
  EXPECT_EQ(error_of([&] {
              quantizer.observe("k", std::vector<float>{1, std::nanf("")});
            }),
            "roofline: observe k: expected finite values, got nan at index 1");
  EXPECT_TRUE(quantizer.log().empty());
}

}  // namespace
}  // namespace kvfuse::roofline
