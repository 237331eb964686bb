// Memory as the emulator shows it: asynchronous copies, checked accesses, counters, recorded loads.
#include <gtest/gtest.h>

#include <array>
#include <string>
#include <vector>

#include "emulation_check.h"
#include "kernels/cuda/device/block.h"
#include "kernels/cuda/device/grid.h"
#include "kernels/cuda/device/memory.h"
#include "kernels/cuda/device/mma.h"

namespace kvfuse::cuda {
namespace {

using emulation::Body;
using emulation::expect_failure;
using emulation::expect_runs;
using emulation::kThreads;
using emulation::set_options;

int thread() { return static_cast<int>(threadIdx.x); }

std::string here(int line) { return "emulation_memory_test.cpp:" + std::to_string(line); }

struct Tile {
  uint4 rows[kThreads];
};

std::vector<uint4> numbered(unsigned count) {
  std::vector<uint4> rows(count);
  for (unsigned i = 0; i < count; ++i) rows[i] = {i, i + 1, i + 2, i + 3};
  return rows;
}

TEST(AsyncCopy, LandsAtTheWaitOfItsGroup) {
  const std::vector<uint4> rows = numbered(kThreads);
  int mistakes = 0;
  expect_runs(2, 32, sizeof(Tile), [&] {
    Tile& s = block_shared<Tile>();
    const int i = thread();
    const auto expect = [&](unsigned a, unsigned b, unsigned c) {
      mistakes += s.rows[i].x != a || s.rows[i + 32].x != b || s.rows[i + 64].x != c;
    };
    const unsigned first = threadIdx.x;
    constexpr unsigned kNothing = 0xffffffffU;
    s.rows[i].x = s.rows[i + 32].x = s.rows[i + 64].x = 0;
    copy16_async(&s.rows[i], &rows[first]);
    copy_async_commit();
    copy16_async(&s.rows[i + 32], &rows[first + 32]);
    copy_async_commit();
    copy16_async(&s.rows[i + 64], &rows[first + 64]);
    expect(kNothing, kNothing, kNothing);
    copy_async_wait<2>();
    expect(kNothing, kNothing, kNothing);
    copy_async_wait<1>();
    expect(first, kNothing, kNothing);
    copy_async_wait<0>();
    expect(first, first + 32, kNothing);  // nobody committed the third
    copy_async_commit();
    copy_async_wait<0>();
    expect(first, first + 32, first + 64);
  });
  EXPECT_EQ(mistakes, 0);
}

TEST(AsyncCopy, FillsWithZerosWithoutReading) {
  std::vector<unsigned> seen;
  expect_runs(1, 32, sizeof(Tile), [&] {
    Tile& s = block_shared<Tile>();
    copy16_async_or_zero(&s.rows[threadIdx.x], nullptr, false);
    copy_async_commit();
    copy_async_wait<0>();
    seen.push_back(s.rows[threadIdx.x].w);
  });
  EXPECT_EQ(seen, std::vector<unsigned>(32, 0));
}

TEST(AsyncCopy, IsForgottenAtTheEndOfABlock) {
  const std::vector<uint4> rows = numbered(32);
  int issued = 0;
  int waited = 0;
  int landed = 0;
  expect_runs(2, 32, sizeof(Tile), [&] {
    Tile& s = block_shared<Tile>();
    if (issued < 32) {  // the first block
      copy16_async(&s.rows[threadIdx.x], &rows[threadIdx.x]);
      ++issued;
    } else {
      copy_async_commit();
      copy_async_wait<0>();
      landed += s.rows[threadIdx.x].x != 0xffffffffU;
      ++waited;
    }
  });
  EXPECT_EQ(waited, 32);
  EXPECT_EQ(landed, 0);
}

TEST(Access, MustBeAligned) {
  const std::vector<uint4> rows = numbered(4);
  std::vector<uint4> out(4);
  const auto* bytes = reinterpret_cast<const std::byte*>(rows.data());
  auto* out_bytes = reinterpret_cast<std::byte*>(out.data());
  const auto tile = [](int offset) { return reinterpret_cast<std::byte*>(&block_shared<Tile>()) + offset; };
  std::uint32_t r[4];
  const int line = __LINE__ + 1;
  const Body load = [&] { load16(bytes + 8); };
  const Body load_readonly = [&] { load16_readonly(bytes + 4); };
  const Body store = [&] { store16(out_bytes + 1, {}); };
  const Body copy_to = [&] { copy16_async(tile(8), bytes); };
  const Body copy_from = [&] { copy16_async(tile(0), bytes + 8); };
  const Body matrices = [&] { ldmatrix_x4(r, tile(2)); };
  const std::string name = "Misaligned";
  expect_failure(load, 0, {name, "load16", here(line)});
  expect_failure(load_readonly, 0, {name, "load16_readonly", here(line + 1)});
  expect_failure(store, 0, {name, "store16", here(line + 2)});
  expect_failure(copy_to, sizeof(Tile), {name, "copy16_async", here(line + 3)});
  expect_failure(copy_from, sizeof(Tile), {name, "copy16_async", here(line + 4)});
  expect_failure(matrices, sizeof(Tile), {name, "ldmatrix_x4", here(line + 5)});
}

TEST(Access, MustBeToTheRightMemory) {
  std::vector<uint4> rows = numbered(4);
  const std::string name = "Wrong memory";
  const auto tile = [](int row) { return block_shared<Tile>().rows + row; };
  expect_failure([&] { load16(tile(0)); }, sizeof(Tile), {name, "load16"});
  expect_failure([&] { copy16_async(rows.data(), rows.data()); }, sizeof(Tile), {name, "copy16_async"});
  expect_failure([&] { copy16_async(tile(128), rows.data()); }, sizeof(Tile), {name, "copy16_async"});
  std::uint32_t r[2];
  expect_failure([&] { ldmatrix_x2_trans(r, rows.data()); }, sizeof(Tile), {name, "ldmatrix_x2_trans"});
}

TEST(Access, StoresSixteenBytes) {
  std::vector<uint4> out(32);
  expect_runs(1, 32, 0, [&] { store16(&out[threadIdx.x], {threadIdx.x, 1, 2, 3}); });
  for (unsigned i = 0; i < 32; ++i) EXPECT_EQ(out[i].x, i);
}

TEST(Arrive, WrapsAndNamesTheLastBlock) {
  int counter = 0;
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    set_options({seed});
    std::vector<int> before;
    unsigned last = 99;
    expect_runs(5, 64, sizeof(int), [&] {
      if (threadIdx.x != 0) return;
      before.push_back(arrive(&counter, 5));
      if (before.back() == 4) last = blockIdx.x;
    });
    EXPECT_EQ(before, (std::vector<int>{0, 1, 2, 3, 4}));
    EXPECT_LT(last, 5U);
    EXPECT_EQ(counter, 0);
  }
}

// ---- Load counts.

TEST(LoadCounts, GroupTheLanesOfAWarp) {
  struct Want {
    int bytes, lanes, count;
  };
  constexpr std::array<Want, 3> kWant = {{{512, 32, 12}, {16, 4, 4}, {64, 32, 4}}};  // two warps, two blocks
  const std::vector<uint4> rows = numbered(4 * 128);
  emulation::reset_load_counts();
  const int line = __LINE__ + 3;
  expect_runs(2, 64, 0, [&] {
    const uint4* const own = &rows[threadIdx.x];
    for (int i = 0; i < 3; ++i) load16(own + 64 * i);
    if (lane_id() < 4) load16_readonly(&rows[0] + 2 * lane_id());
    load16_readonly(&rows[0] + lane_id() / 8);
  });
  const emulation::LoadCounts counts = emulation::load_counts();
  std::array<int, 3> seen{};
  for (const emulation::WarpLoad& load : counts.loads) {
    const auto kind = static_cast<std::size_t>(load.line - line);
    ASSERT_LT(kind, kWant.size()) << load.line;
    ++seen[kind];
    EXPECT_EQ(load.contiguous_bytes, kWant[kind].bytes);
    EXPECT_EQ(load.lanes, kWant[kind].lanes);
    EXPECT_NE(std::string(load.file).find("emulation_memory_test.cpp"), std::string::npos);
    const auto offset = load.first - reinterpret_cast<std::uintptr_t>(rows.data());
    EXPECT_EQ(offset % 1024, kind == 0 ? load.warp * 512U : 0U);
  }
  std::int64_t bytes = 0;
  for (std::size_t kind = 0; kind < kWant.size(); ++kind) {
    EXPECT_EQ(seen[kind], kWant[kind].count);
    bytes += 16 * kWant[kind].lanes * kWant[kind].count;
  }
  EXPECT_EQ(counts.bytes, bytes);
}

TEST(LoadCounts, AreOffUnlessAskedFor) {
  const std::vector<uint4> rows = numbered(1);
  emulation::reset_load_counts(false);
  expect_runs(1, 32, 0, [&] { load16(rows.data()); });
  EXPECT_TRUE(emulation::load_counts().loads.empty());
  EXPECT_EQ(emulation::load_counts().bytes, 0);
}

}  // namespace
}  // namespace kvfuse::cuda
