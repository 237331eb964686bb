// Precision that follows the values at run time: raised for a tensor with outliers, lowered again after it
// has been calm for some steps.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "csrc/roofline/precision.h"

namespace kvfuse::roofline {

struct DynamicOptions {
  std::vector<Precision> ladder = {Precision::kNvfp4, Precision::kFp8, Precision::kFp16};  // cheapest first
  double outlier_sigmas = 6;        // beyond so many standard deviations from the mean a value is an outlier
  double raise_share = 1e-3;        // share of outliers above which the precision rises by one
  std::int64_t calm_steps = 8;      // steps in a row without such a share after which it falls by one
  std::int64_t absmax_window = 16;  // steps that the rolling largest magnitude covers
};

// What one step saw of a tensor and did about it.
struct DynamicDecision {
  std::int64_t step = 0;  // of that tensor, from 0
  std::string tensor;
  double absmax = 0;
  double rolling_absmax = 0;
  double outlier_share = 0;
  Precision before = Precision::kFp16;
  Precision after = Precision::kFp16;
  std::string reason;
};

inline constexpr std::size_t kMostLogged = 1 << 16;  // a server runs for longer than its memory lasts

// Keeps its state by the tensor's name. Every tensor starts on the cheapest precision.
class DynamicQuantizer {
 public:
  // Throws std::invalid_argument on an empty ladder or one that does not rise in bits, and on thresholds that
  // are not positive.
  explicit DynamicQuantizer(DynamicOptions options = {});

  // The decision for the values of one step, also logged; the latest kMostLogged are kept. Throws
  // std::invalid_argument, with nothing changed, if there are none or one is NaN or infinite.
  DynamicDecision observe(const std::string& tensor, std::span<const float> values);

  Precision precision_of(const std::string& tensor) const;
  const std::deque<DynamicDecision>& log() const { return log_; }
  const DynamicOptions& options() const { return options_; }

 private:
  struct State {
    std::size_t rung = 0;
    std::int64_t step = 0;
    std::int64_t calm = 0;
    std::deque<double> absmax;
  };

  const DynamicOptions options_;
  std::map<std::string, State> states_;
  std::deque<DynamicDecision> log_;
};

// Share of values further than `sigmas` standard deviations from their mean; 0 where all are equal.
double outlier_share(std::span<const float> values, double sigmas);

}  // namespace kvfuse::roofline
