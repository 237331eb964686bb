#include "csrc/roofline/interpolation.h"

#include <algorithm>
#include <cmath>
#include <iterator>

namespace kvfuse::roofline {

void LogLine::add(double x, double y) { points_[x] = {.log_x = std::log(x), .log_y = std::log(y), .y = y}; }

double LogLine::at(double x) const {
  const auto above = points_.lower_bound(x);
  if (above == points_.end()) return points_.rbegin()->second.y;
  if (above == points_.begin() || above->first == x) return above->second.y;
  const Point& right = above->second;
  const Point& left = std::prev(above)->second;
  const double share = (std::log(x) - left.log_x) / (right.log_x - left.log_x);
  return std::exp(left.log_y + share * (right.log_y - left.log_y));
}

void RowLine::add(std::int64_t rows, double seconds) {
  line_.add(static_cast<double>(rows), seconds);
  most_rows_ = std::max(most_rows_, rows);
}

double RowLine::seconds(std::int64_t rows) const {
  const double beyond = std::max(1.0, static_cast<double>(rows) / static_cast<double>(most_rows_));
  return line_.at(static_cast<double>(rows)) * beyond;
}

}  // namespace kvfuse::roofline
