// `bench_runner quantize`: weights as codes, on disk.
#pragma once

#include <string>

#include "benchmark/quantize_cli.h"

namespace kvfuse::bench {

// Returns a line that says what was written. Throws ConfigError, ModelFileError, or ResourceError if the file
// cannot be written.
std::string quantize_file(const QuantizeOptions& options);

}  // namespace kvfuse::bench
