// The judgement of two sets of times: by hand and by SciPy, and over many runs of simulated machines, where
// the same program compared with itself is called the same and real differences are found.
#include "benchmark/verdict.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <stdexcept>

#include "tests/cpp/compare_fixture.h"

namespace kvfuse::bench {
namespace {

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

}  // namespace
}  // namespace kvfuse::bench
