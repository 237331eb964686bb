// Rows of x times 4-bit weights in panels (weight_format.h): as beside int8 codes (linear_byte_panels.h), but
// a group of inputs has scales of its own, and so ends the sums of integers.
#pragma once

#include <cstdint>

#include "kernels/cpu/linear_byte_panels.h"
#include "kernels/cpu/linear_float_panels.h"
#include "kernels/cpu/linear_rounding.h"

namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE {

// Rows that registers hold the sums of beside one panel: of integers, and where there are as many registers
// again of floats.
constexpr int kMostInt4PanelRows = kLanes == 16 ? 12 : 4;

// Whether products go by tiles (linear_int4_tiles.h). Fewer rows are faster by vectors.
constexpr int kLeastInt4TileRows = 9;
inline bool goes_by_int4_tiles(const LinearParams& p) {
  return kHasTiles && has_int4_codes(p.weight_format) && p.rows >= kLeastInt4TileRows;
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

// Where weights lie, in panels or in rows; moves by weights, whole groups of them.
template <typename Byte, typename Scale>
struct Int4At {
  Byte* codes;
  Scale* scales;

  Int4At operator+(std::int64_t weights) const {
    return {codes + weights / 2, scales + weights / kInt4Group};
  }
  operator Int4At<const Byte, const Scale>() const { return {codes, scales}; }
};
using Int4Room = Int4At<std::uint8_t, Float16>;
using Int4Weights = Int4At<const std::uint8_t, const Float16>;

// As for floats (linear_float_panels.h); what lies at `fetched` as the codes do at `weight` is fetched. A
// product is one chain of sums over its groups, whatever the number of rows and panels.
template <int kRows, int kPanels, Fetch kFetch>
[[gnu::noinline]] void add_panel_products(Int4Weights weight, std::int64_t apart, const char* fetched,
                                          Int4Group x, std::int64_t in, bool begins,
                                          const PanelSums<float>& sums) {
  constexpr std::int64_t kGroupWeights = kInt4Group * kPanelOutputs;
  constexpr std::int64_t kQuadBytes = kPanelOutputs * kQuadInputs;  // of all outputs
  constexpr int kQuads = kInt4GroupBytes / kQuadInputs;
  constexpr int kVectors = kPanels * kVectorsOfPanel;
  const auto each = [](auto&& f) __attribute__((always_inline)) {
    unrolled<kRows>([&](auto row) { unrolled<kVectors>([&](auto v) { f(row, v); }); });
  };
  Vec chains[kRows][kVectors];
  each([&](auto row, auto v) { chains[row][v] = begins ? zero() : load(sums.at(row, v)); });
  for (std::int64_t i = 0; i < in; i += kInt4Group) {
    GroupSum products[kRows][kVectors];
    each([&](auto row, auto v) { products[row][v] = begin_group(x.start[row]); });
    unrolled<kQuads>([&](auto quad) {
      NibbleVec nibbles[kVectors];
      unrolled<kVectors>([&](auto v) {
        constexpr int kPanel = v / kVectorsOfPanel, kPart = v % kVectorsOfPanel;
        const std::int64_t at = kPanel * apart / 2 + quad * kQuadBytes;
        // Beside a load: GCC 12 leaves out a call that does nothing but prefetch.
        if constexpr (kFetch != Fetch::kNothing && kPart == 0)
          __builtin_prefetch(fetched + at, 0, kFetch == Fetch::kSoon ? 3 : 2);
        nibbles[v] = load_nibbles(weight.codes + at + kPart * kLanes * kQuadInputs);
      });
      unrolled<kRows>([&](auto row) {
        const std::int8_t* values = x.codes + row * kInt4Group + quad * kQuadInputs;
        const ByteVec low = load_quad(values), high = load_quad(values + kInt4Group / 2);
        unrolled<kVectors>([&](auto v) {
          products[row][v] =
              group_dot(group_dot(products[row][v], nibbles[v].low, low), nibbles[v].high, high);
        });
      });
    });
    Vec scales[kVectors];
    unrolled<kVectors>([&](auto v) {
      scales[v] =
          load(weight.scales + v / kVectorsOfPanel * apart / kInt4Group + v % kVectorsOfPanel * kLanes);
    });
    each([&](auto row, auto v) {
      const Vec sum = mul(end_group(products[row][v], x.start[row]), splat(x.scale[row]));
      chains[row][v] = fma(sum, scales[v], chains[row][v]);
    });
    weight = weight + kGroupWeights;
    if constexpr (kFetch != Fetch::kNothing) fetched += kGroupWeights / 2;
    x = {x.codes + kRows * kInt4Group, x.scale + kRows, x.start + kRows};
  }
  each([&](auto row, auto v) { store(sums.at(row, v), chains[row][v]); });
}

// `count` rows of a weight (kPanelOutputs at most) as a panel, which zeros fill up.
inline void pack_rows(Int4Weights rows, std::int64_t in, std::int64_t count, Int4Room panel) {
  pack_quads(rows.codes, in / 2, count, panel.codes, [](auto... quad) { store(quad...); });
  const std::int64_t groups = in / kInt4Group;
  for (std::int64_t g = 0; g < groups; ++g)
    for (std::int64_t o = 0; o < kPanelOutputs; ++o)
      panel.scales[g * kPanelOutputs + o] = o < count ? rows.scales[o * groups + g] : Float16{};
}

}  // namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE
