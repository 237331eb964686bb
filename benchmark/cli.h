// The command line of bench_runner, and how it overrides the configuration file.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "benchmark/config.h"
#include "benchmark/table.h"

namespace kvfuse::bench {

struct CliOptions {
  std::vector<std::string> benchmarks;  // log names (latency_vs_T, ...), each once
  bool all_benchmarks = true;           // none was named, or "all": one that lacks its data may be left out
  std::optional<std::string> config;
  // Values for configuration keys: the flag, and the node it gives.
  std::vector<std::pair<std::string, YamlNode>> overrides;
  bool clear_log = false;
  bool resume = false;
  bool dry_run = false;
  TableFormat output = TableFormat::kTable;
  bool fsync = true;
  bool quiet = false;
  bool list_versions = false;
  bool self_check = false;
  std::string help;  // not empty: print it and end
};

// The benchmarks as the log names them, in the order of "all".
std::vector<std::string> benchmark_names();

// Throws ConfigError with every problem.
CliOptions parse_cli(int argc, const char* const* argv);

// Command line over file over built-in defaults. Without --config, configs/default.yaml is read if it exists.
// Throws ConfigError with every problem of file and command line.
BenchConfig resolve_config(const CliOptions& options);

}  // namespace kvfuse::bench
