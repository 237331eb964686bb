// Comparisons of results files: the same program compared with itself is called the same, real differences
// are found, and what cannot be compared says why.
#include "benchmark/compare.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <random>
#include <stdexcept>

#include "benchmark/compare_cli.h"
#include "benchmark/errors.h"
#include "csrc/model/model_file.h"
#include "csrc/text/token_file.h"

namespace kvfuse::bench {
namespace {

using nlohmann::json;
using Samples = std::vector<double>;
using Words = std::vector<std::string>;

json context() {
  return {{"device", "cpu"},       {"cpu", "AMD EPYC"}, {"cores", 2},
          {"isa", "avx512_vnni"},  {"num_threads", 2},  {"load_average", 0.5},
          {"kvfuse_version", "1"}, {"torch", "2.11"},   {"gpu_name", nullptr}};
}

json case_of(const std::string& benchmark, const std::string& version, int T) {
  return {{"benchmark_name", benchmark},
          {"version", version},
          {"model", "gpt2"},
          {"model_config", {{"n_layer", 12}, {"bias", true}}},
          {"weights", nullptr},
          {"device", "cpu"},
          {"batch_size", 1},
          {"seed", 42},
          {"num_threads", 2},
          {"isa", "avx512_vnni"},
          {"memory_budget", nullptr},
          {"T", T},
          {"num_warmup_runs", 1},
          {"num_measure_runs", 5}};
}

json latency(const Samples& samples, const std::string& version = "v1", int T = 64) {
  return {{"schema_version", 1},
          {"benchmark_name", "latency_vs_T"},
          {"status", "ok"},
          {"case", case_of("latency_vs_T", version, T)},
          {"context", context()},
          {"model_bytes", 5e8},
          {"model_flops", 4e8},
          {"shortest_ms", 50.0},
          {"time_total_ms_samples", samples}};
}

json figure(const std::string& benchmark, const std::string& field, const json& value) {
  return {{"benchmark_name", benchmark},
          {"status", "ok"},
          {"case", case_of(benchmark, "v1", 64)},
          {"context", context()},
          {field, value}};
}

const Samples kFast = {100, 101, 102, 100.5, 101.5};
const Samples kSlow = {130, 131, 132, 130.5, 131.5};

class Compare : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = ::testing::TempDir() + "kvfuse_compare_XXXXXX";
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    folder_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string path(const std::string& name) const { return folder_ + "/" + name; }
  void write(const std::string& name, const std::string& text) const {
    std::ofstream(path(name), std::ios::binary) << text;
  }
  void write(const std::string& name, const std::vector<json>& records) const {
    std::string text;
    for (const json& record : records) text += record.dump() + "\n";
    write(name, text);
  }
  Comparison compare(const std::vector<json>& before, const std::vector<json>& after,
                     double threshold = kDefaultThreshold) const {
    write("old.jsonl", before);
    write("new.jsonl", after);
    return compare_files(path("old.jsonl"), path("new.jsonl"), threshold);
  }
  // Of two files with one point.
  Compared compare_one(const json& before, const json& after) const {
    const Comparison comparison = compare({before}, {after});
    EXPECT_EQ(comparison.rows.size(), 1U);
    return comparison.rows.at(0);
  }
  std::string error_of(const std::string& text) const {
    write("good.jsonl", std::vector<json>{latency(kFast)});
    write("bad.jsonl", text);
    try {
      compare_files(path("good.jsonl"), path("bad.jsonl"), kDefaultThreshold);
    } catch (const DataFileError& error) {
      return error.what();
    }
    return "accepted";
  }

