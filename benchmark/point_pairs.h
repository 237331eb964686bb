// Which points of two results files are the same.
#pragma once

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "benchmark/points.h"

namespace kvfuse::bench {

// A point that is in both files, or in one.
struct PointPair {
  std::optional<Point> before, after;
  std::string difference;  // in what the two are not the same point, "key: x, then y"
  bool same = false;       // the difference, if any, is only in what one of them does not record
};

// In the order of the old file; then what only the new one has.
std::vector<PointPair> pair_points(PointFile before, PointFile after);

// "key: x, then y; ..." for the members of two objects that differ, the first of them in full.
std::string changes_text(const nlohmann::json& before, const nlohmann::json& after);

}  // namespace kvfuse::bench
