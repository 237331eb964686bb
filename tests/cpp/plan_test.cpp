// --dry-run and --list-versions.
#include "benchmark/plan.h"

#include <gtest/gtest.h>

#include "csrc/versions/registry.h"

namespace kvfuse::bench {
namespace {

TEST(Plan, ListsEveryPointWithItsCache) {
  BenchConfig config;  // gpt2, float32, prompt 32, batch 1
  config.T_values = {97};
  config.versions = {"v0", "v1", "v2"};
  const Table table = plan(config, {"latency_vs_T", "vram_vs_T"});
  ASSERT_EQ(table.rows.size(), 6U);
  EXPECT_EQ(table.rows[0], (std::vector<std::string>{"latency_vs_T", "v0", "97", "3 + 5", "497.8", "0.0"}));
  // 128 tokens * 2 * 12 layers * 12 heads * 64 floats of 4 bytes; int8: 64 codes and a scale of 4 bytes
  EXPECT_EQ(table.rows[1].back(), "9.4");
  EXPECT_EQ(table.rows[2].back(), "2.5");
  EXPECT_EQ(table.rows[5][3], "1");
}

TEST(Plan, PerplexityHasNoLength) {
  BenchConfig config;
  config.versions = {"v1"};
  const Table table = plan(config, {"perplexity"});
  ASSERT_EQ(table.rows.size(), 1U);
  EXPECT_EQ(table.rows[0][2], "-");
}

TEST(VersionTable, ShowsDashesWhereAChoiceDoesNotApply) {
  const Table table = version_table();
  ASSERT_EQ(table.rows.size(), versions().size());
  EXPECT_EQ(table.rows[0], (std::vector<std::string>{"v0", "no", "-", "-", "-", "No cache (baseline)"}));
  EXPECT_EQ(table.rows[2],
            (std::vector<std::string>{"v2", "yes", "int8", "1", "-", "KV cache + INT8 cache"}));
}

}  // namespace
}  // namespace kvfuse::bench
