#include "benchmark/quantize_cli.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <string_view>
#include <vector>

#include "benchmark/cli_words.h"
#include "benchmark/errors.h"
#include "benchmark/text.h"

namespace kvfuse::bench {
namespace {

constexpr const char* kQuantizeWord = "quantize";
constexpr const char* kQuantizeFooter =
    R"(IN is what the key weights of a configuration takes: a safetensors file, or a folder with one. OUT is a safetensors file
that it takes as well, for the versions whose weights are of that kind (see bench_runner --list-versions): it is read as it
is, in a quarter of the bytes or less. Norms, biases and positions stay in float32.

Examples:
  bench_runner quantize model.safetensors model-int8.safetensors
  bench_runner quantize gpt2-medium/ medium-int8.safetensors --preset gpt2-medium
  bench_runner latency --weights model-int8.safetensors --version v2w8

Exit codes:
  0 written   2 command line or configuration   3 IN is damaged or of another model   4 OUT cannot be written
)";

}  // namespace

bool is_quantize(int argc, const char* const* argv) {
  return argc > 1 && std::string_view(argv[1]) == kQuantizeWord;
}

QuantizeOptions parse_quantize_cli(int argc, const char* const* argv) {
  CLI::App app("Writes the weights of a model as codes and scales.", "bench_runner quantize");
  QuantizeOptions options;
  std::vector<std::string> files;
  std::string preset, config, dtype = weight_dtype_name(options.weight_dtype);
  app.footer(kQuantizeFooter);
  app.allow_extras();
  app.add_option("files", files, "weights, and the file to write")->option_text("IN OUT");
  app.add_option("--weight-dtype", dtype, "of the codes (default " + dtype + ")")->type_name("int8|int4");
  app.add_option("--preset", preset, "whose sizes the model has (default gpt2)")->type_name("MODEL");
  app.add_option("--config", config, "a configuration file with the sizes")->type_name("FILE");
  options.help = parse_words(app, argc - 1, argv + 1);
  if (!options.help.empty()) return options;
  std::vector<std::string> problems;
  if (files.size() != 2)
    problems.push_back(fmt::format(
        "quantize: expected two files, IN and OUT, got {} (hint: see bench_runner quantize --help)",
        files.size()));
  if (dtype == weight_dtype_name(WeightDtype::kInt4))
    options.weight_dtype = WeightDtype::kInt4;
  else if (dtype != weight_dtype_name(WeightDtype::kInt8))
    problems.push_back(fmt::format("--weight-dtype: expected int8 or int4, got {}", in_quotes(dtype)));
  if (!preset.empty() && !config.empty())
    problems.emplace_back("quantize: expected --preset or --config, got both");
  if (!problems.empty()) throw ConfigError(std::move(problems));
  options.in = files[0];
  options.out = files[1];
  if (!preset.empty()) options.preset = preset;
  if (!config.empty()) options.config = config;
  return options;
}

}  // namespace kvfuse::bench
