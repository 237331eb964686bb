// The YAML configuration: what its keys mean, and what is taken where they are left out.
#include "benchmark/config.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace kvfuse::bench {
namespace {

BenchConfig load(const std::string& text) { return finish(read_config_text(text, "c.yaml")); }

TEST(Config, DefaultsAreTheBuiltInOnes) {
  const BenchConfig config = load("seed: 42\n");
  EXPECT_EQ(config.model_name, "gpt2");
  EXPECT_EQ(config.model, preset_config("gpt2"));
  EXPECT_EQ(config.dtype, DType::kFloat32);
  EXPECT_EQ(config.T_values, (std::vector<std::int64_t>{32, 64, 128, 256, 512}));
  EXPECT_EQ(config.versions, (std::vector<std::string>{"v0", "v1"}));
  EXPECT_FALSE(config.weights || config.dataset || config.memory_budget || config.num_threads ||
               config.max_tokens);
}

TEST(Config, ReadsEveryKey) {
  const BenchConfig config = load(
      "\xef\xbb\xbfmodel_config:\n  n_layer: 2\n  n_head: 4\n  n_embd: 128\n  block_size: 64\n  vocab_size: "
      "100\n"
      "  dropout: 0.1\n  bias: false\n"
      "pretrained: null\ndtype: bfloat16\nprompt_length: 8\nbatch_size: 2\nT_values:\n- 16\n- 32\nT_star: "
      "16\n"
      "num_warmup_runs: 0\nnum_measure_runs: 2\nseed: 9223372036854775807\nlog_file: \"out/a b.jsonl\"\n"
      "versions: [v2, v1]\ndevice: cpu\nweights: w.safetensors\nstrict_weights: true\ndataset: d.bin\r\n"
      "memory_budget: 1.5 GiB\nnum_threads: 2\nmax_tokens: 4096\noverflow: sink\noverflow_keep: 9\n"
      "sink_tokens: 5\ndocument_separator: 50\nautoregressive: true\ntraining: true\ntemperature: "
      "8e-1\ntop_k: 40\n"
      "top_p: 0.9\ncalibration: c.bin\ncalibration_tokens: 33\n");
  EXPECT_EQ(config.model_name, "custom");
  EXPECT_EQ(config.model, (ModelConfig{.n_layer = 2,
                                       .n_head = 4,
                                       .n_embd = 128,
                                       .block_size = 64,
                                       .vocab_size = 100,
                                       .dropout = 0.1,
                                       .bias = false}));
  EXPECT_EQ(config.dtype, DType::kBFloat16);
  EXPECT_EQ(config.prompt_length, 8);
  EXPECT_EQ(config.batch_size, 2);
  EXPECT_EQ(config.T_values, (std::vector<std::int64_t>{16, 32}));
  EXPECT_EQ(config.T_star, 16);
  EXPECT_EQ(config.num_warmup_runs, 0);
  EXPECT_EQ(config.num_measure_runs, 2);
  EXPECT_EQ(config.seed, 9223372036854775807);
  EXPECT_EQ(config.log_file, "out/a b.jsonl");
  EXPECT_EQ(config.versions, (std::vector<std::string>{"v2", "v1"}));
  EXPECT_EQ(config.device, Device::kCpu);
  EXPECT_EQ(config.weights, "w.safetensors");
  EXPECT_TRUE(config.strict_weights);
  EXPECT_EQ(config.dataset, "d.bin");
  EXPECT_EQ(config.memory_budget, std::int64_t{3} << 29);
  EXPECT_EQ(config.num_threads, 2);
  EXPECT_EQ(config.max_tokens, 4096);
  EXPECT_EQ(config.overflow, Overflow::kSink);
  EXPECT_EQ(config.overflow_policy().keep, 9);
  EXPECT_EQ(config.overflow_policy().sink, 5);
  EXPECT_EQ(config.document_separator, 50);
  EXPECT_TRUE(config.autoregressive && config.training);
  EXPECT_DOUBLE_EQ(config.temperature, 0.8);
  EXPECT_EQ(config.top_k, 40);
  EXPECT_DOUBLE_EQ(config.top_p, 0.9);
  EXPECT_EQ(config.calibration, "c.bin");
  EXPECT_EQ(config.calibration_tokens, 33);
  EXPECT_EQ(config.origin.at("seed"), "c.yaml:19:7");
}

TEST(Config, LengthsBeyondTheModelAreAChoice) {
  EXPECT_EQ(load("seed: 1\n").overflow, Overflow::kError);
  EXPECT_THROW(load("T_values: [2000]\n"), ConfigError);
  const BenchConfig config = load("T_values: [2000]\noverflow: slide\n");
  EXPECT_EQ(config.overflow_policy().keep, 512);
  EXPECT_EQ(config.overflow_policy().sink, 0);
  // What is measured at T_star stays within the window.
  EXPECT_THROW(load("T_star: 1000\noverflow: slide\n"), ConfigError);
}

TEST(Config, UnitsOfTheMemoryBudget) {
  const auto bytes = [](const std::string& text) {
    return load("memory_budget: " + text + "\n").memory_budget;
  };
  EXPECT_EQ(bytes("123"), 123);
  EXPECT_EQ(bytes("123 B"), 123);
  EXPECT_EQ(bytes("500 MB"), 500'000'000);
  EXPECT_EQ(bytes("500MB"), 500'000'000);
  EXPECT_EQ(bytes("2 KiB"), 2048);
  EXPECT_EQ(bytes("'2 GiB'"), std::int64_t{2} << 30);
  EXPECT_EQ(bytes("3G"), 3'000'000'000);
  EXPECT_EQ(bytes("3Gi"), std::int64_t{3} << 30);
}

TEST(Config, ThePassesOfTheRoofline) {
  const BenchConfig defaults = load("seed: 42\n");
  EXPECT_EQ(defaults.profile_stages, (std::vector<std::string>{"v0_prefill", "v1_prefill", "v1_decode"}));
  EXPECT_EQ(defaults.profile_P, 512);
  const BenchConfig small = load("model_config: {block_size: 64}\nprompt_length: 1\nT_values: [1]\n");
  EXPECT_EQ(small.profile_P, 63) << "the default leaves room for a decode stage";
  const BenchConfig chosen = load("profile_P: 1024\nprofile_stages: [v2_prefill, v0_prefill]\n");
  EXPECT_EQ(chosen.profile_P, 1024);
  EXPECT_EQ(chosen.profile_stages, (std::vector<std::string>{"v2_prefill", "v0_prefill"}));
  EXPECT_EQ(load("profile_stages: [v2, v1_prefill]\n").profile_stages,
            (std::vector<std::string>{"v2_decode", "v1_prefill"}))
      << "a version is its decode stage";
}

TEST(Config, PretrainedOverridesModelConfig) {
  const BenchConfig config = load("model_config: {n_layer: 2}\npretrained: gpt2-medium\n");
  EXPECT_EQ(config.model_name, "gpt2-medium");
  EXPECT_EQ(config.model, preset_config("gpt2-medium"));
}

TEST(Config, ChecksAConfigurationMadeInCode) {
  BenchConfig config;
  EXPECT_NO_THROW(check(config));
  config.T_values = {1000};
  config.model.n_head = 5;
  try {
    check(config);
    FAIL() << "accepted";
  } catch (const ConfigError& error) {
    EXPECT_EQ(error.problems().size(), 2U) << error.what();
  }
}

}  // namespace
}  // namespace kvfuse::bench
