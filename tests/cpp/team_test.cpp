// Operations handed out to a team of threads.
#include "kernels/cpu/team.h"

#include <gtest/gtest.h>
#include <omp.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <stdexcept>
#include <thread>
#include <vector>

namespace kvfuse::cpu {
namespace {

class TeamTest : public testing::TestWithParam<int> {
 protected:
  void SetUp() override { omp_set_num_threads(GetParam()); }
  void TearDown() override { omp_set_num_threads(omp_get_num_procs()); }
};

// One thread is no team; some more are more than the machine has processors, and sleep when they wait.
INSTANTIATE_TEST_SUITE_P(Threads, TeamTest, testing::Values(1, 2, 5));

// Calls job(worker) on all workers, or on this thread if it conducts no team.
template <typename Job>
void run(const Job& job) {
  if (Team* team = Team::conducted())
    team->run(job);
  else
    job(0);
}

TEST_P(TeamTest, EveryWorkerRunsEachJobOnceBeforeTheNext) {
  const int threads = GetParam();
  std::vector<int> done(static_cast<std::size_t>(threads));
  Team::gather([&] {
    const Team* team = Team::conducted();
    EXPECT_EQ(team == nullptr ? 1 : team->workers(), threads);
    for (int job = 0; job < 1000; ++job) {
      run([&](int worker) { ++done[static_cast<std::size_t>(worker)]; });
      // No lock: the team is what orders its threads.
      EXPECT_EQ(done, std::vector<int>(static_cast<std::size_t>(threads), job + 1));
    }
  });
  EXPECT_EQ(Team::conducted(), nullptr);
}

TEST_P(TeamTest, WaitsForWhoIsLate) {
  const auto late = std::chrono::milliseconds(20);  // longer than a thread waits awake
  for (int slow = 0; slow < GetParam(); ++slow) {
    std::atomic<int> done = 0;
    Team::gather([&] {
      for (int job = 0; job < 2; ++job) {
        run([&](int worker) {
          if (worker == slow) std::this_thread::sleep_for(late);
          ++done;
        });
        EXPECT_EQ(done, (job + 1) * GetParam());
        std::this_thread::sleep_for(late);
      }
    });
  }
}

TEST_P(TeamTest, PartsWhenItsConductorThrows) {
  int done = 0;
  EXPECT_THROW(Team::gather([&] {
                 run([&](int worker) { done += worker == 0; });
                 throw std::runtime_error("no");
               }),
               std::runtime_error);
  EXPECT_EQ(done, 1);
  EXPECT_EQ(Team::conducted(), nullptr);
  Team::gather([&] { run([&](int worker) { done += worker == 0; }); });
  EXPECT_EQ(done, 2);
}

// A job is one thread's, and so is a conductor inside of somebody else's region.
TEST_P(TeamTest, NoTeamInsideOfAJobOrARegion) {
  int teams = 0;
  const auto count = [&] { teams += Team::conducted() != nullptr; };
  Team::gather([&] {
    run([&](int worker) {
      if (worker > 0) return;
      count();
      Team::gather(count);
    });
  });
#pragma omp parallel
#pragma omp single
  if (omp_in_parallel()) Team::gather(count);
  EXPECT_EQ(teams, 0);
}

}  // namespace
}  // namespace kvfuse::cpu
