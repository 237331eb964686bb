// The twins of the tensor-core instructions, each against a plain reading of the PTX ISA.
#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <random>

#include "emulation_check.h"
#include "kernels/cuda/device/block.h"
#include "kernels/cuda/device/mma.h"
#include "kernels/cuda/device/number.h"
#include "kernels/cuda/device/warp.h"

namespace kvfuse::cuda {
namespace {

using emulation::expect_runs;

// Row and column of element i of a lane's fragment are written as the PTX ISA gives them.

template <class T, int kRows, int kColumns>
std::array<std::array<float, kColumns>, kRows> random_matrix(unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::array<std::array<float, kColumns>, kRows> matrix;
  for (auto& row : matrix)
    for (float& x : row) x = to_f32(from_f32<T>(normal(random)));
  return matrix;
}

template <class A, class B, class C>
void expect_product(const A& a, const B& b, const C& c, const C& got) {
  for (std::size_t row = 0; row < 16; ++row) {
    for (std::size_t column = 0; column < 8; ++column) {
      double want = c[row][column];
      double size = std::fabs(want);
      for (std::size_t k = 0; k < b.size(); ++k) {
        want += double{a[row][k]} * b[k][column];
        size += std::fabs(double{a[row][k]} * b[k][column]);
      }
      EXPECT_NEAR(got[row][column], want, 1e-6 * size) << row << " " << column;
    }
  }
}

// f(element, row, column) for the four elements of a lane's accumulator.
template <class F>
void each_accumulator(unsigned lane, const F& f) {
  for (unsigned i = 0; i < 4; ++i) f(i, i < 2 ? lane >> 2 : (lane >> 2) + 8, (lane % 4) * 2 + (i & 1));
}

template <class T>
void check_mma_16bit() {
  const auto a = random_matrix<T, 16, 16>(1);
  const auto b = random_matrix<T, 16, 8>(2);
  const auto c = random_matrix<float, 16, 8>(3);
  auto got = c;
  expect_runs(1, 32, 0, [&] {
    const unsigned lane = threadIdx.x;
    const unsigned group = lane >> 2;
    const unsigned in_group = lane % 4;
    std::array<float, 8> a_elements;
    for (unsigned i = 0; i < 8; ++i) {
      const unsigned row = i < 2 || (i >= 4 && i < 6) ? group : group + 8;
      const unsigned column = in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0);
      a_elements[i] = a[row][column];
    }
    std::array<float, 4> b_elements;
    for (unsigned i = 0; i < 4; ++i) b_elements[i] = b[in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0)][group];
    std::uint32_t a_registers[4];
    std::uint32_t b_registers[2];
    for (unsigned i = 0; i < 4; ++i) a_registers[i] = pack2<T>(a_elements[2 * i], a_elements[2 * i + 1]);
    for (unsigned i = 0; i < 2; ++i) b_registers[i] = pack2<T>(b_elements[2 * i], b_elements[2 * i + 1]);
    float sums[4];
    each_accumulator(lane, [&](unsigned i, unsigned row, unsigned column) { sums[i] = c[row][column]; });
    mma_16x8x16(sums, a_registers, b_registers, T{});
    each_accumulator(lane, [&](unsigned i, unsigned row, unsigned column) { got[row][column] = sums[i]; });
  });
  expect_product(a, b, c, got);
}

TEST(Mma, MultipliesHalves) { check_mma_16bit<Float16>(); }
TEST(Mma, MultipliesBrainFloats) { check_mma_16bit<BFloat16>(); }

TEST(Mma, MultipliesTf32AndIgnoresLowBits) {
  auto a = random_matrix<float, 16, 8>(4);
  auto b = random_matrix<float, 8, 8>(5);
  for (auto& row : a)
    for (float& x : row) x = round_to_tf32(x);
  for (auto& row : b)
    for (float& x : row) x = round_to_tf32(x);
  const auto c = random_matrix<float, 16, 8>(6);
  auto got = c;
  expect_runs(1, 32, 0, [&] {
    const unsigned lane = threadIdx.x;
    const unsigned group = lane >> 2;
    const unsigned in_group = lane % 4;
    std::uint32_t a_registers[4];
    std::uint32_t b_registers[2];
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned row = i == 0 || i == 2 ? group : group + 8;
      const unsigned column = i < 2 ? in_group : in_group + 4;
      a_registers[i] = std::bit_cast<std::uint32_t>(a[row][column]) | 0x1fffU;
    }
    for (unsigned i = 0; i < 2; ++i)
      b_registers[i] = std::bit_cast<std::uint32_t>(b[i == 0 ? in_group : in_group + 4][group]) | 0x1fffU;
    float sums[4];
    each_accumulator(lane, [&](unsigned i, unsigned row, unsigned column) { sums[i] = c[row][column]; });
    mma_16x8x8_tf32(sums, a_registers, b_registers);
    each_accumulator(lane, [&](unsigned i, unsigned row, unsigned column) { got[row][column] = sums[i]; });
  });
  expect_product(a, b, c, got);
}

TEST(Ldmatrix, HandsOutRowsAndColumns) {
  struct Shared {
    alignas(16) std::uint16_t rows[32][8];  // four matrices
  };
  const auto value = [](unsigned matrix, unsigned row, unsigned column) {
    return matrix * 64 + row * 8 + column;
  };
  int mistakes = 0;
  expect_runs(1, 32, sizeof(Shared), [&] {
    Shared& s = block_shared<Shared>();
    const unsigned lane = threadIdx.x;
    const unsigned stored = (lane * 5 + 3) % 32;  // rows lie in any order
    for (unsigned column = 0; column < 8; ++column)
      s.rows[stored][column] = static_cast<std::uint16_t>(value(lane / 8, lane % 8, column));
    warp_sync();
    std::uint32_t plain[4];
    std::uint32_t transposed[4];
    std::uint32_t two[2];
    ldmatrix_x4(plain, s.rows[stored]);
    ldmatrix_x4_trans(transposed, s.rows[stored]);
    ldmatrix_x2_trans(two, lane < 16 ? s.rows[stored] : nullptr);
    for (unsigned m = 0; m < 4; ++m) {
      const unsigned row = lane / 4;
      const unsigned column = lane % 4 * 2;
      mistakes += plain[m] != (value(m, row, column) | value(m, row, column + 1) << 16);
      mistakes += transposed[m] != (value(m, column, row) | value(m, column + 1, row) << 16);
      if (m < 2) mistakes += two[m] != transposed[m];
    }
  });
  EXPECT_EQ(mistakes, 0);
}

}  // namespace
}  // namespace kvfuse::cuda
