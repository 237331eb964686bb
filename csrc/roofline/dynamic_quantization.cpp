#include "csrc/roofline/dynamic_quantization.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>

#include "csrc/roofline/check.h"

namespace kvfuse::roofline {
namespace {

void check_ladder(const std::vector<Precision>& ladder) {
  if (ladder.empty()) throw std::invalid_argument("roofline: ladder: expected at least one format, got none");
  for (std::size_t i = 1; i < ladder.size(); ++i)
    if (precision_info(ladder[i]).bytes_per_element() <= precision_info(ladder[i - 1]).bytes_per_element())
      throw std::invalid_argument("roofline: ladder: expected formats of growing size, got " +
                                  std::string(precision_name(ladder[i])) + " after " +
                                  std::string(precision_name(ladder[i - 1])));
}

double largest_magnitude(const std::string& tensor, std::span<const float> values) {
  if (values.empty())
    throw std::invalid_argument("roofline: observe " + tensor + ": expected at least one value, got none");
  double most = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i]))
      throw std::invalid_argument("roofline: observe " + tensor + ": expected finite values, got " +
                                  number_text(values[i]) + " at index " + std::to_string(i));
    most = std::max(most, static_cast<double>(std::fabs(values[i])));
  }
  return most;
}

}  // namespace

double outlier_share(std::span<const float> values, double sigmas) {
  if (values.empty()) return 0;
  const auto count = static_cast<double>(values.size());
  double sum = 0;
  for (const float value : values) sum += value;
  const double mean = sum / count;
  double squares = 0;
  for (const float value : values) squares += (value - mean) * (value - mean);
  const double limit = sigmas * std::sqrt(squares / count);
  double outliers = 0;
  for (const float value : values)
    if (std::fabs(value - mean) > limit) ++outliers;
  return outliers / count;
}

DynamicQuantizer::DynamicQuantizer(DynamicOptions options) : options_(std::move(options)) {
  check_ladder(options_.ladder);
  check_positive("outlier_sigmas", options_.outlier_sigmas);
  check_share("raise_share", options_.raise_share);
  check_range("calm_steps", options_.calm_steps, 1, 1 << 20);
  check_range("absmax_window", options_.absmax_window, 1, 1 << 20);
}

Precision DynamicQuantizer::precision_of(const std::string& tensor) const {
  const auto found = states_.find(tensor);
  return options_.ladder[found == states_.end() ? 0 : found->second.rung];
}

DynamicDecision DynamicQuantizer::observe(const std::string& tensor, std::span<const float> values) {
  const double absmax = largest_magnitude(tensor, values);
  State& state = states_[tensor];
  state.absmax.push_back(absmax);
  if (state.absmax.size() > static_cast<std::size_t>(options_.absmax_window)) state.absmax.pop_front();

  DynamicDecision decision{.step = state.step++,
                           .tensor = tensor,
                           .absmax = absmax,
                           .rolling_absmax = *std::ranges::max_element(state.absmax),
                           .outlier_share = outlier_share(values, options_.outlier_sigmas),
                           .before = options_.ladder[state.rung],
                           .after = options_.ladder[state.rung],
                           .reason = ""};
  const bool outliers = decision.outlier_share > options_.raise_share;
  const std::string share = number_text(100 * decision.outlier_share) + " % beyond " +
                            number_text(options_.outlier_sigmas) + " sigmas";
  state.calm = outliers ? 0 : state.calm + 1;
  if (outliers && state.rung + 1 < options_.ladder.size()) {
    ++state.rung;
    decision.reason = "raised: " + share;
  } else if (outliers) {
    decision.reason = "kept at the highest: " + share;
  } else if (state.calm >= options_.calm_steps && state.rung > 0) {
    --state.rung;
    state.calm = 0;
    decision.reason = "lowered: calm for " + std::to_string(options_.calm_steps) + " steps";
  } else {
    decision.reason = "kept: " + share;
  }
  decision.after = options_.ladder[state.rung];
  log_.push_back(decision);
  if (log_.size() > kMostLogged) log_.pop_front();
  return decision;
}

}  // namespace kvfuse::roofline
