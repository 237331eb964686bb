// Compares two results files point by point: what became faster, slower or stayed the same, and what cannot
// be compared and why.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "benchmark/point_pairs.h"
#include "benchmark/table.h"
#include "benchmark/verdict.h"

namespace kvfuse::bench {

struct Compared {
  PointPair points;
  Verdict verdict = Verdict::kIncomparable;
  std::optional<Ratio> ratio;      // above 1: the new one is better
  std::vector<std::string> notes;  // if incomparable, first the reason
};

struct Comparison {
  std::vector<Compared> rows;
  std::vector<std::string> notices;  // about the files

  std::size_t count(Verdict verdict) const;
  bool any_worse() const { return count(Verdict::kSlower) + count(Verdict::kWorse) > 0; }
};

// Times that differ by no more than the fraction `threshold` are the same. Throws ModelFileError or
// DataFileError if a file cannot be read to its end. Memory grows with the points, not with the records of
// the files.
Comparison compare_files(const std::string& old_path, const std::string& new_path, double threshold,
                         Dedup dedup = Dedup::kLast);

Table comparison_table(const Comparison& comparison);

// "9 points: 7 same, 1 faster, 1 incomparable"
std::string comparison_summary(const Comparison& comparison);

}  // namespace kvfuse::bench
