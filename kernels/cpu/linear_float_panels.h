// Rows of x times float weights in panels (weight_format.h): a vector of outputs for each input, which all
// rows in registers share. Weights are read once, in the order of memory; many rows pack weights in rows
// first.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/linear_products.h"
#include "kernels/cpu/row_groups.h"
#include "kernels/cpu/simd.h"
#include "kernels/linear.h"

namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE {

constexpr int kVectorsOfPanel = static_cast<int>(kPanelOutputs) / kLanes;
// Of x, side by side for each row of a group: a cache line.
constexpr std::int64_t kFloatPanelInputs = 16;
// Rows that registers hold the sums of, beside one panel, and beside kWidePanels.
constexpr int kMostPanelRows = kLanes == 16 ? 16 : 6;
constexpr int kMostWidePanelRows = kLanes == 16 ? 14 : 6;
constexpr int kWidePanels = kLanes == 16 ? 2 : 1;

// Where one pass is not enough, wide panels have fewer loads for their products.
inline RowGroups panel_groups(std::int64_t rows) {
  return {rows, rows <= kMostPanelRows ? kMostPanelRows : kMostWidePanelRows};
}

// Rows of x beside weights in rows, more of which pack the weights: fewer are faster as they lie.
constexpr int kMostRowsUnpacked = 12;
inline bool goes_by_float_panels(const LinearParams& p) {
  return p.weight_format == WeightFormat::kFloatPanels ||
         (p.weight_format == WeightFormat::kFloat && p.rows > kMostRowsUnpacked);
}

// Panels that a task packs, of so many bytes an output.
constexpr std::int64_t panels_to_pack(std::int64_t output_bytes) {
  return std::clamp<std::int64_t>(kTaskBytes / (kPanelOutputs * output_bytes), kWidePanels, 4);
}

// The rows of x, kFloatPanelInputs of each row of a group in turn: a product takes an input of every row from
// lines that follow upon one another.
struct FloatPanelInputs {
  RowGroups groups;
  std::int64_t blocks = 0;
  float* values = nullptr;  // [group][block][row of the group][kFloatPanelInputs]

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

// Sums of products, [row][panel][kPanelOutputs].
template <typename Sum>
struct PanelSums {
  Sum* data;
  std::int64_t row_stride, panel_stride;

  // Of a vector of outputs, counted through all panels.
  Sum* at(std::int64_t row, int vector) const {
    return data + row * row_stride + vector / kVectorsOfPanel * panel_stride +
           vector % kVectorsOfPanel * kLanes;
  }
};

// What products fetch meanwhile: beside each input a line of each of their panels. Streams that computing
// follows are not read far enough ahead by the hardware alone.
enum class Fetch {
  kNothing,
  kSoon,   // into the first-level cache
  kLater,  // into the second
};

// sums += the products of `in` inputs of kRows rows with kPanels panels, `apart` elements from one to the
// next; `begins`: or = them. A product is one chain of sums, whatever the number of rows and panels. What
// lies at `fetched` as the weights do at `weight` is fetched.
template <int kRows, int kPanels, Fetch kFetch, typename W>
[[gnu::noinline]] void add_panel_products(const W* weight, std::int64_t apart, const char* fetched,
                                          const float* x, std::int64_t in, bool begins,
                                          const PanelSums<float>& sums) {
  constexpr auto kElement = static_cast<std::int64_t>(sizeof(W));
  constexpr int kVectors = kPanels * kVectorsOfPanel;
  Vec chains[kRows][kVectors];
  unrolled<kRows>([&](auto row) {
    unrolled<kVectors>([&](auto v) { chains[row][v] = begins ? zero() : load(sums.at(row, v)); });
  });
  for (std::int64_t i = 0; i < in; i += kFloatPanelInputs, x += kRows * kFloatPanelInputs) {
    const std::int64_t steps = std::min(kFloatPanelInputs, in - i);
    for (std::int64_t j = 0; j < steps; ++j, weight += kPanelOutputs) {
      Vec w[kVectors];
      unrolled<kVectors>([&](auto v) {
        constexpr int kPanel = v / kVectorsOfPanel, kPart = v % kVectorsOfPanel;
        // Beside a load: GCC 12 leaves out a call that does nothing but prefetch.
        if constexpr (kFetch != Fetch::kNothing && kPart == 0)
          __builtin_prefetch(fetched + kPanel * apart * kElement, 0, kFetch == Fetch::kSoon ? 3 : 2);
        w[v] = load(weight + kPanel * apart + kPart * kLanes);
      });
      if constexpr (kFetch != Fetch::kNothing) fetched += kPanelOutputs * kElement;
      unrolled<kRows>([&](auto row) {
        const Vec value = splat(x[row * kFloatPanelInputs + j]);
        unrolled<kVectors>([&](auto v) { chains[row][v] = fma(w[v], value, chains[row][v]); });
      });
    }
  }
  unrolled<kRows>(
      [&](auto row) { unrolled<kVectors>([&](auto v) { store(sums.at(row, v), chains[row][v]); }); });
}

// `count` rows of a weight (kPanelOutputs at most) as a panel, which zeros fill up.
template <typename W>
void pack_rows(const W* rows, std::int64_t in, std::int64_t count, float* panel) {
  const std::int64_t whole = in / kLanes * kLanes;
  for (std::int64_t i = 0; i < whole; i += kLanes)
    for (int first = 0; first < kPanelOutputs; first += kLanes) {
      Vec block[kLanes];
      for (int o = 0; o < kLanes; ++o)
        block[o] = first + o < count ? load(rows + (first + o) * in + i) : zero();
      transpose(block);
      for (int j = 0; j < kLanes; ++j) store(panel + (i + j) * kPanelOutputs + first, block[j]);
    }
  for (std::int64_t i = whole; i < in; ++i)
    for (int o = 0; o < kPanelOutputs; ++o)
      panel[i * kPanelOutputs + o] = o < count ? to_float(rows[o * in + i]) : 0.0F;
}

}  // namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE
