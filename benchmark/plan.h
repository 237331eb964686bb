// What a run would do, without doing it: --dry-run and --list-versions.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "benchmark/config.h"
#include "benchmark/table.h"

namespace kvfuse::bench {

// Every point in order, with the memory that it is predicted to need at its peak, whether `limit_bytes` hold
// that, and the largest batch for which they would.
Table plan(const BenchConfig& config, const std::vector<std::string>& benchmarks, std::int64_t limit_bytes);

// The registry: each version and its choices, a dash where one does not apply.
Table version_table();

}  // namespace kvfuse::bench