  std::string folder_;
};

std::string notes_of(const Compared& row) {
  std::string text;
  for (const std::string& note : row.notes) text += note + "\n";
  return text;
}

// --- The judgement of two sets of times ---

TEST(Verdict, PValuesByAnIndependentImplementation) {
  // The trimmed means, winsorised variances and Student's distribution of SciPy 1.17.
  const Samples a = {std::exp(0.1), std::exp(0.2), std::exp(0.3)};
  const Samples b = {std::exp(0.4), std::exp(0.5), std::exp(0.6)};
  EXPECT_NEAR(weigh(a, b, 0.0, 0.0).p_value, 0.10119150721829535, 1e-12);
  const Samples outliers = {100, 103, 101, 99, 140, 102, 98, 104, 97, 60};
  const Samples more = {110, 113, 109, 108, 111, 300, 112, 107};
  EXPECT_NEAR(weigh(outliers, more, 0.0, 0.0).p_value, 0.027958657970545312, 1e-12);
  EXPECT_NEAR(weigh(more, outliers, 0.0, 0.0).p_value, 0.027958657970545312, 1e-12);
  EXPECT_NEAR(weigh(outliers, more, 0.02, 0.025).p_value, 0.06858085331109143, 1e-12);
}

TEST(Verdict, TheIntervalCoversTheBootstrapAndIsWidenedByWhatElseIsKnown) {
  const Ratio narrow = ratio_of_medians(kSlow, kFast);
  const Ratio plain = weigh(kSlow, kFast, 0.0, 0.0).ratio;
  EXPECT_EQ(plain.value, narrow.value);
  EXPECT_TRUE(plain.low <= narrow.low && narrow.high <= plain.high);
  for (const Ratio& wide : {weigh(kSlow, kFast, 0.05, 0.0).ratio, weigh(kSlow, kFast, 0.0, 0.02).ratio})
    EXPECT_TRUE(wide.low < plain.low && plain.high < wide.high);
  EXPECT_EQ(beyond({1.2, 1.06, 1.3}, 0.05), 1);
  EXPECT_EQ(beyond({1.2, 1.04, 1.3}, 0.05), 0);
  EXPECT_EQ(beyond({0.8, 0.7, 0.95}, 0.05), -1);
  EXPECT_EQ(beyond({0.8, 0.7, 0.96}, 0.05), 0);
}

TEST(Verdict, ConstantTimesAndDifferencesWithinTheThreshold) {
  EXPECT_EQ(weigh(Samples{5, 5, 5}, Samples{5, 5, 5}, 0.0, 0.0).p_value, 1.0);
  EXPECT_LT(weigh(Samples{6, 6, 6}, Samples{5, 5, 5}, 0.0, 0.0).p_value, 1e-20);
  EXPECT_EQ(weigh(Samples{104, 104, 104}, Samples{100, 100, 100}, 0.05, 0.0).p_value, 1.0);
}

TEST(Verdict, HolmByHand) {
  // 0.01 * 4 and 0.015 * 3 pass, 0.03 * 2 does not, and 0.04 * 1 would, but comes after one that failed.
  EXPECT_EQ(stands_together(Samples{0.04, 0.01, 0.03, 0.015}), (std::vector<bool>{false, true, false, true}));
  EXPECT_EQ(stands_together(Samples{0.05}), std::vector<bool>{true});
  EXPECT_EQ(stands_together(Samples{std::nan("")}), std::vector<bool>{false});
  EXPECT_TRUE(stands_together({}).empty());
}

TEST(Verdict, RefusesWhatHasNoAnswer) {
  EXPECT_THROW(weigh(Samples{1, 2}, kFast, 0.05, 0.0), std::invalid_argument);
  EXPECT_THROW(weigh(kFast, Samples{1, 2, 0}, 0.05, 0.0), std::invalid_argument);
  EXPECT_THROW(weigh(kFast, Samples{1, 2, std::nan("")}, 0.05, 0.0), std::invalid_argument);
  EXPECT_THROW(weigh(kFast, kFast, std::nan(""), 0.0), std::invalid_argument);
  EXPECT_THROW(weigh(kFast, kFast, 0.05, std::nan("")), std::invalid_argument);
  EXPECT_THROW(spread_of(Samples{1}), std::invalid_argument);
}

// --- A program compared with itself ---

// One run of a machine: for each point its samples.
class Machine {
 public:
  struct Habits {
    const char* name;
    double noise = 0.01;      // standard deviation of each sample
    double tails = 0.0;       // degrees of freedom of the noise: Student's t; 0: normal
    double company = 0.0;     // how often a sample meets another program and takes 1.2 to 3 times as long
    double run_to_run = 0.0;  // standard deviation of a run and, apart, of each point of a run
    double trend = 0.0;       // at most, from the first to the last sample of a run
    double slow_clock = 0.0;  // how often a sample is taken at 1 / 1.3 of the clock
    double memory = 0.0;      // how much of a sample's deviation the next one inherits
  };
  Machine(Habits habits, std::uint64_t seed) : habits_(habits), random_(seed) {}

