// The points of a results file: what was measured, by one record each.
#pragma once

#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>
#include <unordered_map>
#include <vector>

namespace kvfuse::bench {

// What of a benchmark's records is compared, and how.
struct Measure {
  enum class Kind {
    kTimes,    // several noisy samples
    kCount,    // exact
    kQuality,  // a number that rounding may change a little
  };
  const char* benchmark;
  const char* field;
  const char* shown;
  Kind kind;
  bool less_is_better;
};

// Null if nothing is known of the benchmark.
const Measure* find_measure(const std::string& benchmark);

// One record of a point.
struct Point {
  std::string benchmark, version, T;  // T is empty if the point has none
  nlohmann::json identity;            // what makes it the same point in another file; flat
  std::string status, reason;
  std::vector<double> values;  // the times in ms, or the one number
  std::string values_problem;  // not empty: why there are none
  nlohmann::json context;      // an object
  nlohmann::json limits;       // shortest_ms and what it was computed from
};

struct PointFile {
  std::vector<Point> points;                           // by their first record
  std::unordered_map<std::string, std::size_t> index;  // by the text of the identity
  std::vector<std::string> notices;
};

// Which of several records of a point counts; pooling them would mix versions of the program. The runner's
// own summaries take the last.
enum class Dedup { kFirst, kLast };

// Records without a case are other programs' and passed over. Throws what read_records throws.
PointFile read_points(const std::string& path, Dedup dedup = Dedup::kLast);

}  // namespace kvfuse::bench
