// libFuzzer target: whatever the text, reading a configuration ends in a BenchConfig or a ConfigError.
#include <cstddef>
#include <cstdint>
#include <string>

#include "benchmark/config.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  try {
    kvfuse::bench::finish(kvfuse::bench::read_config_text(text, "fuzz.yaml"));
  } catch (const kvfuse::bench::ConfigError& error) {
    if (error.problems().empty()) __builtin_trap();
  }
  return 0;
}
