// Summaries against values computed by hand.
#include "benchmark/statistics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <stdexcept>
#include <vector>

namespace kvfuse::bench {
namespace {

using Samples = std::vector<double>;

TEST(Statistics, MedianAndQuantiles) {
  EXPECT_DOUBLE_EQ(median(Samples{3, 1, 2}), 2);
  EXPECT_DOUBLE_EQ(median(Samples{4, 1, 2, 3}), 2.5);
  EXPECT_DOUBLE_EQ(median(Samples{7}), 7);
  EXPECT_EQ(middle(Samples{3, 1, 2}), std::vector<std::size_t>{2});
  EXPECT_EQ(middle(Samples{4, 1, 2, 3}), (std::vector<std::size_t>{2, 3}));
  EXPECT_EQ(middle(Samples{7}), std::vector<std::size_t>{0});
  const Samples ten = {10, 1, 2, 3, 4, 5, 6, 7, 8, 9};
  EXPECT_DOUBLE_EQ(quantile(ten, 0.0), 1);
  EXPECT_DOUBLE_EQ(quantile(ten, 0.9), 9.1);
  EXPECT_DOUBLE_EQ(quantile(ten, 0.95), 9.55);
  EXPECT_DOUBLE_EQ(quantile(ten, 1.0), 10);
}

TEST(Statistics, SummaryByHand) {
  // Mean 5, squared deviations 9+1+1+1+0+0+4+16 = 32, variance 32 / 7.
  const Summary summary = summarize(Samples{2, 4, 4, 4, 5, 5, 7, 9});
  EXPECT_EQ(summary.count, 8U);
  EXPECT_DOUBLE_EQ(summary.mean, 5);
  EXPECT_DOUBLE_EQ(summary.median, 4.5);
  EXPECT_DOUBLE_EQ(summary.min, 2);
  EXPECT_DOUBLE_EQ(summary.p90, 7.6);
  EXPECT_DOUBLE_EQ(summary.p95, 8.3);
  ASSERT_TRUE(summary.stddev && summary.ci95_half_width);
  EXPECT_DOUBLE_EQ(*summary.stddev, std::sqrt(32.0 / 7.0));
  EXPECT_NEAR(*summary.ci95_half_width, 2.365 * std::sqrt(32.0 / 7.0) / std::sqrt(8.0), 1e-12);
}

TEST(Statistics, OneSampleHasNoSpread) {
  const Summary summary = summarize(Samples{3});
  EXPECT_DOUBLE_EQ(summary.p95, 3);
  EXPECT_FALSE(summary.stddev || summary.ci95_half_width);
}

TEST(Statistics, StudentT) {
  EXPECT_DOUBLE_EQ(student_t95(1), 12.706);
  EXPECT_DOUBLE_EQ(student_t95(30), 2.042);
  EXPECT_NEAR(student_t95(31), 2.0395, 1e-4);
  EXPECT_NEAR(student_t95(60), 2.0003, 1e-4);
  EXPECT_NEAR(student_t95(1000000), 1.95997, 1e-5);
  for (std::size_t n = 2; n < 200; ++n) EXPECT_LT(student_t95(n), student_t95(n - 1)) << n;
  EXPECT_THROW(student_t95(0), std::invalid_argument);
}

TEST(Statistics, RefusesWhatHasNoAnswer) {
  EXPECT_THROW(median(Samples{}), std::invalid_argument);
  EXPECT_THROW(middle(Samples{}), std::invalid_argument);
  EXPECT_THROW(mean(Samples{1, std::nan("")}), std::invalid_argument);
  EXPECT_THROW(summarize(Samples{1, HUGE_VAL}), std::invalid_argument);
  EXPECT_THROW(quantile(Samples{1}, 1.1), std::invalid_argument);
  EXPECT_THROW(quantile(Samples{1}, std::nan("")), std::invalid_argument);
  EXPECT_THROW(ratio_of_medians(Samples{1}, Samples{0}), std::invalid_argument);
  EXPECT_THROW(ratio_of_medians(Samples{1}, Samples{1}, 42, 0), std::invalid_argument);
}

TEST(Statistics, RatioOfConstantsIsExact) {
  const Ratio ratio = ratio_of_medians(Samples{6, 6, 6}, Samples{2, 2});
  EXPECT_DOUBLE_EQ(ratio.value, 3);
  EXPECT_DOUBLE_EQ(ratio.low, 3);
  EXPECT_DOUBLE_EQ(ratio.high, 3);
}

TEST(Statistics, RatioIntervalIsSeededAndBoundedByTheSamples) {
  const Samples above = {10, 11, 12, 13, 14}, below = {5, 6, 7};
  const Ratio ratio = ratio_of_medians(above, below);
  const Ratio again = ratio_of_medians(above, below);
  EXPECT_DOUBLE_EQ(ratio.value, 2);
  EXPECT_EQ(ratio.low, again.low);
  EXPECT_EQ(ratio.high, again.high);
  EXPECT_GE(ratio.low, 10.0 / 7.0);
  EXPECT_LT(ratio.low, 2);
  EXPECT_GT(ratio.high, 2);
  EXPECT_LE(ratio.high, 14.0 / 5.0);
}

TEST(Statistics, RatioIntervalCoversTheTruth) {
  std::mt19937_64 random(1);
  std::normal_distribution<double> noise(0.0, 0.05);
  int covered = 0;
  for (int trial = 0; trial < 100; ++trial) {
    Samples above(20), below(20);
    for (double& x : above) x = 3.0 * (1.0 + noise(random));
    for (double& x : below) x = 2.0 * (1.0 + noise(random));
    const Ratio ratio = ratio_of_medians(above, below, 42, 400);
    covered += ratio.low <= 1.5 && 1.5 <= ratio.high ? 1 : 0;
  }
  EXPECT_GE(covered, 88);
}

}  // namespace
}  // namespace kvfuse::bench