  std::vector<json> run(int points, int samples, double factor = 1.0) {
    const double run_offset = normal(habits_.run_to_run);
    const double trend = (2 * uniform() - 1) * habits_.trend;
    std::vector<json> records;
    for (int p = 0; p < points; ++p) {
      const double offset = run_offset + normal(habits_.run_to_run);
      double deviation = noise();
      Samples times;
      for (int i = 0; i < samples; ++i) {
        const double inherited = habits_.memory * deviation;
        deviation = inherited + std::sqrt(1 - habits_.memory * habits_.memory) * noise();
        times.push_back(factor * 100 * (p + 1) *
                        std::exp(offset + trend * i / samples + deviation + company() + slow_clock()));
      }
      records.push_back(latency(times, "v1", p));
    }
    return records;
  }

 private:
  double uniform() { return std::uniform_real_distribution<double>(0, 1)(random_); }
  double normal(double deviation) { return deviation * std::normal_distribution<double>()(random_); }
  double noise() {
    if (habits_.tails == 0.0) return normal(habits_.noise);
    return habits_.noise *
           std::clamp(std::student_t_distribution<double>(habits_.tails)(random_), -100.0, 100.0);
  }
  double company() { return uniform() < habits_.company ? std::log(1.2 + 1.8 * uniform()) : 0.0; }

  double slow_clock() { return uniform() < habits_.slow_clock ? std::log(1.3) : 0.0; }

