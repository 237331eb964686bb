#include "benchmark/quantize.h"

#include <cstdio>
#include <filesystem>
#include <utility>

#include "benchmark/config.h"
#include "benchmark/errors.h"
#include "benchmark/text.h"
#include "csrc/model/quantized_file.h"
#include "csrc/model/quantized_weights.h"
#include "csrc/records/record.h"

namespace kvfuse::bench {
namespace {

ModelConfig sizes_of(const QuantizeOptions& options) {
  if (options.config) return finish(read_config_file(*options.config)).model;
  try {
    return preset_config(options.preset.value_or("gpt2"));
  } catch (const std::invalid_argument& error) {
    throw ConfigError({std::string("--preset: ") + error.what()});
  }
}

}  // namespace

std::string quantize_file(const QuantizeOptions& options) {
  std::error_code same_error;
  if (std::filesystem::equivalent(options.in, options.out, same_error))
    throw ConfigError({"quantize: expected two files, got the same one twice: " + options.in});
  const Gpt2Weights own = load_weights(options.in, sizes_of(options), at::kFloat, {.strict = true});
  if (own.weight_dtype() != WeightDtype::kModel)
    throw ModelFileError(options.in, std::string("expected weights in floating point, got ") +
                                         weight_dtype_name(own.weight_dtype()));
  const Gpt2Weights codes = with_quantized_linears(own, options.weight_dtype);
  try {
    write_quantized_weights(options.out, codes);
  } catch (const std::filesystem::filesystem_error& error) {
    throw ResourceError(options.out + ": expected to write the weights, got: " + error.code().message());
  }
  const auto bytes = static_cast<double>(codes.byte_size());
  char size[80];
  std::snprintf(size, sizeof size, "%.1f MB, %.2f times smaller than in float32", bytes / 1e6,
                static_cast<double>(own.byte_size()) / bytes);
  return options.out + ": " + size;
}

}  // namespace kvfuse::bench
