// Prediction beside what the runner measured.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/roofline/calibration.h"

namespace kvfuse::roofline {

// One record of the benchmarks latency_vs_T or roofline.
struct ValidatedRecord {
  std::int64_t line = 0;  // in the file, from 1
  std::string benchmark;
  std::string version;
  std::string stage;  // of the benchmark roofline
  std::string model;
  std::string dtype;
  std::int64_t batch = 1;
  std::int64_t prompt_length = 0;
  std::int64_t T = 0;      // new tokens; of a stage, those that run through it
  double measured_ms = 0;  // median
  double predicted_ms = 0;
  double error = 0;         // (predicted - measured) / measured
  double shortest_ms = 0;   // by the roofs
  bool above_roof = false;  // measured in less: the roofs or the record are wrong
  double flops = 0;
  double bytes = 0;
};

struct SkippedRecord {
  std::int64_t line = 0;
  std::string reason;
};

struct Validation {
  std::string machine;  // of the calibration; empty if each record's own limits were used
  std::vector<ValidatedRecord> records;
  std::vector<SkippedRecord> skipped;
  std::optional<double> median_absolute_error;  // nothing without records
  std::optional<double> largest_absolute_error;
  std::int64_t above_roof = 0;
};

// `jsonl`: a results file of bench_runner as text. The roofs are the bandwidth and product rate that each
// record carries. With a calibration predicted_ms follows from it, at that bandwidth (at_bandwidth): a record
// is of another moment, and what memory gives changes from one to the next. A record without limits is set
// beside the calibration as it is. Without a calibration predicted_ms is the shortest possible time. Records
// of other benchmarks and, with a calibration, of another kind of device or another number of CPU threads,
// that are not ok, or that outgrow the context are skipped, with the reason. Unknown fields are ignored.
// Throws std::invalid_argument that names file and line on a line that is no record or of a newer schema.
Validation validate(std::string_view jsonl, const std::string& origin, const Calibration* calibration);

}  // namespace kvfuse::roofline