  Habits habits_;
  std::mt19937_64 random_;
};

constexpr Machine::Habits kHabits[] = {
    {.name = "quiet"},
    {.name = "noisy", .noise = 0.05},
    {.name = "very noisy", .noise = 0.2},
    {.name = "heavy tails", .noise = 0.02, .tails = 2},
    {.name = "very heavy tails", .noise = 0.02, .tails = 1},
    {.name = "company", .company = 0.1},
    {.name = "run to run", .noise = 0.02, .run_to_run = 0.02},
    {.name = "drifting", .noise = 0.02, .run_to_run = 0.015, .trend = 0.06},
    {.name = "slow waves", .noise = 0.02, .memory = 0.8},
    {.name = "two clocks", .slow_clock = 0.3},
};
constexpr int kComparisons = 100;
constexpr int kSameAtLeast = 95;

using AgainstItself = Compare;

// A whole comparison, of all its points, is one trial: it fails if it calls any of them faster or slower.
TEST_F(AgainstItself, IsTheSameInAtLeast95Of100) {
  for (const Machine::Habits& habits : kHabits)
    for (const auto& [points, samples] : {std::pair{1, 3}, {9, 3}, {9, 5}, {3, 12}}) {
      Machine machine(habits, 1);
      int same = 0;
      for (int i = 0; i < kComparisons; ++i) {
        const Comparison comparison = compare(machine.run(points, samples), machine.run(points, samples));
        same += comparison.count(Verdict::kSame) == comparison.rows.size() ? 1 : 0;
      }
      EXPECT_GE(same, kSameAtLeast) << habits.name << ", " << points << " points, " << samples << " samples";
    }
}

// The bootstrap alone, which the guards are there for.
TEST_F(AgainstItself, TheBootstrapAloneWouldNotDo) {
  Machine machine(kHabits[0], 1);
  int excludes_one = 0;
  for (int i = 0; i < kComparisons; ++i) {
    const auto samples = [&] { return machine.run(1, 3)[0]["time_total_ms_samples"].get<Samples>(); };
    const Ratio ratio = ratio_of_medians(samples(), samples());
    excludes_one += ratio.low > 1 || ratio.high < 1 ? 1 : 0;
  }
  EXPECT_GT(excludes_one, kComparisons - kSameAtLeast);
}

TEST_F(AgainstItself, RealDifferencesAreFound) {
  const Machine::Habits usual = {.name = "usual", .noise = 0.015, .run_to_run = 0.005};
  const Machine::Habits quiet = {.name = "quiet", .noise = 0.003, .run_to_run = 0.001};
  const struct {
    Machine::Habits habits;
    double factor;
    int samples;
    double threshold;
  } kDifferences[] = {
      {usual, 1.3, 3, 0.05}, {usual, 1.15, 5, 0.05}, {usual, 1.1, 10, 0.02}, {quiet, 1.04, 5, 0.01}};
  for (const auto& [habits, factor, samples, threshold] : kDifferences) {
    Machine machine(habits, 2);
    std::size_t slower = 0, faster = 0, all = 0;
    for (int i = 0; i < 20; ++i) {
      const std::vector<json> before = machine.run(9, samples);
      const std::vector<json> after = machine.run(9, samples, factor);
      slower += compare(before, after, threshold).count(Verdict::kSlower);
      faster += compare(after, before, threshold).count(Verdict::kFaster);
      all += 9;
    }
    EXPECT_GE(static_cast<double>(slower), 0.8 * static_cast<double>(all)) << factor << " " << samples;
    EXPECT_GE(static_cast<double>(faster), 0.8 * static_cast<double>(all)) << factor << " " << samples;
  }
}

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

// --- Files ---

TEST_F(Compare, TheLastRecordOfAPointCounts) {
  const Comparison comparison =
      compare({latency(kSlow), latency(kFast, "v2"), latency(kFast)}, {latency(kFast)});
  ASSERT_EQ(comparison.rows.size(), 2U);
  EXPECT_EQ(comparison.rows[0].verdict, Verdict::kSame);
  ASSERT_EQ(comparison.notices.size(), 1U);
  EXPECT_NE(comparison.notices[0].find("the last record counts; 1 earlier ones are left out"),
            std::string::npos);
}

TEST_F(Compare, SettingsThatTellPointsApartAreShown) {
  json eight = latency(kFast);
  eight["case"]["batch_size"] = 8;
  const Table table = comparison_table(compare({latency(kFast), eight}, {latency(kFast), eight}));
  EXPECT_EQ(table.rows[0][3], "batch_size=1");
  EXPECT_EQ(table.rows[1][3], "batch_size=8");
}

TEST_F(Compare, ForeignRecordsAndUnknownFieldsArePassedOver) {
  json rich = latency(kFast);
  rich["unknown"] = {{"field", json::array({1, 2})}};
  const Comparison comparison =
      compare({json::object(), {{"benchmark_name", 3}, {"case", {}}}, {{"case", nullptr}}, rich}, {rich});
  EXPECT_EQ(comparison.rows.size(), 1U);
  EXPECT_EQ(comparison.count(Verdict::kSame), 1U);
  EXPECT_NE(comparison.notices.at(0).find("passed over 3 records that name no point"), std::string::npos);
}

TEST_F(Compare, NanTokensAreRead) {
  std::string line = latency(kFast, "NaN \\\" -Infinity NaN").dump();
  line.insert(1, "\"a\":NaN,\"b\":[Infinity,-Infinity],");
  write("old.jsonl", line + "\n");
  const Comparison comparison = compare_files(path("old.jsonl"), path("old.jsonl"), kDefaultThreshold);
  ASSERT_EQ(comparison.count(Verdict::kSame), 1U);
  EXPECT_EQ(comparison.rows[0].points.before->version, "NaN \\\" -Infinity NaN");
  json record = latency(kFast);
  record.erase("time_total_ms_samples");
  line = record.dump();
  line.insert(1, "\"time_total_ms_samples\":[1,NaN,3],");
  write("old.jsonl", line + "\n");
  EXPECT_EQ(compare_files(path("old.jsonl"), path("old.jsonl"), 0.05).rows.at(0).notes.at(0),
            "old: time_total_ms_samples: expected positive numbers, got null");
}

TEST_F(Compare, DamagedLinesAreErrorsThatNameThem) {
  const std::string good = latency(kFast).dump() + "\n";
  for (const std::string& bad : Words{"garbage\n", "\n", "{\"a\": 1\n", "[]\n", "{\"a\": 1}{\"b\": 2}\n",
                                      "{\"a\": nan}\n", "{\"a\": \"\xff\"}\n", "{\"a\": NaNNaN}\n",
                                      "{\"a\":" + std::string(100, '[') + std::string(100, ']') + "}\n",
                                      std::string(100, '\0') + "\n"}) {
    for (const std::string& rest : Words{good, ""})
      EXPECT_EQ(error_of(good + good + bad + rest), path("bad.jsonl") +
                                                        ":3: expected one JSON object, got a damaged line "
                                                        "(hint: repair or remove that line)")
          << bad;
  }
  EXPECT_NE(error_of(good + std::string((1 << 24) + (2 << 20), 'x'))
                .find(":2: expected one JSON object, got a line of more than 16 MiB"),
            std::string::npos);
}

TEST_F(Compare, ALastLineThatWasCutOffIsLeftOut) {
  const std::string good = latency(kFast).dump() + "\n";
  for (const std::size_t length : {std::size_t{1}, good.size() / 2, good.size() - 2}) {
    write("old.jsonl", good + good.substr(0, length));
    const Comparison comparison = compare_files(path("old.jsonl"), path("old.jsonl"), kDefaultThreshold);
    EXPECT_EQ(comparison.count(Verdict::kSame), 1U);
    ASSERT_EQ(comparison.notices.size(), 2U);
    EXPECT_NE(comparison.notices[0].find(":2: the last line was cut off"), std::string::npos);
  }
  write("old.jsonl", good.substr(0, good.size() - 1));  // whole, but for its newline
  EXPECT_TRUE(compare_files(path("old.jsonl"), path("old.jsonl"), kDefaultThreshold).notices.empty());
}

TEST_F(Compare, SchemaVersions) {
  EXPECT_EQ(error_of("{\"T\": 1}\n{\"schema_version\": 1}\n"), "accepted");
  for (const std::string& version : Words{"2", "18446744073709551615", "-1", "1.5", "\"1\"", "null"})
    EXPECT_EQ(error_of("{}\n{\"schema_version\": " + version + "}\n"),
              path("bad.jsonl") + ":2: schema_version: expected at most 1, got " + version +
                  " (hint: a newer version wrote this file; use that one to read it)");
}

TEST_F(Compare, PathsThatLeadToNoFile) {
  write("good.jsonl", std::vector<json>{latency(kFast)});
  ASSERT_EQ(::mkfifo(path("pipe").c_str(), 0600), 0);
  for (const std::string& bad : Words{path("none"), folder_, path("pipe"), "/dev/zero", ""})
    EXPECT_THROW(compare_files(path("good.jsonl"), bad, kDefaultThreshold), ModelFileError) << bad;
  write("empty.jsonl", std::string());
  const Comparison comparison = compare_files(path("empty.jsonl"), path("empty.jsonl"), kDefaultThreshold);
  EXPECT_TRUE(comparison.rows.empty());
  EXPECT_NE(comparison.notices.at(0).find("holds no points"), std::string::npos);
  EXPECT_EQ(comparison_summary(comparison), "0 points");
}

// Resident memory of a process that compares a file of `records` records with itself, in MiB; -1 if it
// failed.
long peak_mib_of_comparison(const std::string& path) {
  const pid_t child = ::fork();
  if (child == 0) {
    const Comparison comparison = compare_files(path, path, kDefaultThreshold);
    ::_exit(comparison.count(Verdict::kSame) == 100 ? 0 : 1);
  }
  int status = 0;
  struct rusage usage = {};
  if (::wait4(child, &status, 0, &usage) != child || status != 0) return -1;
  return usage.ru_maxrss / 1024;
}

TEST_F(Compare, MemoryDoesNotGrowWithTheFile) {
  {
    std::ofstream file(path("big.jsonl"), std::ios::binary);
    std::string lines;
    for (int T = 0; T < 100; ++T) {
      json record = latency(kFast, "v1", T);
      record["padding"] = std::string(1500, 'x');
      lines += record.dump() + "\n";
    }
    for (int repeats = 0; repeats < 300; ++repeats) file << lines;  // about 70 MB
  }
  ASSERT_GT(std::filesystem::file_size(path("big.jsonl")), std::uintmax_t{60} << 20);
  const long peak = peak_mib_of_comparison(path("big.jsonl"));
  EXPECT_GT(peak, 0);
  EXPECT_LT(peak, 50);
}

// --- The command line ---

CompareOptions parse(const Words& words) {
  std::vector<const char*> argv = {"bench_runner", "compare"};
  for (const std::string& word : words) argv.push_back(word.c_str());
  EXPECT_TRUE(is_compare(static_cast<int>(argv.size()), argv.data()));
  return parse_compare_cli(static_cast<int>(argv.size()), argv.data());
}

TEST(CompareCli, Options) {
  const CompareOptions plain = parse({"a.jsonl", "b.jsonl"});
  EXPECT_EQ(plain.old_path, "a.jsonl");
  EXPECT_EQ(plain.new_path, "b.jsonl");
  EXPECT_DOUBLE_EQ(plain.threshold, kDefaultThreshold);
  EXPECT_EQ(plain.output, TableFormat::kTable);
  EXPECT_FALSE(plain.fail_if_slower);
  const CompareOptions all = parse({"--fail-if-slower", "a", "--threshold", "2.5", "b", "-o", "csv"});
  EXPECT_EQ(all.old_path + all.new_path, "ab");
  EXPECT_DOUBLE_EQ(all.threshold, 0.025);
  EXPECT_EQ(all.output, TableFormat::kCsv);
  EXPECT_TRUE(all.fail_if_slower);
  const char* other[] = {"bench_runner", "latency", "compare"};
  EXPECT_FALSE(is_compare(3, other));
  EXPECT_FALSE(is_compare(1, other));
  for (const char* part : {"OLD NEW", "--threshold PERCENT", "Examples:", "Exit codes:", "incomparable"})
    EXPECT_NE(parse({"--help"}).help.find(part), std::string::npos) << part;
}

TEST(CompareCli, WrongCallsAreRefusedInOneLineEach) {
  const auto problems_of = [](const Words& words) -> Words {
    try {
      parse(words);
    } catch (const ConfigError& error) {
      return error.problems();
    }
    return {};
  };
  const std::string files = "compare: expected two results files, OLD and NEW, got ";
  const std::string hint = " (hint: see bench_runner compare --help)";
  EXPECT_EQ(problems_of({}), Words{files + "0" + hint});
  EXPECT_EQ(problems_of({"a"}), Words{files + "1" + hint});
  EXPECT_EQ(problems_of({"a", "b", "c"}), Words{files + "3" + hint});
  EXPECT_EQ(problems_of({"a", "b", "--treshold", "1"}),
            Words{"--treshold: expected a known option, got an unknown one (hint: did you mean "
                  "\"--threshold\"?)"});
  for (const std::string& bad : Words{"-1", "nan", "inf", "5%", "", "1e9", "five"})
    EXPECT_EQ(problems_of({"a", "b", "--threshold=" + bad}).size(), 1U) << bad;
  EXPECT_EQ(problems_of({"a", "b", "--threshold", "x", "-o", "xml"}),
            (Words{"--threshold: expected percent in [0, 1000], got \"x\"",
                   "-o: expected one of table, md, csv, json, got \"xml\""}));
}

}  // namespace
}  // namespace kvfuse::bench
