#include "benchmark/verdict.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

namespace kvfuse::bench {
namespace {

constexpr double kSignificance = 0.05;
// The least standard deviation from one run to the next, as a share of the threshold: 1.5 % at the default.
constexpr double kRunToRun = 0.3;
constexpr std::size_t kFewestToTrim = 6;  // with fewer, trimming costs more certainty than outliers do
constexpr std::size_t kTrimmedShare = 5;  // one fifth from each end
constexpr std::size_t kBootstrapSeed = 42;
constexpr std::size_t kMostResampledValues = 20'000'000;  // a few seconds

constexpr double kManyDegrees = 1e6;  // Student's distribution is the normal one

// Continued fraction of the incomplete beta function (modified Lentz), for x < (a + 1) / (a + b + 2).
double beta_fraction(double x, double a, double b) {
  constexpr double kTiny = 1e-300;
  constexpr int kMostTerms = 10'000;
  const auto away_from_zero = [](double value) { return std::abs(value) < kTiny ? kTiny : value; };
  double c = 1.0;
  double d = 1.0 / away_from_zero(1.0 - (a + b) * x / (a + 1.0));
  double fraction = d;
  for (int m = 1; m <= kMostTerms; ++m) {
    double change = 1.0;
    for (const double term : {m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
                              -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))}) {
      d = 1.0 / away_from_zero(1.0 + term * d);
      c = away_from_zero(1.0 + term / c);
      change = c * d;
      fraction *= change;
    }
    if (std::abs(change - 1.0) < 1e-14) break;
  }
  return fraction;
}

double incomplete_beta(double x, double a, double b) {
  if (x <= 0.0) return 0.0;
  if (x >= 1.0) return 1.0;
  const double front =
      std::exp(std::lgamma(a + b) - std::lgamma(a) - std::lgamma(b) + a * std::log(x) + b * std::log1p(-x));
  if (x < (a + 1.0) / (a + b + 2.0)) return front * beta_fraction(x, a, b) / a;
  return 1.0 - front * beta_fraction(1.0 - x, b, a) / b;
}

// P(|t| > distance) of Student's distribution.
double two_sided_p(double distance, double degrees_of_freedom) {
  return incomplete_beta(degrees_of_freedom / (degrees_of_freedom + distance * distance),
                         degrees_of_freedom / 2.0, 0.5);
}

// A run of a program as one draw: the trimmed mean of the logarithms of its samples, and their variance. That
// of the mean would be smaller by their number, but the samples of a run share its conditions.
struct Level {
  double mean = 0;
  double variance = 0;
  double degrees_of_freedom = kManyDegrees;
};

Level level_of(std::span<const double> samples, double least_deviation) {
  std::vector<double> logs(samples.size());
  std::transform(samples.begin(), samples.end(), logs.begin(), [](double x) { return std::log(x); });
  std::sort(logs.begin(), logs.end());
  const std::size_t trimmed = logs.size() < kFewestToTrim ? 0 : logs.size() / kTrimmedShare;
  const std::size_t kept = logs.size() - 2 * trimmed;
  Level level{.mean = mean(std::span<const double>(logs.data() + trimmed, kept)),
              .variance = least_deviation * least_deviation};
  // Winsorised: what was trimmed counts as the outermost of the rest.
  const double lowest = logs[trimmed], highest = logs[logs.size() - 1 - trimmed];
  for (double& x : logs) x = std::clamp(x, lowest, highest);
  const double deviation = *summarize(logs).stddev;
  const double variance =
      deviation * deviation * static_cast<double>(logs.size() - 1) / static_cast<double>(kept - 1);
  if (variance > level.variance) {
    level.variance = variance;
    level.degrees_of_freedom = static_cast<double>(kept - 1);
  }
  return level;
}

struct Difference {
  double value = 0;  // of the logarithms
  double error = 0;  // its standard error
  double degrees_of_freedom = kManyDegrees;
};

Difference difference_of(const Level& above, const Level& below) {
  const double variance = above.variance + below.variance;
  Difference result{.value = above.mean - below.mean, .error = std::sqrt(variance)};
  const double scale = above.variance * above.variance / above.degrees_of_freedom +
                       below.variance * below.variance / below.degrees_of_freedom;
  if (scale > 0.0) result.degrees_of_freedom = std::min(kManyDegrees, variance * variance / scale);
  return result;
}

double p_value_of(const Difference& difference, double threshold) {
  const double excess = std::abs(difference.value) - std::log1p(threshold);
  if (!(excess > 0.0)) return 1.0;
  if (difference.error == 0.0) return 0.0;
  return two_sided_p(excess / difference.error, difference.degrees_of_freedom);
}

}  // namespace

std::string_view verdict_name(Verdict verdict) {
  switch (verdict) {
    case Verdict::kFaster:
      return "faster";
    case Verdict::kSlower:
      return "slower";
    case Verdict::kBetter:
      return "better";
    case Verdict::kWorse:
      return "worse";
    case Verdict::kSame:
      return "same";
    case Verdict::kIncomparable:
      return "incomparable";
  }
  return "unknown";
}

double spread_of(std::span<const double> samples) {
  const Summary summary = summarize(samples);
  if (!summary.stddev) throw std::invalid_argument("spread: expected at least two samples, got one");
  return *summary.stddev / summary.mean;
}

Evidence weigh(std::span<const double> old_ms, std::span<const double> new_ms, double threshold,
               double typical_spread) {
  if (old_ms.size() < kFewestSamples || new_ms.size() < kFewestSamples)
    throw std::invalid_argument("verdict: expected at least three samples on each side");
  if (!(threshold >= 0.0 && typical_spread >= 0.0))
    throw std::invalid_argument("verdict: expected a threshold and a spread of at least 0");
  const std::size_t resamples =
      std::clamp<std::size_t>(kMostResampledValues / (old_ms.size() + new_ms.size()), 100, 2000);
  Evidence evidence{.ratio = ratio_of_medians(old_ms, new_ms, kBootstrapSeed, static_cast<int>(resamples))};
  const double least_deviation = std::max(kRunToRun * threshold, typical_spread);
  const Difference difference =
      difference_of(level_of(old_ms, least_deviation), level_of(new_ms, least_deviation));
  // Whole degrees of freedom, rounded down: the interval does not become too narrow.
  const double half_width =
      difference.error *
      student_t95(std::max<std::size_t>(1, static_cast<std::size_t>(difference.degrees_of_freedom)));
  evidence.ratio.low = std::min(evidence.ratio.low, std::exp(difference.value - half_width));
  evidence.ratio.high = std::max(evidence.ratio.high, std::exp(difference.value + half_width));
  evidence.p_value = p_value_of(difference, threshold);
  return evidence;
}

int beyond(const Ratio& ratio, double threshold) {
  if (ratio.low > 1.0 + threshold) return 1;
  return ratio.high < 1.0 / (1.0 + threshold) ? -1 : 0;
}

std::vector<bool> stands_together(std::span<const double> p_values) {
  std::vector<std::size_t> order(p_values.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(),
            [&](std::size_t a, std::size_t b) { return p_values[a] < p_values[b]; });
  std::vector<bool> stands(p_values.size(), false);
  for (std::size_t rank = 0; rank < order.size(); ++rank) {
    if (!(p_values[order[rank]] * static_cast<double>(order.size() - rank) <= kSignificance)) break;
    stands[order[rank]] = true;
  }
  return stands;
}

}  // namespace kvfuse::bench
