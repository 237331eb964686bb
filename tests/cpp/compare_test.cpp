// Comparisons of results files: what is called faster or slower, and what cannot be compared and why.
#include <fmt/format.h>

#include "tests/cpp/compare_fixture.h"

namespace kvfuse::bench {
namespace {

// --- Verdicts ---

TEST_F(Compare, FasterAndSlower) {
  const Compared slower = compare_one(latency(kFast), latency(kSlow));
  EXPECT_EQ(slower.verdict, Verdict::kSlower);
  EXPECT_NEAR(slower.ratio->value, 101.0 / 131.0, 1e-12);
  EXPECT_LT(slower.ratio->high, 1 / 1.05);
  EXPECT_EQ(notes_of(slower), "");
  EXPECT_EQ(compare_one(latency(kSlow), latency(kFast)).verdict, Verdict::kFaster);
  EXPECT_TRUE(compare({latency(kFast)}, {latency(kSlow)}).any_worse());
  EXPECT_FALSE(compare({latency(kSlow)}, {latency(kFast)}).any_worse());
  EXPECT_EQ(compare({latency(kFast)}, {latency(kSlow)}, 0.5).rows[0].verdict, Verdict::kSame);
}

TEST_F(Compare, CountsAreExactAndQualityHasATolerance) {
  const auto verdict = [&](const char* benchmark, const char* field, const json& before, const json& after) {
    return compare_one(figure(benchmark, field, before), figure(benchmark, field, after)).verdict;
  };
  const std::int64_t bytes = 51527024640;
  EXPECT_EQ(verdict("vram_vs_T", "peak_memory_bytes", bytes, bytes), Verdict::kSame);
  EXPECT_EQ(verdict("vram_vs_T", "peak_memory_bytes", bytes, bytes + 1), Verdict::kWorse);
  EXPECT_EQ(verdict("vram_vs_T", "peak_memory_bytes", bytes, bytes - 1), Verdict::kBetter);
  EXPECT_EQ(verdict("max_batch_capacity", "max_batch", 491, 490), Verdict::kWorse);
  EXPECT_EQ(verdict("max_batch_capacity", "max_batch", 491, 1867), Verdict::kBetter);
  EXPECT_EQ(verdict("perplexity", "perplexity", 27.55, 27.552), Verdict::kSame);
  EXPECT_EQ(verdict("perplexity", "perplexity", 27.55, 27.56), Verdict::kWorse);
  EXPECT_EQ(verdict("perplexity", "perplexity", 27.55, 27.54), Verdict::kBetter);
  const json worse = figure("vram_vs_T", "peak_memory_bytes", 2);
  EXPECT_TRUE(compare({figure("vram_vs_T", "peak_memory_bytes", 1)}, {worse}).any_worse());
}

TEST_F(Compare, NoisyPointsAreFlaggedAndTheirDifferencesNotBelieved) {
  const Samples noisy = {90, 110, 100, 120, 80};
  Samples twice = noisy;
  for (double& x : twice) x *= 3;
  const Compared same = compare_one(latency(kFast), latency(noisy));
  EXPECT_EQ(same.verdict, Verdict::kSame);
  EXPECT_EQ(notes_of(same), "noisy: new spreads by 15.8 %\n");
  const Compared different = compare_one(latency(noisy), latency(twice));
  EXPECT_EQ(different.verdict, Verdict::kIncomparable);
  EXPECT_NEAR(different.ratio->value, 1.0 / 3.0, 1e-12);
  EXPECT_EQ(notes_of(different), "noisy: old spreads by 15.8 %\nnoisy: new spreads by 15.8 %\n");
  EXPECT_EQ(notes_of(compare_one(latency(kFast), latency({100, 105, 95, 102, 98}))), "");
}

TEST_F(Compare, ADifferenceBetweenMachinesThatAreNotAlikeIsNotBelieved) {
  const auto with_limit = [](const Samples& samples, const json& shortest_ms) {
    json record = latency(samples);
    record["shortest_ms"] = shortest_ms;
    return record;
  };
  for (const double shortest_ms : {40.0, 70.0}) {
    const Compared row = compare_one(latency(kFast), with_limit(kSlow, shortest_ms));
    EXPECT_EQ(row.verdict, Verdict::kIncomparable);
    EXPECT_EQ(row.notes.at(0), fmt::format("the machine's measured limits allowed {:.2f} times the speed",
                                           50.0 / shortest_ms));
  }
  EXPECT_EQ(compare_one(latency(kFast), with_limit(kFast, 70.0)).verdict, Verdict::kSame);
  EXPECT_EQ(compare_one(latency(kFast), with_limit(kSlow, 53.0)).verdict, Verdict::kSlower);
  json other_work = with_limit(kSlow, 70.0);  // the limits say nothing of the machine
  other_work["model_bytes"] = 7e8;
  EXPECT_EQ(compare_one(latency(kFast), other_work).verdict, Verdict::kSlower);
  for (const json& odd : {json(nullptr), json("fast"), json(0.0), json(-50)})
    EXPECT_EQ(compare_one(latency(kFast), with_limit(kSlow, odd)).verdict, Verdict::kSlower) << odd;
}

// --- What cannot be compared ---

TEST_F(Compare, AnotherMachineIsIncomparableForTimesAlone) {
  for (const auto& [key, value] :
       {std::pair<const char*, json>{"cpu", "Intel Xeon"}, {"cores", 64}, {"gpu_name", "H100"}}) {
    json moved = latency(kFast);
    moved["context"][key] = value;
    const Compared row = compare_one(latency(kFast), moved);
    EXPECT_EQ(row.verdict, Verdict::kIncomparable) << key;
    EXPECT_EQ(row.notes.at(0).find(std::string("another machine: ") + key + ": "), 0U) << notes_of(row);
    EXPECT_FALSE(row.ratio.has_value());
  }
  json moved = figure("vram_vs_T", "peak_memory_bytes", 5);
  moved["context"]["cpu"] = "Intel Xeon";
  moved["case"]["isa"] = "avx2";
  moved["case"]["num_threads"] = 64;
  const Compared row = compare_one(figure("vram_vs_T", "peak_memory_bytes", 5), moved);
  EXPECT_EQ(row.verdict, Verdict::kSame);
  EXPECT_EQ(notes_of(row), "cpu: AMD EPYC, then Intel Xeon\n");
}

TEST_F(Compare, AnotherVersionIsANote) {
  json newer = latency(kFast);
  newer["context"]["kvfuse_version"] = "2";
  newer["context"]["torch"] = "2.12";
  newer["context"]["load_average"] = 9.0;
  const Compared row = compare_one(latency(kFast), newer);
  EXPECT_EQ(row.verdict, Verdict::kSame);
  EXPECT_EQ(notes_of(row), "kvfuse_version: 1, then 2; torch: 2.11, then 2.12\n");
}

TEST_F(Compare, AnotherSettingSaysWhich) {
  for (const auto& [key, value] :
       {std::pair<const char*, json>{"seed", 43}, {"num_threads", 1}, {"isa", "avx2"}, {"weights", "a.st"}}) {
    json other = latency(kFast);
    other["case"][key] = value;
    const Compared row = compare_one(latency(kFast), other);
    EXPECT_EQ(row.verdict, Verdict::kIncomparable) << key;
    EXPECT_EQ(row.notes.at(0).find(std::string(key) + ": "), 0U) << notes_of(row);
  }
  json other = latency(kFast);
  for (const char* key : {"a", "b", "c", "d", "e", "f"}) other["case"][key] = key;
  other["case"]["seed"] = 1;
  EXPECT_EQ(
      compare_one(latency(kFast), other).notes.at(0),
      "a: not recorded, then a; b: not recorded, then b; c: not recorded, then c; d: not recorded, then "
      "d; 3 more");
}

TEST_F(Compare, HowOftenAndWithHowMuchMemoryDoesNotMatter) {
  json other = latency({100, 101, 102, 100.5, 101.5, 101, 101});
  other["case"]["num_measure_runs"] = 7;
  other["case"]["num_warmup_runs"] = 0;
  other["case"]["memory_budget"] = 1 << 30;
  EXPECT_EQ(compare_one(latency(kFast), other).verdict, Verdict::kSame);
}

TEST_F(Compare, KeysThatOlderProgramsDidNotRecord) {
  const auto newer = [](const Samples& samples, const json& value, int batch) {
    json record = latency(samples);
    record["case"]["cuda_graph"] = value;
    record["case"]["batch_size"] = batch;
    return record;
  };
  const auto older = [](const Samples& samples, int batch) {
    json record = latency(samples);
    record["case"]["batch_size"] = batch;
    return record;
  };
  const Comparison unset =
      compare({older(kFast, 1), older(kSlow, 8)}, {newer(kSlow, false, 8), newer(kFast, false, 1)});
  EXPECT_EQ(unset.count(Verdict::kSame), 2U);
  EXPECT_EQ(notes_of(unset.rows[0]), "");
  const Compared set = compare_one(older(kFast, 1), newer(kFast, true, 1));
  EXPECT_EQ(set.verdict, Verdict::kSame);
  EXPECT_EQ(notes_of(set), "cuda_graph: not recorded, then true\n");
  // Which of the two is meant, nobody knows.
  const Comparison several = compare({older(kFast, 1)}, {newer(kFast, false, 1), newer(kFast, true, 1)});
  EXPECT_EQ(several.count(Verdict::kIncomparable), 3U);
}

TEST_F(Compare, PointsInOneFileAreListed) {
  const Comparison comparison = compare({latency(kFast, "v0"), latency(kFast, "v1"), latency(kFast, "v2")},
                                        {latency(kFast, "v4"), latency(kFast, "v1")});
  ASSERT_EQ(comparison.rows.size(), 4U);
  const Table table = comparison_table(comparison);
  EXPECT_EQ(table.rows[0], (Words{"latency_vs_T", "v0", "64", "", "total ms", "101.000", "-", "-", "-", "-",
                                  "incomparable", "0.8", "-", "only in the old file"}));
  EXPECT_EQ(table.rows[1][10], "same");
  EXPECT_EQ(table.rows[2].back(), "only in the old file");
  EXPECT_EQ(table.rows[3], (Words{"latency_vs_T", "v4", "64", "", "total ms", "-", "101.000", "-", "-", "-",
                                  "incomparable", "-", "0.8", "only in the new file"}));
  EXPECT_EQ(comparison_summary(comparison), "4 points: 1 same, 3 incomparable");
  EXPECT_EQ(comparison_summary(compare({latency(kFast)}, {latency(kFast)})), "1 point: 1 same");
}

TEST_F(Compare, RecordsThatAreNotOk) {
  json oom = latency(kFast);
  oom["status"] = "oom";
  oom["reason"] = "memory_budget: \x1b[31mtoo little";
  EXPECT_EQ(compare_one(latency(kFast), oom).notes.at(0), "new: oom (memory_budget: \\x1b[31mtoo little)");
  EXPECT_EQ(compare_one(oom, oom).verdict, Verdict::kIncomparable);
  json foreign = latency(kFast);
  foreign.erase("status");
  EXPECT_EQ(compare_one(foreign, latency(kFast)).notes.at(0), "old: status not recorded");
}

TEST_F(Compare, SamplesThatAreNoTimes) {
  const auto reason = [&](const json& samples) {
    json record = latency(kFast);
    record["time_total_ms_samples"] = samples;
    const Compared row = compare_one(latency(kFast), record);
    EXPECT_EQ(row.verdict, Verdict::kIncomparable) << samples;
    return row.notes.at(0);
  };
  const std::string field = "new: time_total_ms_samples: expected ";
  EXPECT_EQ(reason(nullptr), field + "positive numbers, got none");
  EXPECT_EQ(reason({1, nullptr, 2}), field + "positive numbers, got null");
  EXPECT_EQ(reason({1, -1, 2}), field + "positive numbers, got something else");
  EXPECT_EQ(reason({1, "x", 2}), field + "positive numbers, got something else");
  EXPECT_EQ(reason({1e300, 1e300, 1e300}), field + "positive numbers, got something else");
  EXPECT_EQ(reason("x"), field + "positive numbers, got something else");
  EXPECT_EQ(reason(json::array()), field + "numbers, got none");
  EXPECT_EQ(reason({1, 2}), "new: expected at least 3 samples, got 2 (hint: raise num_measure_runs)");
  EXPECT_EQ(compare_one(figure("wings", "x", 1), figure("wings", "x", 1)).notes.at(0),
            "nothing is known of this benchmark");
}

TEST_F(Compare, ManyPointsNeedMoreCertainty) {
  const Samples before = {100, 103, 97, 101, 99}, after = {112, 115.4, 108.6, 113.1, 110.9};
  EXPECT_EQ(compare({latency(before)}, {latency(after)}, 0.02).rows[0].verdict, Verdict::kSlower);
  std::vector<json> old_points = {latency(before)}, new_points = {latency(after)};
  for (int T = 100; T < 150; ++T)
    for (std::vector<json>* points : {&old_points, &new_points}) points->push_back(latency(before, "v1", T));
  const Comparison many = compare(old_points, new_points, 0.02);
  EXPECT_EQ(many.rows[0].verdict, Verdict::kSame);
  EXPECT_NE(notes_of(many.rows[0]).find("not among so many points"), std::string::npos);
}

}  // namespace
}  // namespace kvfuse::bench
