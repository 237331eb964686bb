// The command line of `bench_runner compare OLD NEW`.
#pragma once

#include <string>

#include "benchmark/points.h"
#include "benchmark/table.h"
#include "benchmark/verdict.h"

namespace kvfuse::bench {

constexpr const char* kCompareWord = "compare";

struct CompareOptions {
  std::string old_path, new_path;
  double threshold = kDefaultThreshold;  // a fraction
  TableFormat output = TableFormat::kTable;
  Dedup dedup = Dedup::kLast;
  bool fail_if_slower = false;
  std::string help;  // not empty: print it and end
};

// Whether the first word asks for a comparison: then parse_compare_cli takes the command line.
bool is_compare(int argc, const char* const* argv);

// Throws ConfigError with every problem.
CompareOptions parse_compare_cli(int argc, const char* const* argv);

}  // namespace kvfuse::bench
