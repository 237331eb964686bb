// The strict YAML configuration: what is refused, where, and with which words.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "benchmark/config.h"
#include "tests/cpp/temporary_folder.h"

namespace kvfuse::bench {
namespace {

std::vector<std::string> problems_of(const std::string& text) {
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::string> problems;
  try {
    finish(read_config_text(text, "c.yaml"));
  } catch (const ConfigError& error) {
    problems = error.problems();
  }
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(1)) << text.substr(0, 80);
  return problems;
}

std::string repeated(const std::string& part, std::size_t times) {
  std::string text;
  for (std::size_t i = 0; i < times; ++i) text += part;
  return text;
}

struct BadText {
  std::string text;
  std::string start;  // of the only problem
  std::string part = "expected";
};

const BadText kBadTexts[] = {
    // The document
    {"", "c.yaml:1:1: expected \"key: value\" lines, got an empty file"},
    {"# only a comment\n", "c.yaml:1:1: ", "an empty file"},
    {"---\n", "c.yaml:1:1: ", "an empty file"},
    {"- seed\n- 1\n", "c.yaml:1:1: ", "got a list"},
    {"seed 5\n", "c.yaml:1:1: ", "got \"seed 5\""},
    {"seed:5\n", "c.yaml:1:1: ", "got \"seed:5\""},
    {"seed: 1\n---\nseed: 2\n", "c.yaml:2:1: expected one document"},
    {"{seed: 1} {top_k: 2}\n", "c.yaml:1:11: expected one document"},
    {"seed: 1\n\ttop_k: 2\n", "c.yaml:2:1: expected spaces for indentation, got a tab"},
    {"model_config:\n  \tn_layer: 2\n", "c.yaml:2:3: ", "got a tab"},
    {"seed: 1\ntop_k: \x01\n", "c.yaml:2:8: ", "control character 0x01"},
    {std::string("seed: 1\0\n", 9), "c.yaml:1:8: ", "0x00"},
    {"\x7f"
     "ELF",
     "c.yaml:1:1: ", "0x7f"},
    {"seed: 1\nlog_file: \xff\xfe\n", "c.yaml:2:11: expected UTF-8 text, got the byte 0xff"},
    {"log_file: \xc0\xaf\n", "c.yaml:1:11: ", "0xc0"},
    {"log_file: \xed\xa0\x80\n", "c.yaml:1:11: ", "UTF-8"},
    // Syntax
    {"seed: 1: 2\n", "c.yaml:1:8: expected valid YAML"},
    {"T_values: [1, 2\n", "c.yaml:1:1: expected valid YAML"},
    {"T_values: [1, 2]]\n", "c.yaml:1:17: expected valid YAML"},
    {"log_file: 'x\n", "c.yaml:1:13: expected valid YAML", "EOF in scalar"},
    {"log_file: \"x\nseed: 1\n", "c.yaml:2:8: expected valid YAML", "EOF in scalar"},
    {"log_file: \"a\" b\n", "c.yaml:1:15: expected valid YAML"},
    {"seed: @5\n", "c.yaml:1:7: expected valid YAML"},
    {"%YAML 9.9\n---\nseed: 1\n", "c.yaml:1:1: expected valid YAML"},
    // Anchors, aliases, tags, structure
    {"seed: &s 1\n", "c.yaml:1:7: seed: ", "got an anchor"},
    {"versions: &v [v0]\n", "c.yaml:1:11: versions: ", "got an anchor"},
    {"seed: *s\n", "c.yaml:1:7: expected valid YAML", "anchor"},
    {"seed: !!int 5\n", "c.yaml:1:7: seed: ", "got the tag \"tag:yaml.org,2002:int\""},
    {"model_config: !x {n_layer: 2}\n", "c.yaml:1:15: model_config: ", "got the tag"},
    {"? [1]\n: 2\n", "c.yaml:1:3: expected the name of a key"},
    {": 2\n", "c.yaml:1:1: expected the name of a key"},
    {"\"\": 2\n", "c.yaml:1:1: expected the name of a key, got an empty one"},
    {"seed: " + repeated("[", 70) + repeated("]", 70) + "\n", "c.yaml:1:70: expected at most 64 levels"},
    {repeated("[", 100000), "c.yaml:1:", "expected"},
    {"T_values: [" + repeated("1,", 20000) + "1]\n", "c.yaml:1:", "at most 10000 values"},
    // Keys
    {"prompt_lenght: 5\n", "c.yaml:1:1: prompt_lenght: ", "did you mean \"prompt_length\"?"},
    {"t_values: [5]\n", "c.yaml:1:1: t_values: ", "did you mean \"T_values\"?"},
    {"quite_different_thing: 5\n", "c.yaml:1:1: quite_different_thing: expected a known key",
     "known: T_star"},
    {"<<: {seed: 1}\n", "c.yaml:1:1: <<: expected a known key"},
    {"seed: 1\nseed: 2\n", "c.yaml:2:1: seed: expected each key once", "first given in line 1"},
    {"seed: 1\n\"seed\": 1\n", "c.yaml:2:1: seed: expected each key once"},
    {"model_config:\n  bias: true\n  bias: true\n", "c.yaml:3:3: model_config.bias: expected each key once"},
    {"model_config: {n_heads: 4}\n", "c.yaml:1:16: model_config.n_heads: ", "did you mean \"n_head\"?"},
    {"model_config: 5\n", "c.yaml:1:15: model_config: expected a mapping of keys, got \"5\""},
    {"model_config: [5]\n", "c.yaml:1:15: model_config: ", "got a list"},
    // Integers
    {"seed:\n", "c.yaml:1:1: seed: expected integer in [0, 9223372036854775807], got nothing"},
    {"seed: ~\n", "c.yaml:1:1: seed: ", "got nothing"},
    {"seed: abc\n", "c.yaml:1:7: seed: ", "got \"abc\""},
    {"seed: -1\n", "c.yaml:1:7: seed: ", "got \"-1\""},
    {"seed: 9223372036854775808\n", "c.yaml:1:7: seed: ", "got \"9223372036854775808\""},
    {"seed: 1" + repeated("0", 400) + "\n", "c.yaml:1:7: seed: ", "00...\""},
    {"seed: [1]\n", "c.yaml:1:7: seed: ", "got a list"},
    {"seed: {a: 1}\n", "c.yaml:1:7: seed: ", "got a mapping"},
    {"seed: \"1\"\n", "c.yaml:1:7: seed: ", "the quoted text \"1\" (hint: remove the quotes)"},
    {"prompt_length: 010\n", "c.yaml:1:16: prompt_length: expected integer in [1, 1048576], got \"010\"",
     "octal"},
    {"prompt_length: 0x10\n", "c.yaml:1:16: prompt_length: ", "decimal"},
    {"prompt_length: 0o10\n", "c.yaml:1:16: prompt_length: ", "decimal"},
    {"prompt_length: 1e3\n", "c.yaml:1:16: prompt_length: ", "without fraction or exponent"},
    {"prompt_length: 5.0\n", "c.yaml:1:16: prompt_length: ", "without fraction or exponent"},
    {"prompt_length: 1_000\n", "c.yaml:1:16: prompt_length: ", "without separators"},
    {"prompt_length: +5\n", "c.yaml:1:16: prompt_length: "},
    {"prompt_length: 0\n", "c.yaml:1:16: prompt_length: "},
    {"prompt_length: 1048577\n", "c.yaml:1:16: prompt_length: "},
    {"prompt_length: $(touch x)\n", "c.yaml:1:16: prompt_length: ", "got \"$(touch x)\""},
    {"batch_size: 65537\n", "c.yaml:1:13: batch_size: "},
    {"num_measure_runs: 0\n", "c.yaml:1:19: num_measure_runs: "},
    {"num_threads: 1025\n", "c.yaml:1:14: num_threads: expected integer in [1, 1024]"},
    {"max_tokens: 1\n", "c.yaml:1:13: max_tokens: expected integer in [2, 1000000000]"},
    {"calibration_tokens: 0\n", "c.yaml:1:21: calibration_tokens: expected integer in [1, 1000000000]"},
    {"top_k: -5\n", "c.yaml:1:8: top_k: "},
    {"overflow_keep: 0\n", "c.yaml:1:16: overflow_keep: expected integer in [1, 1048576], got \"0\""},
    {"sink_tokens: 0\n", "c.yaml:1:14: sink_tokens: expected integer in [1, 1048576], got \"0\""},
    {"sink_tokens: null\n", "c.yaml:1:1: sink_tokens: ", "got nothing"},
    {"document_separator: -1\n", "c.yaml:1:21: document_separator: expected integer in [0, 65535]"},
    {"document_separator: true\n", "c.yaml:1:21: document_separator: ", "got \"true\""},
    // Numbers
    {"temperature: .nan\n", "c.yaml:1:14: temperature: expected number in [0, 100], got \".nan\""},
    {"temperature: .inf\n", "c.yaml:1:14: temperature: "},
    {"temperature: -.inf\n", "c.yaml:1:14: temperature: "},
    {"temperature: nan\n", "c.yaml:1:14: temperature: "},
    {"temperature: 1e999\n", "c.yaml:1:14: temperature: "},
    {"temperature: -0.5\n", "c.yaml:1:14: temperature: "},
    {"temperature: .5\n", "c.yaml:1:14: temperature: ", "digits on both sides"},
    {"temperature: 01.5\n", "c.yaml:1:14: temperature: ", "octal"},
    {"temperature: '1'\n", "c.yaml:1:14: temperature: ", "remove the quotes"},
    {"top_p: 0\n", "c.yaml:1:8: top_p: "},
    {"top_p: 1.01\n", "c.yaml:1:8: top_p: "},
    // Truth values
    {"autoregressive: yes\n", "c.yaml:1:17: autoregressive: expected true or false, got \"yes\""},
    {"autoregressive: True\n", "c.yaml:1:17: autoregressive: "},
    {"autoregressive: 1\n", "c.yaml:1:17: autoregressive: "},
    {"training: on\n", "c.yaml:1:11: training: expected true or false, got \"on\""},
    {"strict_weights: 'true'\n", "c.yaml:1:17: strict_weights: ", "remove the quotes"},
    {"model_config: {bias: no}\n", "c.yaml:1:22: model_config.bias: "},
    // Choices and paths
    {"pretrained: gpt-2\n", "c.yaml:1:13: pretrained: ", "did you mean \"gpt2\"?"},
    {"pretrained: [gpt2]\n", "c.yaml:1:13: pretrained: ", "got a list"},
    {"dtype: float23\n", "c.yaml:1:8: dtype: expected one of float32, bfloat16, float16",
     "did you mean \"float32\"?"},
    {"dtype: int8\n", "c.yaml:1:8: dtype: "},
    {"device: gpu\n", "c.yaml:1:9: device: expected one of auto, cpu, cuda, got \"gpu\""},
    {"log_file:\n", "c.yaml:1:1: log_file: expected a path, got nothing"},
    {"log_file: 5\n", "c.yaml:1:11: log_file: ", "put it in quotes"},
    {"log_file: ''\n", "c.yaml:1:11: log_file: expected a path"},
    {"log_file: \"a\\0b\"\n", "c.yaml:1:11: log_file: ", "without control characters"},
    {"log_file: " + std::string(5000, 'x') + "\n", "c.yaml:1:11: log_file: ", "at most 4096 bytes"},
    {"calibration: [a.bin]\n", "c.yaml:1:14: calibration: expected a path, got a list"},
    {"weights: true\n", "c.yaml:1:10: weights: expected a path"},
    {"memory_budget: 2 GiBi\n", "c.yaml:1:16: memory_budget: expected a size", "such as 2 GiB"},
    {"memory_budget: 0\n", "c.yaml:1:16: memory_budget: "},
    {"memory_budget: -1 GiB\n", "c.yaml:1:16: memory_budget: "},
    {"memory_budget: 010 MB\n", "c.yaml:1:16: memory_budget: ", "octal"},
    {"memory_budget: 1.5\n", "c.yaml:1:16: memory_budget: "},
    {"memory_budget: 9999999999999 GiB\n", "c.yaml:1:16: memory_budget: "},
    // Lists
    {"T_values: []\n", "c.yaml:1:11: T_values: expected a list of 1 to 1000 values, got an empty list"},
    {"T_values: 64\n", "c.yaml:1:11: T_values: ", "hint: write [64]"},
    {"T_values: [" + repeated("1,", 1000) + "1]\n", "c.yaml:1:11: T_values: ", "got 1001"},
    {"T_values: [32, x, 64]\n", "c.yaml:1:16: T_values[1]: ", "got \"x\""},
    {"T_values: [32, , 64]\n", "c.yaml:1:", "got nothing"},
    {"T_values: [32, 64, 32]\n", "c.yaml:1:20: T_values[2]: expected each value once, got \"32\""},
    {"T_values:\n  - 32\n  - [64]\n", "c.yaml:3:5: T_values[1]: ", "got a list"},
    {"versions: [v0, v9]\n", "c.yaml:1:16: versions[1]: expected one of v0, v1, v2"},
    {"versions: [v1, v1]\n", "c.yaml:1:16: versions[1]: expected each value once"},
    {"versions: v1\n", "c.yaml:1:11: versions: ", "hint: write [v1]"},
    {"profile_stages: [v0_prefill, v1_decod]\n",
     "c.yaml:1:30: profile_stages[1]: expected one of v0, v1, v2, ", "v4a_decode, "},
    {"profile_stages: [v1_prefil]\n", "c.yaml:1:18: profile_stages[0]: ", "did you mean \"v1_prefill\"?"},
    {"profile_stages: [v1, v1_decode]\n", "c.yaml:1:22: profile_stages[1]: expected each value once"},
    {"profile_stages: v1_decode\n", "c.yaml:1:17: profile_stages: ", "hint: write [v1_decode]"},
    {"profile_stages: []\n", "c.yaml:1:17: profile_stages: ", "got an empty list"},
    {"profile_P: 0\n", "c.yaml:1:12: profile_P: expected integer in [1, 1048576]"},
    {"profile_P: 512.0\n", "c.yaml:1:12: profile_P: ", "without fraction or exponent"},
    {"overflow: slid\n", "c.yaml:1:11: overflow: expected one of error, slide, sink, got \"slid\"",
     "did you mean \"slide\"?"},
    {"overflow: true\n", "c.yaml:1:11: overflow: expected one of error, slide, sink"},
    {"overflow:\n", "c.yaml:1:1: overflow: expected one of error, slide, sink, got nothing"},
    // Across keys
    {"overflow: slide\noverflow_keep: 1025\n",
     "c.yaml:2:16: overflow_keep: expected at most block_size (1024 of gpt2), got 1025"},
    {"overflow: slide\nprompt_length: 1025\n",
     "c.yaml:2:16: prompt_length: expected at most block_size (1024 of gpt2) tokens, seen at once, got 1025"},
    {"overflow: sink\nversions: [v1]\noverflow_keep: 8\nsink_tokens: 8\n",
     "c.yaml:4:14: sink_tokens: expected fewer than the 8 tokens that overflow_keep leaves, got 8"},
    {"overflow: sink\nversions: [v1, v0]\n",
     "c.yaml:1:11: overflow: expected error or slide beside the version v0, which keeps no cache",
     "drop v0 from versions"},
    {"document_separator: 50257\n",
     "c.yaml:1:21: document_separator: expected a token below vocab_size (50257 of gpt2), got 50257"},
    {"profile_P: 1024\n",
     "c.yaml:1:12: profile_P: expected P + 1 token of a decode stage <= block_size (1024 of gpt2)",
     "got 1024 + 1 (hint: lower profile_P)"},
    {"profile_P: 1025\nprofile_stages: [v0_prefill]\n",
     "c.yaml:1:12: profile_P: expected P <= block_size (1024 of gpt2), got 1025 (hint"},
    {"T_values: [64, 2048, 128]\n",
     "c.yaml:1:11: T_values: expected prompt_length + T <= block_size (1024 of gpt2)",
     "got 32 + 2048 = 2080"},
    {"prompt_length: 600\n", "T_values: expected prompt_length + T <= block_size", "got 600 + 512 = 1112"},
    {"T_star: 1000\n", "c.yaml:1:9: T_star: ", "got 32 + 1000 = 1032"},
    {"calibration_tokens: 64\n", "c.yaml:1:21: calibration_tokens: expected more than head_dim (64 of gpt2)",
     "got 64"},
    {"model_config: {n_head: 7}\n", "c.yaml:1:15: model_config: expected n_embd to be a multiple of n_head"},
    {"model_config: {n_head: 256}\n", "c.yaml:1:15: model_config: expected a head_dim", "got 768 / 256 = 3"},
    {"model_config: {n_layer: 0}\n", "c.yaml:1:25: model_config.n_layer: ", "got \"0\""},
    {"model_config: {n_layer: 2000}\n", "c.yaml:1:25: model_config.n_layer: expected 1 <= n_layer <= 1024"},
    {"model_config: {vocab_size: 99999999999}\n", "c.yaml:1:28: model_config.vocab_size: "},
    {"model_config: {dropout: 1.0}\n", "c.yaml:1:25: model_config.dropout: "},
    {"num_measure_runs: 10000\nT_values: [" +
         [] {
           std::string values;
           for (int i = 1; i <= 500; ++i) values += std::to_string(i) + ",";
           return values;
         }() +
         "]\n",
     "versions x T_values x runs: expected at most 1000000 generations, got 10003000"},
};

TEST(Config, EveryBadTextIsRefusedOnceWithItsPlace) {
  for (const BadText& bad : kBadTexts) {
    const std::vector<std::string> problems = problems_of(bad.text);
    ASSERT_EQ(problems.size(), 1U) << bad.text.substr(0, 80) << "\n" << ::testing::PrintToString(problems);
    EXPECT_EQ(problems[0].substr(0, bad.start.size()), bad.start) << bad.text.substr(0, 80);
    EXPECT_NE(problems[0].find(bad.part), std::string::npos) << problems[0] << "\nlacks " << bad.part;
    EXPECT_EQ(problems[0].find('\n'), std::string::npos) << problems[0];
    EXPECT_LT(problems[0].size(), 700U);
  }
  EXPECT_GE(std::size(kBadTexts), 60U);
}

TEST(Config, ReportsAllProblemsOfAFileInOneRun) {
  const std::vector<std::string> problems = problems_of(
      "seed: -1\n"
      "dtype: f32\n"
      "sede: 1\n"
      "versions: [v0, v9, v8]\n"
      "seed: 4\n"
      "prompt_length: &x 5\n"
      "model_config: {n_head: 0, bias: on}\n"
      "T_star: 5000\n");
  EXPECT_EQ(problems.size(), 9U) << ::testing::PrintToString(problems);
  // A syntax error does not hide what stands before it.
  EXPECT_EQ(problems_of("seed: -1\nsede: 2\nT_values: [1\n").size(), 3U);
  EXPECT_EQ(problems_of("T_values: [2000]\n").size(), 1U);
  EXPECT_EQ(problems_of("T_star: 1000\noverflow: slide\n").size(), 1U);
  // Nor does a bad value cause a false alarm elsewhere.
  EXPECT_EQ(problems_of("pretrained: nope\nT_values: [2048]\n").size(), 1U);
}

TEST(Config, ALimitKeepsTheListOfProblemsReadable) {
  std::string text;
  for (int i = 0; i < 500; ++i) text += "key" + std::to_string(i) + ": 1\n";
  const std::vector<std::string> problems = problems_of(text);
  ASSERT_EQ(problems.size(), 101U);
  EXPECT_EQ(problems.back(), "and 400 more problems");
}

TEST(Config, AnAliasBombIsRefusedAtOnce) {
  std::string bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n";
  for (int level = 1; level < 10; ++level) {
    const std::string below = "*a" + std::to_string(level - 1);
    bomb += "a" + std::to_string(level) + ": &a" + std::to_string(level) + " [" + below;
    for (int i = 0; i < 8; ++i) bomb += ", " + below;
    bomb += "]\n";
  }
  EXPECT_GE(problems_of(bomb).size(), 10U);
  const std::vector<std::string> cycle = problems_of("T_values: &x [*x]\n");
  ASSERT_EQ(cycle.size(), 2U);
  EXPECT_NE(cycle[1].find("got an alias"), std::string::npos);
}

TEST(Config, LargeInputsEndWithinASecond) {
  for (const char* part :
       {"[",       "{",      "- ", "? ",    "&a ", "!a ", "{a: ", "[a: ", "\"",   "'",    "a\n",
        "- - a\n", "a: 1\n", "[,", "a:\n ", "#",   "\t",  "\x01", "[a, ", "x: {", "---\n"})
    EXPECT_FALSE(problems_of(repeated(part, kYamlMostBytes / std::string(part).size())).empty()) << part;
  const std::vector<std::string> scalar = problems_of("log_file: " + std::string(50'000'000, 'x') + "\n");
  ASSERT_EQ(scalar.size(), 1U);
  EXPECT_EQ(scalar[0], "c.yaml: expected a file of at most 1048576 bytes, got 50000011");
}

class ConfigFile : public ::testing::Test {
 protected:
  std::string problem(const std::string& path) {
    try {
      load_config(path);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "accepted";
  }

  const test::TemporaryFolder place_;
  const std::string folder_ = place_.path();
};

TEST_F(ConfigFile, OnlyRegularFilesAreRead) {
  EXPECT_EQ(problem(folder_),
            folder_ + ": expected a configuration file, got a directory (hint: check --config)");
  EXPECT_NE(problem(folder_ + "/none.yaml").find("No such file"), std::string::npos);
  ASSERT_EQ(::mkfifo((folder_ + "/fifo").c_str(), 0600), 0);
  EXPECT_NE(problem(folder_ + "/fifo").find("a device or pipe"), std::string::npos);
  EXPECT_NE(problem("/dev/zero").find("a device or pipe"), std::string::npos);
  std::filesystem::create_symlink("nowhere", folder_ + "/broken.yaml");
  EXPECT_NE(problem(folder_ + "/broken.yaml").find("No such file"), std::string::npos);
}

TEST_F(ConfigFile, TheSizeIsCheckedBeforeReading) {
  const std::string path = folder_ + "/large.yaml";
  std::ofstream(path) << "log_file: x";
  std::filesystem::resize_file(path, std::uintmax_t{1} << 40);  // sparse: reading it would take minutes
  EXPECT_EQ(problem(path), path + ": expected a file of at most 1048576 bytes, got 1099511627776");
}

TEST_F(ConfigFile, NamesTheFileAsGiven) {
  const std::string path = folder_ + "/c.yaml";
  std::ofstream(path) << "seed: 1\ntop_p: 2\n";
  EXPECT_EQ(problem(path), path + ":2:8: top_p: expected number in [1e-06, 1], got \"2\"");
}

}  // namespace
}  // namespace kvfuse::bench
