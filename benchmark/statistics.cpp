#include "benchmark/statistics.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

namespace kvfuse::bench {
namespace {

void check_samples(std::span<const double> samples) {
  if (samples.empty()) throw std::invalid_argument("statistics: expected at least one sample, got none");
  if (!std::all_of(samples.begin(), samples.end(), [](double x) { return std::isfinite(x); }))
    throw std::invalid_argument("statistics: expected finite samples, got NaN or infinity");
}

double sorted_quantile(std::span<const double> sorted, double q) {
  const double position = q * static_cast<double>(sorted.size() - 1);
  const std::size_t below = static_cast<std::size_t>(position);
  const std::size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (position - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

std::vector<double> sorted_copy(std::span<const double> samples) {
  check_samples(samples);
  std::vector<double> sorted(samples.begin(), samples.end());
  std::sort(sorted.begin(), sorted.end());
  return sorted;
}

}  // namespace

double quantile(std::span<const double> samples, double q) {
  if (!(q >= 0.0 && q <= 1.0)) throw std::invalid_argument("statistics: expected a quantile in [0, 1]");
  return sorted_quantile(sorted_copy(samples), q);
}

double median(std::span<const double> samples) { return quantile(samples, 0.5); }

double mean(std::span<const double> samples) {
  check_samples(samples);
  return std::accumulate(samples.begin(), samples.end(), 0.0) / static_cast<double>(samples.size());
}

std::vector<std::size_t> middle(std::span<const double> samples) {
  check_samples(samples);
  std::vector<std::size_t> order(samples.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return samples[a] < samples[b]; });
  const std::size_t above = order.size() / 2;
  if (order.size() % 2 == 1) return {order[above]};
  return {order[above - 1], order[above]};
}

double student_t95(std::size_t degrees_of_freedom) {
  // To 3 decimals up to 30 degrees of freedom; beyond, the Cornish-Fisher series around the normal 1.95996.
  constexpr std::array kTable = {12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
                                 2.201,  2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
                                 2.080,  2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042};
  if (degrees_of_freedom == 0)
    throw std::invalid_argument("statistics: expected at least one degree of freedom");
  if (degrees_of_freedom <= kTable.size()) return kTable[degrees_of_freedom - 1];
  constexpr double z = 1.959963985;
  const double n = static_cast<double>(degrees_of_freedom);
  return z + (z * z * z + z) / (4 * n) + (5 * std::pow(z, 5) + 16 * z * z * z + 3 * z) / (96 * n * n);
}

Summary summarize(std::span<const double> samples) {
  const std::vector<double> sorted = sorted_copy(samples);
  Summary summary{.count = sorted.size(),
                  .median = sorted_quantile(sorted, 0.5),
                  .mean = mean(samples),
                  .min = sorted.front(),
                  .p90 = sorted_quantile(sorted, 0.90),
                  .p95 = sorted_quantile(sorted, 0.95),
                  .stddev = std::nullopt,
                  .ci95_half_width = std::nullopt};
  if (summary.count < 2) return summary;
  double squares = 0;
  for (const double x : samples) squares += (x - summary.mean) * (x - summary.mean);
  summary.stddev = std::sqrt(squares / static_cast<double>(summary.count - 1));
  summary.ci95_half_width =
      student_t95(summary.count - 1) * *summary.stddev / std::sqrt(static_cast<double>(summary.count));
  return summary;
}

Ratio ratio_of_medians(std::span<const double> numerator, std::span<const double> denominator,
                       std::uint64_t seed, int resamples) {
  if (resamples < 1) throw std::invalid_argument("statistics: expected at least one resample");
  for (const std::span<const double> samples : {numerator, denominator}) {
    check_samples(samples);
    if (!(*std::min_element(samples.begin(), samples.end()) > 0.0))
      throw std::invalid_argument("statistics: expected positive samples for a ratio");
  }
  std::mt19937_64 random(seed);
  std::vector<double> scratch;
  const auto resampled_median = [&](std::span<const double> samples) {
    scratch.resize(samples.size());
    for (double& x : scratch) x = samples[random() % samples.size()];
    std::sort(scratch.begin(), scratch.end());
    return sorted_quantile(scratch, 0.5);
  };
  std::vector<double> ratios(static_cast<std::size_t>(resamples));
  for (double& ratio : ratios) {
    const double above = resampled_median(numerator);
    ratio = above / resampled_median(denominator);
  }
  std::sort(ratios.begin(), ratios.end());
  return {.value = median(numerator) / median(denominator),
          .low = sorted_quantile(ratios, 0.025),
          .high = sorted_quantile(ratios, 0.975)};
}

}  // namespace kvfuse::bench
