// What the tests of comparisons share: records as the runner writes them, and comparisons of files of them.
#pragma once

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "benchmark/compare.h"
#include "csrc/text/data_file.h"
#include "tests/cpp/temporary_folder.h"

namespace kvfuse::bench {

using nlohmann::json;
using Samples = std::vector<double>;
using Words = std::vector<std::string>;

inline json context() {
  return {{"device", "cpu"},       {"cpu", "AMD EPYC"}, {"cores", 2},
          {"isa", "avx512_vnni"},  {"num_threads", 2},  {"load_average", 0.5},
          {"kvfuse_version", "1"}, {"torch", "2.11"},   {"gpu_name", nullptr}};
}

inline json case_of(const std::string& benchmark, const std::string& version, int T) {
  return {{"benchmark_name", benchmark},
          {"version", version},
          {"model", "gpt2"},
          {"model_config", {{"n_layer", 12}, {"bias", true}}},
          {"weights", nullptr},
          {"device", "cpu"},
          {"batch_size", 1},
          {"seed", 42},
          {"num_threads", 2},
          {"isa", "avx512_vnni"},
          {"memory_budget", nullptr},
          {"T", T},
          {"num_warmup_runs", 1},
          {"num_measure_runs", 5}};
}

inline json latency(const Samples& samples, const std::string& version = "v1", int T = 64) {
  return {{"schema_version", 1},
          {"benchmark_name", "latency_vs_T"},
          {"status", "ok"},
          {"case", case_of("latency_vs_T", version, T)},
          {"context", context()},
          {"model_bytes", 5e8},
          {"model_flops", 4e8},
          {"shortest_ms", 50.0},
          {"time_total_ms_samples", samples}};
}

inline json figure(const std::string& benchmark, const std::string& field, const json& value) {
  return {{"benchmark_name", benchmark},
          {"status", "ok"},
          {"case", case_of(benchmark, "v1", 64)},
          {"context", context()},
          {field, value}};
}

inline const Samples kFast = {100, 101, 102, 100.5, 101.5};
inline const Samples kSlow = {130, 131, 132, 130.5, 131.5};

class Compare : public ::testing::Test {
 protected:
  std::string path(const std::string& name) const { return folder_.path() / name; }
  void write(const std::string& name, const std::string& text) const { folder_.write(name, text); }
  void write(const std::string& name, const std::vector<json>& records) const {
    std::string text;
    for (const json& record : records) text += record.dump() + "\n";
    write(name, text);
  }
  Comparison compare(const std::vector<json>& before, const std::vector<json>& after,
                     double threshold = kDefaultThreshold) const {
    write("old.jsonl", before);
    write("new.jsonl", after);
    return compare_files(path("old.jsonl"), path("new.jsonl"), threshold);
  }
  // Of two files with one point.
  Compared compare_one(const json& before, const json& after) const {
    const Comparison comparison = compare({before}, {after});
    EXPECT_EQ(comparison.rows.size(), 1U);
    return comparison.rows.at(0);
  }
  std::string error_of(const std::string& text) const {
    write("good.jsonl", std::vector<json>{latency(kFast)});
    write("bad.jsonl", text);
    try {
      compare_files(path("good.jsonl"), path("bad.jsonl"), kDefaultThreshold);
    } catch (const DataFileError& error) {
      return error.what();
    }
    return "accepted";
  }

  const test::TemporaryFolder folder_;
};

inline std::string notes_of(const Compared& row) {
  std::string text;
  for (const std::string& note : row.notes) text += note + "\n";
  return text;
}

}  // namespace kvfuse::bench
