// Rows of x times float weights in panels (weight_format.h): a vector of outputs for each input, which all
// rows in registers share. Weights are read once, in the order of memory.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/linear_products.h"
#include "kernels/cpu/row_groups.h"
#include "kernels/cpu/simd.h"
#include "kernels/linear.h"

namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE {

constexpr int kPanelWidth = static_cast<int>(kFloatPanelOutputs);
constexpr int kVectorsOfPanel = kPanelWidth / kLanes;
// Of x, side by side for each row of a group: a cache line.
constexpr std::int64_t kFloatPanelInputs = 16;
// Rows that registers hold the sums of, beside one panel, and beside kWidePanels.
constexpr int kMostFloatPanelRows = kLanes == 16 ? 16 : 6;
constexpr int kMostWidePanelRows = kLanes == 16 ? 14 : 6;
constexpr int kWidePanels = kLanes == 16 ? 2 : 1;

// Where one pass is not enough, wide panels have fewer loads for their products.
inline RowGroups float_panel_groups(std::int64_t rows) {
  return {rows, rows <= kMostFloatPanelRows ? kMostFloatPanelRows : kMostWidePanelRows};
}

// The rows of x, kFloatPanelInputs of each row of a group in turn: a product takes an input of every row from
// lines that follow upon one another.
struct FloatPanelInputs {
  RowGroups groups;
  std::int64_t blocks = 0;
  float* values = nullptr;      // [group][block][row of the group][kFloatPanelInputs]
  float* last_panel = nullptr;  // room for one that is less wide, as wide as the others

  // Of a group, from input `first` on, a multiple of kFloatPanelInputs.
  float* at(std::int64_t group, std::int64_t first) const {
    return values + groups.begin(group) * blocks * kFloatPanelInputs + first * groups.size(group);
  }
  // `x` goes on with zeros to the end of its last block.
  void take(const float* x, std::int64_t row) const {
    const std::int64_t group = groups.group_of(row), step = groups.size(group) * kFloatPanelInputs;
    float* to = at(group, 0) + (row - groups.begin(group)) * kFloatPanelInputs;
    for (std::int64_t block = 0; block < blocks; ++block)
      std::copy_n(x + block * kFloatPanelInputs, kFloatPanelInputs, to + block * step);
  }
};

// Sums of products, [row][panel][kPanelWidth].
struct PanelSums {
  float* data;
  std::int64_t row_stride, panel_stride;
};

// How far ahead weights are fetched where products take longer than reading: a stream that is followed by
// computing is not read far enough ahead by the hardware alone.
constexpr std::int64_t kFetchAheadBytes = 8 << 10;

// sums += the products of `in` inputs of kRows rows with kPanels panels, `apart` elements from one to the
// next; `begins`: or = them. A product is one chain of sums, whatever the number of rows and panels.
template <int kRows, int kPanels, bool kFetches, typename W>
[[gnu::noinline]] void add_panel_products(const W* weight, std::int64_t apart, const float* x,
                                          std::int64_t in, bool begins, const PanelSums& sums) {
  constexpr int kVectors = kPanels * kVectorsOfPanel;
  const auto sum_at = [&](int row, int v) {
    return sums.data + row * sums.row_stride + v / kVectorsOfPanel * sums.panel_stride +
           v % kVectorsOfPanel * kLanes;
  };
  Vec chains[kRows][kVectors];
  unrolled<kRows>([&](auto row) {
    unrolled<kVectors>([&](auto v) { chains[row][v] = begins ? zero() : load(sum_at(row, v)); });
  });
  for (std::int64_t i = 0; i < in; i += kFloatPanelInputs, x += kRows * kFloatPanelInputs) {
    const std::int64_t steps = std::min(kFloatPanelInputs, in - i);
    for (std::int64_t j = 0; j < steps; ++j, weight += kPanelWidth) {
      Vec w[kVectors];
      unrolled<kVectors>([&](auto v) {
        const W* part = weight + v / kVectorsOfPanel * apart + v % kVectorsOfPanel * kLanes;
        if constexpr (kFetches && v % kVectorsOfPanel == 0)
          __builtin_prefetch(reinterpret_cast<const char*>(part) + kFetchAheadBytes);
        w[v] = load(part);
      });
      unrolled<kRows>([&](auto row) {
        const Vec value = splat(x[row * kFloatPanelInputs + j]);
        unrolled<kVectors>([&](auto v) { chains[row][v] = fma(w[v], value, chains[row][v]); });
      });
    }
  }
  unrolled<kRows>(
      [&](auto row) { unrolled<kVectors>([&](auto v) { store(sum_at(row, v), chains[row][v]); }); });
}

}  // namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE
