// Summaries of timing samples, and how sure a ratio of two of them is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace kvfuse::bench {

// All functions throw std::invalid_argument if there are no samples or one is not finite.
double median(std::span<const double> samples);
double mean(std::span<const double> samples);

// Which samples the median is made of: the middle one, or the two that it lies between.
std::vector<std::size_t> middle(std::span<const double> samples);

// Linear between the two nearest samples, as numpy does; 0 <= q <= 1.
double quantile(std::span<const double> samples, double q);

// What needs two samples is absent with one.
struct Summary {
  std::size_t count = 0;
  double median = 0;
  double mean = 0;
  double min = 0;
  double p90 = 0;
  double p95 = 0;
  std::optional<double> stddev;           // of the population the samples come from: divides by count - 1
  std::optional<double> ci95_half_width;  // of the mean, by Student's t
};
Summary summarize(std::span<const double> samples);

// The two-sided 95 % point of Student's t distribution.
double student_t95(std::size_t degrees_of_freedom);

// median(numerator) / median(denominator) with its 95 % bootstrap interval (percentiles; the two sets are
// resampled independently). The same seed gives the same interval. Samples must be positive.
struct Ratio {
  double value = 0;
  double low = 0;
  double high = 0;
};
Ratio ratio_of_medians(std::span<const double> numerator, std::span<const double> denominator,
                       std::uint64_t seed = 42, int resamples = 2000);

}  // namespace kvfuse::bench
