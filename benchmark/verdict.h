// Whether two sets of times differ, judged so that a program compared with itself is called the same.
//
// A run's samples are few, their noise has heavy tails, and they share the run's conditions, which on a
// shared machine differ from one run to the next as much as the samples do within one. So a difference is
// believed only if
//   1. two 95 % intervals lie beyond a threshold, the smallest difference that counts: the bootstrap's of the
//   ratio
//      of medians (too narrow with few samples), and Student's of the trimmed means of the logarithms, where
//      a run counts as one draw with the spread of its samples (not divided by their number);
//   2. no run is taken for steadier than the typical one of the comparison, or than a share of the threshold:
//   three
//      samples are often close to each other by chance;
//   3. it stands among all points of the comparison, which share the 5 % of error (Holm's method).
#pragma once

#include <cstddef>
#include <span>
#include <string_view>
#include <vector>

#include "benchmark/statistics.h"

namespace kvfuse::bench {

// Faster and slower for times, better and worse for everything else.
enum class Verdict { kFaster, kSlower, kBetter, kWorse, kSame, kIncomparable };
std::string_view verdict_name(Verdict verdict);

constexpr double kDefaultThreshold = 0.05;
constexpr double kNoisySpread = 0.05;  // above it, a point's times are called noisy

// Standard deviation over mean. At least two samples.
double spread_of(std::span<const double> samples);

struct Evidence {
  Ratio ratio;         // median of old over median of new: above 1, new is faster; the hull of both intervals
  double p_value = 1;  // of a difference of more than the threshold, if there is none
};

constexpr std::size_t kFewestSamples = 3;  // two are often close to each other by chance

// At least kFewestSamples positive samples on each side, or std::invalid_argument.
Evidence weigh(std::span<const double> old_ms, std::span<const double> new_ms, double threshold,
               double typical_spread);

// Whether the whole interval is more than the threshold away from 1: 1 upwards, -1 downwards, 0 no.
int beyond(const Ratio& ratio, double threshold);

// For each p-value whether it stands among the others: wrong for any of them in at most 5 % of comparisons.
std::vector<bool> stands_together(std::span<const double> p_values);

}  // namespace kvfuse::bench
