// Rows of x times 4-bit weights in panels (weight_format.h): as beside int8 codes (linear_byte_panels.h), but
// a group of inputs has scales of its own, and so ends the sums of integers.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/linear_byte_panels.h"
#include "kernels/cpu/linear_float_panels.h"
#include "kernels/cpu/linear_rounding.h"

namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE {

// Rows that registers hold the sums of, integers and floats, beside one panel.
constexpr int kMostInt4PanelRows = 12;

inline bool goes_by_int4_panels(const LinearParams& p) {
  return kHasByteProducts && p.weight_format == WeightFormat::kInt4Panels;
}

// Whether they do by tiles (linear_int4_tiles.h). Fewer rows are faster by vectors.
constexpr int kLeastInt4TileRows = 9;
inline bool goes_by_int4_tiles(const LinearParams& p) {
  return kHasTiles && goes_by_int4_panels(p) && p.rows >= kLeastInt4TileRows;
}

// As the products take them together.
inline RowGroups int4_panel_groups(const LinearParams& p) {
  return {p.rows, goes_by_int4_tiles(p) ? kMostTileRows : kMostInt4PanelRows};
}

// Rows of x of a group beside them: x = code * scale.
struct Int4Group {
  const std::int8_t* codes;   // [group of inputs][row of the group][kInt4Group]
  const float* scale;         // [group of inputs][row of the group]
  const std::int32_t* start;  // the same: takes the 8 in each code of a weight off the products
};

// Those of all groups, one behind the other.
struct Int4PanelInputs {
  RowGroups groups;
  std::int64_t blocks = 0;  // groups of inputs
  std::int8_t* codes = nullptr;
  float* scale = nullptr;
  std::int32_t* start = nullptr;

  // Of a group, from input `first` on, a multiple of kInt4Group.
  Int4Group at(std::int64_t group, std::int64_t first) const {
    const std::int64_t block = groups.begin(group) * blocks + first / kInt4Group * groups.size(group);
    return {codes + block * kInt4Group, scale + block, start + block};
  }

  void take(const float* x, std::int64_t row) const {
    const std::int64_t group = groups.group_of(row), rows = groups.size(group);
    std::int64_t place = groups.begin(group) * blocks + row - groups.begin(group);
    for (std::int64_t b = 0; b < blocks; ++b, place += rows) {
      std::int8_t* to = codes + place * kInt4Group;
      scale[place] = round_group(x + b * kInt4Group, to);
      std::int32_t sum = 0;
      for (std::int64_t i = 0; i < kInt4Group; ++i) sum += to[i];
      start[place] = -8 * sum;
    }
  }
};

// Where weights in panels lie; moves by weights, whole groups of them.
struct Int4Panels {
  const std::uint8_t* codes;
  const Float16* scales;

  Int4Panels operator+(std::int64_t weights) const {
    return {codes + weights / 2, scales + weights / kInt4Group};
  }
};

#if defined(__AVX512VNNI__)

// As for floats (linear_float_panels.h); what lies at `fetched` as the codes do at `weight` is fetched. A
// product is one chain of sums over its groups, whatever the number of rows and panels.
template <int kRows, int kPanels, Fetch kFetch>
[[gnu::noinline]] void add_panel_products(Int4Panels weight, std::int64_t apart, const char* fetched,
                                          Int4Group x, std::int64_t in, bool begins,
                                          const PanelSums<float>& sums) {
  constexpr std::int64_t kGroupWeights = kInt4Group * kPanelOutputs;
  constexpr std::int64_t kVectorBytes = 64;
  constexpr int kVectors = kGroupWeights / 2 / kVectorBytes;
  Vec chains[kRows][kPanels];
  const auto each = [](auto&& f) __attribute__((always_inline)) {
    unrolled<kRows>([&](auto row) { unrolled<kPanels>([&](auto p) { f(row, p); }); });
  };
  const auto sum_at = [&](int row, int p) {
    return sums.data + row * sums.row_stride + p * sums.panel_stride;
  };
  each([&](auto row, auto p) { chains[row][p] = begins ? zero() : load(sum_at(row, p)); });
  for (std::int64_t i = 0; i < in; i += kInt4Group) {
    CodeSum products[kRows][kPanels];
    each([&](auto row, auto p) { products[row][p] = splat_sum(x.start[row]); });
    unrolled<kVectors>([&](auto v) {
      NibbleVec nibbles[kPanels];
      unrolled<kPanels>([&](auto p) {
        const std::int64_t at = p * apart / 2 + v * kVectorBytes;
        // Beside a load: GCC 12 leaves out a call that does nothing but prefetch.
        if constexpr (kFetch != Fetch::kNothing)
          __builtin_prefetch(fetched + at, 0, kFetch == Fetch::kSoon ? 3 : 2);
        nibbles[p] = load_nibbles(weight.codes + at);
      });
      unrolled<kRows>([&](auto row) {
        const std::int8_t* quad = x.codes + row * kInt4Group + v * kQuadInputs;
        const ByteVec low = load_quad(quad), high = load_quad(quad + kInt4Group / 2);
        unrolled<kPanels>([&](auto p) {
          products[row][p] = byte_dot(byte_dot(products[row][p], nibbles[p].low, low), nibbles[p].high, high);
        });
      });
    });
    Vec scales[kPanels];
    unrolled<kPanels>([&](auto p) { scales[p] = load(weight.scales + p * apart / kInt4Group); });
    each([&](auto row, auto p) {
      chains[row][p] = fma(mul(to_floats(products[row][p]), splat(x.scale[row])), scales[p], chains[row][p]);
    });
    weight = weight + kGroupWeights;
    if constexpr (kFetch != Fetch::kNothing) fetched += kGroupWeights / 2;
    x = {x.codes + kRows * kInt4Group, x.scale + kRows, x.start + kRows};
  }
  each([&](auto row, auto p) { store(sum_at(row, p), chains[row][p]); });
}

#endif

}  // namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE
