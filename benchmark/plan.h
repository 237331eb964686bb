// What a run would do, without doing it: --dry-run and --list-versions.
#pragma once

#include <string>
#include <vector>

#include "benchmark/config.h"
#include "benchmark/table.h"

namespace kvfuse::bench {

// Every point in order, with the memory that its weights and its cache need.
Table plan(const BenchConfig& config, const std::vector<std::string>& benchmarks);

// The registry: each version and its choices, a dash where one does not apply.
Table version_table();

}  // namespace kvfuse::bench
