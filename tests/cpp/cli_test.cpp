// The command line: every call the documentation shows, and how wrong ones are refused.
#include "benchmark/cli.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "tests/cpp/temporary_folder.h"

namespace kvfuse::bench {
namespace {

using Words = std::vector<std::string>;

CliOptions parse(const Words& words) {
  std::vector<const char*> argv = {"bench_runner"};
  for (const std::string& word : words) argv.push_back(word.c_str());
  return parse_cli(static_cast<int>(argv.size()), argv.data());
}

std::vector<std::string> problems_of(const Words& words) {
  try {
    resolve_config(parse(words));
  } catch (const ConfigError& error) {
    return error.problems();
  }
  return {};
}

// In an empty folder, so that no configs/default.yaml is found unless a test writes one.
class Cli : public ::testing::Test {
 protected:
  void SetUp() override { std::filesystem::current_path(folder_.path()); }
  void TearDown() override { std::filesystem::current_path(before_); }
  void write(const std::string& path, const std::string& text) const { folder_.write(path, text); }

  const test::TemporaryFolder folder_;
  const std::filesystem::path before_ = std::filesystem::current_path();
};

TEST_F(Cli, Nothing) {
  const CliOptions options = parse({});
  EXPECT_EQ(options.benchmarks, benchmark_names());
  EXPECT_TRUE(options.all_benchmarks);
  EXPECT_TRUE(options.fsync);
  EXPECT_TRUE(options.help.empty());
  EXPECT_FALSE(options.clear_log || options.resume || options.dry_run || options.quiet ||
               options.list_versions || options.self_check);
  EXPECT_EQ(options.output, TableFormat::kTable);
  EXPECT_EQ(resolve_config(options).log_file, "results.jsonl");
}

TEST_F(Cli, VersionsDoNotSwallowBenchmarks) {
  const CliOptions options = parse({"latency", "--version", "v0", "v1", "v2", "--clear-log"});
  EXPECT_EQ(options.benchmarks, Words{"latency_vs_T"});
  EXPECT_FALSE(options.all_benchmarks);
  EXPECT_TRUE(options.clear_log);
  EXPECT_EQ(resolve_config(options).versions, (Words{"v0", "v1", "v2"}));
  EXPECT_EQ(resolve_config(parse({"--version", "v0", "v1"})).versions, (Words{"v0", "v1"}));
  EXPECT_EQ(resolve_config(parse({"--version", "v0", "--version", "v2"})).versions, (Words{"v0", "v2"}));
  EXPECT_EQ(resolve_config(parse({"--version=v2", "--quiet"})).versions, Words{"v2"});
}

TEST_F(Cli, BenchmarkNames) {
  EXPECT_EQ(parse({"vram", "latency", "vram"}).benchmarks, (Words{"vram_vs_T", "latency_vs_T"}));
  EXPECT_EQ(parse({"--benchmark", "latency_vs_T", "perplexity"}).benchmarks,
            (Words{"latency_vs_T", "perplexity"}));
  EXPECT_EQ(parse({"latency", "all"}).benchmarks, benchmark_names());
  EXPECT_EQ(parse({"--quiet", "perplexity"}).benchmarks, Words{"perplexity"});
}

TEST_F(Cli, EveryOptionReachesItsKey) {
  const CliOptions options =
      parse({"--preset",     "gpt2-medium", "--dtype",    "bfloat16",  "--batch-size",     "3",
             "--device",     "cpu",         "--weights",  "123",       "--dataset",        "d.bin",
             "--max-tokens", "4096",        "--log-file", "out.jsonl", "--autoregressive", "--strict-weights",
             "--no-fsync",   "-o",          "md",         "--resume",  "--dry-run",        "--list-versions",
             "--self-check"});
  EXPECT_FALSE(options.fsync);
  EXPECT_TRUE(options.resume && options.dry_run && options.list_versions && options.self_check);
  EXPECT_EQ(options.output, TableFormat::kMarkdown);
  const BenchConfig config = resolve_config(options);
  EXPECT_EQ(config.model_name, "gpt2-medium");
  EXPECT_EQ(config.model.n_layer, 24);
  EXPECT_EQ(config.dtype, DType::kBFloat16);
  EXPECT_EQ(config.batch_size, 3);
  EXPECT_EQ(config.device, Device::kCpu);
  EXPECT_EQ(config.weights, "123");
  EXPECT_EQ(config.dataset, "d.bin");
  EXPECT_EQ(config.max_tokens, 4096);
  EXPECT_EQ(config.log_file, "out.jsonl");
  EXPECT_TRUE(config.autoregressive && config.strict_weights);
  EXPECT_EQ(config.origin.at("max_tokens"), "--max-tokens");
}

TEST_F(Cli, TheStagesOfTheRoofline) {
  const BenchConfig config =
      resolve_config(parse({"roofline", "--stages", "v2_prefill", "v1", "--profile-P", "300"}));
  EXPECT_EQ(config.profile_stages, (Words{"v2_prefill", "v1_decode"}));
  EXPECT_EQ(config.profile_P, 300);
  // Versions named on the command line are meant for it too; those of a file go their own way.
  EXPECT_EQ(resolve_config(parse({"roofline", "--version", "v2", "v0"})).profile_stages,
            (Words{"v2_decode", "v0_decode"}));
  EXPECT_EQ(resolve_config(parse({"--version", "v2", "--stages", "v1_prefill"})).profile_stages,
            Words{"v1_prefill"});
  write("c.yaml", "versions: [v2]\nprofile_stages: [v1_prefill]\n");
  EXPECT_EQ(resolve_config(parse({"--config", "c.yaml"})).profile_stages, Words{"v1_prefill"});
  // It generates nothing, so the default lengths need not fit.
  write("small.yaml", "model_config: {block_size: 64}\n");
  EXPECT_EQ(resolve_config(parse({"roofline", "--config", "small.yaml"})).profile_P, 63);
  EXPECT_EQ(
      problems_of({"roofline", "--config", "small.yaml", "--profile-P", "64"}),
      Words{"--profile-P: expected P + 1 token of a decode stage <= block_size (64 of custom), got 64 + 1 "
            "(hint: lower profile_P)"});
  EXPECT_EQ(
      problems_of({"--stages", "v1_decode", "roofline"}),
      Words{"--stages: expected stages, got the benchmark \"roofline\" (hint: name benchmarks before the "
            "options)"});
}

TEST_F(Cli, CommandLineOverFileOverDefault) {
  write("c.yaml", "pretrained: gpt2-xl\nversions: [v2]\nlog_file: file.jsonl\nseed: 7\n");
  const BenchConfig config =
      resolve_config(parse({"--config", "c.yaml", "--preset", "gpt2", "--log-file", "cli.jsonl"}));
  EXPECT_EQ(config.model_name, "gpt2");
  EXPECT_EQ(config.log_file, "cli.jsonl");
  EXPECT_EQ(config.versions, Words{"v2"});
  EXPECT_EQ(config.seed, 7);
  EXPECT_EQ(config.batch_size, 1);
}

TEST_F(Cli, TheDefaultFileIsReadIfItIsThere) {
  write("configs/default.yaml", "seed: 11\n");
  EXPECT_EQ(resolve_config(parse({})).seed, 11);
  write("c.yaml", "batch_size: 2\n");
  EXPECT_EQ(resolve_config(parse({"--config", "c.yaml"})).seed, 42);
}

TEST_F(Cli, APresetReplacesACustomModelAndIsCheckedWithTheFile) {
  write("c.yaml", "model_config: {n_layer: 1, block_size: 4096}\nT_values: [2000]\n");
  EXPECT_EQ(resolve_config(parse({"--config", "c.yaml"})).model_name, "custom");
  const std::vector<std::string> problems = problems_of({"--config", "c.yaml", "--preset", "gpt2"});
  ASSERT_EQ(problems.size(), 1U);
  EXPECT_EQ(
      problems[0].find("c.yaml:2:11: T_values: expected prompt_length + T <= block_size (1024 of gpt2)"), 0U)
      << problems[0];
}

TEST_F(Cli, ProblemsOfFileAndCommandLineComeTogether) {
  write("c.yaml", "sede: 1\n");
  EXPECT_EQ(
      problems_of({"--config", "c.yaml", "--version", "v9", "--max-tokens", "1e3"}),
      (Words{
          "c.yaml:1:1: sede: expected a known key, got an unknown one (hint: did you mean \"seed\"?)",
          "--version: expected one of v0, v1, v2, v3, v4, v3a, v4a, v3f, v4f, v1w8, v2w8, v4w8, v2w4, got "
          "\"v9\"",
          "--max-tokens: expected integer in [2, 1000000000], got \"1e3\" (hint: write all digits, without "
          "fraction or exponent)"}));
}

TEST_F(Cli, WrongCallsAreRefusedInOneLine) {
  const std::pair<Words, std::string> kCalls[] = {
      {{"--confg", "c.yaml"},
       "--confg: expected a known option, got an unknown one (hint: did you mean \"--config\"?)"},
      {{"--clear_log"},
       "--clear_log: expected a known option, got an unknown one (hint: did you mean \"--clear-log\"?)"},
      {{"-x"}, "-x: expected a known option, got an unknown one (hint: see --help)"},
      {{"latncy"},
       "\"latncy\": expected a benchmark (all, latency, latency_vs_T, vram, vram_vs_T, phase, "
       "per_phase_breakdown, capacity, max_batch_capacity, perplexity, roofline) (hint: "
       "did you mean "
       "\"latency\"?)"},
      {{"--config"}, "--config: expected a value, got none (hint: see --help)"},
      {{"--version"}, "--version: expected a value, got none (hint: see --help)"},
      {{"latency", "--version", "--quiet"},
       "--version: expected one of v0, v1, v2, v3, v4, v3a, v4a, v3f, v4f, v1w8, v2w8, v4w8, v2w4, got "
       "\"--quiet\""},
      {{"--version", "v1", "latency"},
       "--version: expected versions, got the benchmark \"latency\" (hint: name benchmarks before the "
       "options)"},
      {{"--version", "v1", "v1"}, "--version: expected each value once, got \"v1\""},
      {{"--clear-log", "--resume"},
       "--resume: expected not beside --clear-log, got both (hint: drop one of them)"},
      {{"-o", "xml"}, "-o: expected one of table, md, csv, json, got \"xml\""},
      {{"--preset", "gpt3"},
       "--preset: expected one of gpt2, gpt2-medium, gpt2-large, gpt2-xl, got \"gpt3\" (hint: did you mean "
       "\"gpt2\"?)"},
      {{"--device", "gpu"},
       "--device: expected one of auto, cpu, cuda, got \"gpu\" (hint: did you mean \"cpu\"?)"},
      {{"--weights", ""}, "--weights: expected a path, got \"\""},
      {{"--config", "none.yaml"},
       "none.yaml: expected a readable configuration file, got: No such file or directory (hint: check "
       "--config)"},
  };
  for (const auto& [words, problem] : kCalls) EXPECT_EQ(problems_of(words), Words{problem});
  for (const Words& words : {Words{"--config", "a", "--config", "b"}, Words{"--quiet=maybe"}}) {
    const std::vector<std::string> problems = problems_of(words);
    ASSERT_EQ(problems.size(), 1U);
    EXPECT_EQ(problems[0].find('\n'), std::string::npos);
    EXPECT_NE(problems[0].find("--"), std::string::npos) << problems[0];
  }
}

TEST_F(Cli, HelpShowsExamplesAndExitCodes) {
  for (const std::string& flag : Words{"--help", "-h"}) {
    const std::string help = parse({flag}).help;
    for (const char* part : {"Examples:", "Exit codes:", "--version V ...", "--clear-log", "BENCHMARK ..."})
      EXPECT_NE(help.find(part), std::string::npos) << part << "\n" << help;
  }
}

}  // namespace
}  // namespace kvfuse::bench
