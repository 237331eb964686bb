// Measured figures between the sizes at which they were measured.
#pragma once

#include <cstdint>
#include <map>

namespace kvfuse::roofline {

// y over x, both positive: straight lines between the logarithms, beyond the ends the end's value. A point
// that was added is returned as it is.
class LogLine {
 public:
  void add(double x, double y);
  bool empty() const { return points_.empty(); }
  double at(double x) const;

 private:
  struct Point {
    double log_x = 0;
    double log_y = 0;
    double y = 0;
  };
  std::map<double, Point> points_;  // by x
};

// Seconds over rows: between measured rows as LogLine, beyond the most rows in proportion to them.
class RowLine {
 public:
  void add(std::int64_t rows, double seconds);
  double seconds(std::int64_t rows) const;

 private:
  LogLine line_;
  std::int64_t most_rows_ = 0;
};

}  // namespace kvfuse::roofline
