// The command line of `bench_runner quantize IN OUT`.
#pragma once

#include <optional>
#include <string>

#include "csrc/model/config.h"

namespace kvfuse::bench {

struct QuantizeOptions {
  std::string in, out;
  std::optional<std::string> preset;  // a known model's name
  std::optional<std::string> config;  // a configuration file, for sizes of its own
  WeightDtype weight_dtype = WeightDtype::kInt8;
  std::string help;  // not empty: print it and end
};

// Whether the first word asks for it: then parse_quantize_cli takes the command line.
bool is_quantize(int argc, const char* const* argv);

// Throws ConfigError with every problem.
QuantizeOptions parse_quantize_cli(int argc, const char* const* argv);

}  // namespace kvfuse::bench
