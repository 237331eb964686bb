// --dry-run and --list-versions.
#include "benchmark/plan.h"

#include <gtest/gtest.h>

#include "csrc/versions/registry.h"

namespace kvfuse::bench {
namespace {

constexpr std::int64_t kLimit = 1'000'000'000;

TEST(Plan, ListsEveryPointWithItsMemory) {
  BenchConfig config;  // gpt2, float32, prompt 32, batch 1
  config.T_values = {97};
  config.versions = {"v0", "v1", "v2"};
  const Table table = plan(config, {"latency_vs_T", "vram_vs_T"}, kLimit);
  ASSERT_EQ(table.rows.size(), 6U);
  // v0 runs 128 tokens: 7 * 128 * 768 floats, and 2 * 128 token ids of 8 bytes
  EXPECT_EQ(table.rows[0], (std::vector<std::string>{"latency_vs_T", "v0", "97", "3 + 5", "497.8", "0.0",
                                                     "2.8", "500.5", "yes", "182"}));
  // 128 tokens * 2 * 12 layers * 12 heads * 64 floats of 4 bytes; int8: 64 codes and a scale of 4 bytes
  EXPECT_EQ(table.rows[1][5], "9.4");
  EXPECT_EQ(table.rows[2][5], "2.5");
  EXPECT_EQ(table.rows[5][3], "1");
}

TEST(Plan, BeyondTheWindowTheCacheGrowsNoMore) {
  BenchConfig config;
  config.T_values = {993, 5000};  // 32 + 993 - 1 = 1024: just full
  config.versions = {"v1"};
  config.overflow = Overflow::kSlide;
  const Table table = plan(config, {"vram_vs_T"}, kLimit);
  EXPECT_EQ(table.rows[0][5], "75.5");  // 1024 tokens * 2 * 12 * 12 * 64 * 4 bytes
  EXPECT_EQ(table.rows[1][5], "75.5");
  config.overflow = Overflow::kSink;  // runs nothing again
  EXPECT_LT(std::stod(plan(config, {"vram_vs_T"}, kLimit).rows[1][6]), std::stod(table.rows[1][6]));
}

TEST(Plan, SaysWhatDoesNotFit) {
  BenchConfig config;
  config.T_values = {97};
  config.versions = {"v1"};
  config.batch_size = 100;
  const Table table = plan(config, {"vram_vs_T"}, kLimit);
  EXPECT_EQ(table.rows[0][8], "no");
  const std::int64_t most = std::stoll(table.rows[0][9]);
  config.batch_size = most;
  EXPECT_EQ(plan(config, {"vram_vs_T"}, kLimit).rows[0][8], "yes");
  config.batch_size = most + 1;
  EXPECT_EQ(plan(config, {"vram_vs_T"}, kLimit).rows[0][8], "no");
}

TEST(Plan, PerplexityHasNoLength) {
  BenchConfig config;
  config.versions = {"v1"};
  const Table table = plan(config, {"perplexity"}, kLimit);
  ASSERT_EQ(table.rows.size(), 1U);
  EXPECT_EQ(table.rows[0][2], "-");
  EXPECT_EQ(table.rows[0][5], "0.0");  // teacher forcing caches nothing
  config.autoregressive = true;
  EXPECT_EQ(plan(config, {"perplexity"}, kLimit).rows[0][5], "75.4");
}

TEST(Plan, StagesOfTheRooflineHaveAPrompt) {
  BenchConfig config;
  config.profile_stages = {"v0_decode", "v2_prefill"};
  const Table table = plan(config, {"roofline"}, kLimit);
  ASSERT_EQ(table.rows.size(), 2U);
  // 7 * 513 * 768 floats and 2 * 513 token ids: all tokens are run again
  EXPECT_EQ(table.rows[0], (std::vector<std::string>{"roofline", "v0_decode", "-", "3 + 5", "497.8", "0.0",
                                                     "11.0", "508.8", "yes", "45"}));
  EXPECT_EQ(table.rows[1][5], "10.0");  // 513 tokens * 12 layers * 2 * 12 heads * 68 bytes
}

TEST(VersionTable, ShowsDashesWhereAChoiceDoesNotApply) {
  const Table table = version_table();
  ASSERT_EQ(table.rows.size(), versions().size());
  EXPECT_EQ(table.rows[0],
            (std::vector<std::string>{"v0", "no", "-", "-", "-", "model", "No cache (baseline)"}));
  EXPECT_EQ(table.rows[2],
            (std::vector<std::string>{"v2", "yes", "int8", "1", "-", "model", "KV cache + INT8 cache"}));
}

}  // namespace
}  // namespace kvfuse::bench
