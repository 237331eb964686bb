// The emulator itself: what it runs, what it hides and what it must catch.
#include <gtest/gtest.h>

#include <functional>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "emulation_check.h"
#include "kernels/cuda/device/block.h"
#include "kernels/cuda/device/launch.h"
#include "kernels/cuda/device/memory.h"
#include "kernels/cuda/device/warp.h"

namespace kvfuse::cuda {
namespace {

using emulation::Body;
using emulation::expect_failure;
using emulation::expect_runs;
using emulation::kThreads;
using emulation::last_error;
using emulation::run_grid;
using emulation::set_options;

int thread() { return static_cast<int>(threadIdx.x); }

std::string here(int line) { return "emulation_test.cpp:" + std::to_string(line); }

// Whether `finds_mistake(seed)` holds for one seed at least of any three in a row.
void expect_caught(const std::function<bool()>& finds_mistake) {
  for (std::uint64_t first = 0; first < 20; ++first) {
    bool caught = false;
    for (std::uint64_t seed = first; seed < first + 3; ++seed) {
      set_options({seed});
      caught = finds_mistake() || caught;
    }
    EXPECT_TRUE(caught) << "seeds from " << first;
  }
}

void expect_never(const std::function<bool()>& finds_mistake) {
  for (std::uint64_t seed = 0; seed < 30; ++seed) {
    set_options({seed});
    EXPECT_FALSE(finds_mistake()) << "seed " << seed << " " << last_error();
  }
}

// ---- Launches.

struct FillParams {
  int* out;
  int value;
};

KVFUSE_KERNEL void KVFUSE_LAUNCH_BOUNDS(64, 1) fill_kernel(KVFUSE_GRID_CONSTANT FillParams p) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  p.out[block * blockDim.x + threadIdx.x] += p.value;
}

TEST(Launch, RunsEveryThreadOfEveryBlockOnce) {
  std::vector<int> out(3 * 2 * 4 * 64);
  const LaunchShape shape{.grid = dim3(3, 2, 4), .threads = 64, .shared_bytes = 0};
  ASSERT_EQ(launch(fill_kernel, shape, nullptr, FillParams{out.data(), 5}), cudaSuccess);
  EXPECT_EQ(out, std::vector<int>(out.size(), 5));
}

TEST(Launch, RefusesShapesOutsideTheLimits) {
  const auto run = [](dim3 grid, unsigned threads, std::size_t bytes) {
    return run_grid(grid, threads, bytes, [] {});
  };
  EXPECT_EQ(run(dim3(0), 32, 0), cudaErrorInvalidConfiguration);
  EXPECT_NE(last_error().find("outside the limits"), std::string::npos);
  EXPECT_EQ(run(dim3(1, 65536), 32, 0), cudaErrorInvalidConfiguration);
  EXPECT_EQ(run(dim3(1, 1, 65536), 32, 0), cudaErrorInvalidConfiguration);
  EXPECT_EQ(run(dim3(1, 0), 32, 0), cudaErrorInvalidConfiguration);
  EXPECT_EQ(run(dim3(1), 0, 0), cudaErrorInvalidConfiguration);
  EXPECT_EQ(run(dim3(1), 48, 0), cudaErrorInvalidConfiguration);
  EXPECT_EQ(run(dim3(1), 1056, 0), cudaErrorInvalidConfiguration);
  EXPECT_EQ(run(dim3(1), 32, 227 * 1024 + 1), cudaErrorInvalidConfiguration);
  EXPECT_EQ(run(dim3(1), 1024, 227 * 1024), cudaSuccess);
  EXPECT_EQ(last_error(), "");
}

std::vector<unsigned> block_order(std::uint64_t seed) {
  std::vector<unsigned> order;
  set_options({seed});
  expect_runs(20, 32, 0, [&] {
    if (threadIdx.x == 0) order.push_back(blockIdx.x);
  });
  return order;
}

TEST(Launch, RunsBlocksInRandomOrder) {
  const std::vector<unsigned> order = block_order(1);
  EXPECT_EQ(std::set<unsigned>(order.begin(), order.end()).size(), 20U);
  EXPECT_EQ(block_order(1), block_order(1));
  EXPECT_NE(block_order(1), block_order(2));
}

std::vector<int> thread_order(std::uint64_t seed) {
  alignas(16) static const uint4 data{};
  std::vector<int> order;
  set_options({seed});
  expect_runs(4, kThreads, 0, [&] {
    for (int i = 0; i < 4; ++i) {
      load16(&data);
      order.push_back(thread());
      warp_sync();
      block_sync();
    }
  });
  return order;
}

TEST(Launch, IsDeterminedByTheSeed) {
  EXPECT_EQ(thread_order(7), thread_order(7));
  EXPECT_NE(thread_order(7), thread_order(8));
  EXPECT_NE(thread_order(7), thread_order(10));  // the same three orders, other draws
}

// ---- The block.

TEST(Block, SharedMemoryIsPoisonedBeforeEveryBlock) {
  struct Shared {
    std::uint32_t words[100];
  };
  int clean = 0;
  expect_runs(5, 32, sizeof(Shared), [&] {
    Shared& s = block_shared<Shared>();
    if (threadIdx.x == 0)
      for (std::uint32_t& word : s.words) clean += std::exchange(word, 0U) != 0xffffffffU;
  });
  EXPECT_EQ(clean, 0);
}

TEST(Block, SharedMemoryMustHaveBeenAskedFor) {
  struct Shared {
    float values[65];
  };
  expect_failure([] { block_shared<Shared>().values[0] = 1; }, 64 * sizeof(float),
                 {"needs 260 bytes", "256"});
}

TEST(Block, SyncOrSeesOneVote) {
  for (int voter = -1; voter < static_cast<int>(kThreads); voter += 43) {
    int yes = 0;
    expect_runs(1, kThreads, 0, [&] {
      for (int round = 0; round < 3; ++round) yes += block_sync_or(round == 1 && thread() == voter);
    });
    EXPECT_EQ(yes, voter < 0 ? 0 : static_cast<int>(kThreads));
  }
}

TEST(Block, ThreadsMayEndEarlyWithoutBarriers) {
  int ended = 0;
  expect_runs(1, kThreads, 0, [&] {
    if (thread() % 3 == 0) return;
    ++ended;
  });
  EXPECT_EQ(ended, 85);
}

// ---- Missing barriers.

struct Row {
  int values[kThreads];
};

// Thread `reader` reads what thread `writer` wrote; true: it did not see it.
bool misses_write(bool with_sync, int writer, int reader) {
  bool missed = false;
  expect_runs(1, kThreads, sizeof(Row), [&] {
    Row& s = block_shared<Row>();
    if (thread() == writer) s.values[writer] = 5;
    if (with_sync) block_sync();
    if (thread() == reader) missed = s.values[writer] != 5;
  });
  return missed;
}

TEST(MissingBarrier, IsSeenBetweenAnyTwoWarps) {
  for (const int writer : {0, 40, 127})
    for (const int reader : {3, 70, 100}) {
      expect_never([&] { return misses_write(true, writer, reader); });
      if (writer / 32 != reader / 32) expect_caught([&] { return misses_write(false, writer, reader); });
    }
}

// Each round writes a row and reads it back from the next warp; the second barrier of a round keeps the fast
// warps from overwriting what the slow ones still read.
bool misses_second_sync(bool with_sync) {
  bool missed = false;
  expect_runs(1, kThreads, sizeof(Row), [&] {
    Row& s = block_shared<Row>();
    for (int round = 0; round < 3; ++round) {
      s.values[thread()] = round;
      block_sync();
      missed = missed || s.values[(thread() + 32) % static_cast<int>(kThreads)] != round;
      if (with_sync) block_sync();
    }
  });
  return missed;
}

TEST(MissingBarrier, IsSeenBeforeAnOverwrite) {
  expect_never([] { return misses_second_sync(true); });
  expect_caught([] { return misses_second_sync(false); });
}

bool misses_warp_sync(bool with_sync, int distance) {
  bool missed = false;
  expect_runs(1, kThreads, sizeof(Row), [&] {
    Row& s = block_shared<Row>();
    s.values[thread()] = 1;
    if (with_sync) warp_sync();
    if (lane_id() == 16) missed = missed || s.values[thread() + distance] != 1;
  });
  return missed;
}

TEST(MissingBarrier, IsSeenWithinAWarp) {
  for (const int distance : {-16, -1, 1, 15}) {
    expect_never([&] { return misses_warp_sync(true, distance); });
    expect_caught([&] { return misses_warp_sync(false, distance); });
  }
}

// ---- Divergence. `line` is that of each body's first statement.

TEST(Divergence, LaneEndsInsteadOfShuffling) {
  const int line = __LINE__ + 2;
  const Body body = [] {
    if (thread() != 37) shuffle_xor(1.0F, 1);
  };
  expect_failure(body, 0, {"Divergence", "shuffle_xor", here(line)});
}

TEST(Divergence, LanesShuffleAtDifferentLines) {
  const int line = __LINE__ + 2;
  const Body body = [] {
    if (lane_id() < 7) shuffle(1, 0);
    if (lane_id() >= 7) ballot(true);
  };
  expect_failure(body, 0, {"Divergence", "shuffle", here(line), "ballot", here(line + 1)});
}

TEST(Divergence, LanesShuffleNotEquallyOften) {
  const Body body = [] {
    for (int i = 0; i < (lane_id() == 5 ? 2 : 3); ++i) group_sum<4>(1.0F);
  };
  expect_failure(body, 0, {"Divergence", "shuffle_xor"});
}

TEST(Divergence, WarpEndsInsteadOfTheBarrier) {
  const int line = __LINE__ + 2;
  const Body body = [] {
    if (warp_id() != 2) block_sync();
  };
  expect_failure(body, 0, {"Divergence", "block_sync", here(line)});
}

TEST(Divergence, WarpsWaitAtDifferentBarriers) {
  const int line = __LINE__ + 2;
  const Body body = [] {
    if (warp_id() == 1) block_sync();
    if (warp_id() != 1) block_sync();
  };
  expect_failure(body, 0, {"Divergence", here(line), here(line + 1)});
}

TEST(Divergence, HalfAWarpShufflesWhileTheRestIsAtTheBarrier) {
  const Body body = [] {
    if (lane_id() < 16) warp_sum(1.0F);
    block_sync();
  };
  expect_failure(body, 0, {"Divergence", "shuffle_xor", "block_sync"});
}

TEST(Failure, UnwindsEveryThread) {
  struct Counted {
    explicit Counted(int& count_) : count(count_) { ++count; }
    ~Counted() { --count; }
    int& count;
  };
  for (std::uint64_t seed = 0; seed < 9; ++seed) {
    set_options({seed});
    int alive = 0;
    const std::vector<char> text(100, 'x');
    const Body body = [&] {
      const Counted counted(alive);
      const std::vector<char> copy = text;
      warp_sync();
      if (thread() == 77) return;
      block_sync();
    };
    EXPECT_EQ(run_grid(8, kThreads, 0, body), cudaErrorLaunchFailure);
    EXPECT_EQ(alive, 0);
  }
}

TEST(Failure, ReportsWhatTheKernelThrew) {
  const Body body = [] {
    warp_sync();
    if (thread() == 50) throw std::runtime_error("too bad");
    block_sync();
  };
  expect_failure(body, 0, {"too bad", "thread 50"});
}

}  // namespace
}  // namespace kvfuse::cuda
