// Rows of x times 4-bit weights in panels by AMX: a group of inputs of sixteen outputs, unpacked to bytes, is
// half a tile. Sums of integers leave the tiles after every group, whose scales they meet as vectors.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/linear_int4_panels.h"
#include "kernels/cpu/linear_outputs.h"
#include "kernels/cpu/linear_tiles.h"

namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE {

#if defined(__AMX_INT8__)

constexpr std::int64_t kGroupBytes = kInt4Group * kPanelOutputs;  // unpacked
// So many unpacked inputs of a panel stay in the first-level cache, beside x.
constexpr std::int64_t kUnpackedInputs = 1024;

// A panel's `in` inputs as bytes with a sign, [in / 4, kPanelOutputs, 4]; fetches what lies at `fetched` as
// the codes do.
inline void unpack_panel(const std::uint8_t* codes, const char* fetched, std::int64_t in, std::int8_t* to) {
  constexpr std::int64_t kVectorBytes = 64, kHalf = kGroupBytes / 2;
  for (std::int64_t i = 0; i < in; i += kInt4Group, to += kHalf)
    for (std::int64_t v = 0; v < kHalf; v += kVectorBytes, codes += kVectorBytes, to += kVectorBytes) {
      __builtin_prefetch(fetched, 0, 2);
      fetched += kVectorBytes;
      const NibbleVec nibbles = load_nibbles(codes);
      store_less_eight(to, nibbles.low);
      store_less_eight(to + kHalf, nibbles.high);
    }
}

// sums += the products of kRows rows of x with `in` unpacked inputs of a panel; `begins`: or = them. The
// compiler must not look inside: GCC 12 does not know that loads of tiles read memory.
template <int kRows>
[[gnu::noipa]] void add_tile_products(const std::int8_t* weight, const Float16* scales, Int4Group x,
                                      std::int64_t in, bool begins, float* sums, std::int64_t stride) {
  // Integers are read some groups after they were stored: until then a load waits.
  constexpr std::int64_t kLate = 2, kBuffers = 4;
  alignas(64) std::int32_t products[kBuffers][kRows][kPanelOutputs];
  Vec chains[kRows];
  unrolled<kRows>([&](auto row) { chains[row] = begins ? zero() : load(sums + row * stride); });
  const std::int64_t groups = in / kInt4Group;
  const auto multiply = [&](std::int64_t g) __attribute__((always_inline)) {
    _tile_loadd(4, x.codes + g * kRows * kInt4Group, kInt4Group);
    _tile_loadd(6, weight + g * kGroupBytes, kPanelOutputs * kQuadInputs);
    _tile_zero(0);
    _tile_dpbssd(0, 4, 6);
    _tile_stored(0, products[g % kBuffers], kPanelOutputs * sizeof(std::int32_t));
  };
  const auto finish = [&](std::int64_t g) __attribute__((always_inline)) {
    const Vec group_scales = load(scales + g * kPanelOutputs);
    unrolled<kRows>([&](auto row) {
      const Vec sum = load(products[g % kBuffers][row]);
      chains[row] = fma(mul(sum, splat(x.scale[g * kRows + row])), group_scales, chains[row]);
    });
  };
  const std::int64_t early = std::min(kLate, groups);
  for (std::int64_t g = 0; g < early; ++g) multiply(g);
  for (std::int64_t g = early; g < groups; ++g) {
    multiply(g);
    finish(g - kLate);
  }
  for (std::int64_t g = groups - early; g < groups; ++g) finish(g);
  unrolled<kRows>([&](auto row) { store(sums + row * stride, chains[row]); });
}

// sums[row] = the products of all rows of x with `panels` panels.
inline void sum_tiles(const Int4PanelInputs& x, std::int64_t in, Int4Weights weight, const char* fetched,
                      std::int64_t panels, float (*sums)[kOutputsPerTask]) {
  const RowGroups& groups = x.groups;
  TileRegisters<kInt4Group> registers;
  alignas(64) std::int8_t unpacked[kUnpackedInputs * kPanelOutputs];
  for (std::int64_t panel = 0; panel < panels; ++panel)
    for (std::int64_t first = 0; first < in; first += kUnpackedInputs) {
      const std::int64_t count = std::min(kUnpackedInputs, in - first);
      const std::int64_t from = panel * kPanelOutputs * in + first * kPanelOutputs;
      const Int4Weights block = weight + from;
      unpack_panel(block.codes, fetched + from / 2, count, unpacked);
      for (std::int64_t group = 0; group < groups.count; ++group) {
        const std::int64_t rows = groups.size(group);
        registers.shape_for(rows);
        with_rows<kMostTileRows, kMostTileRows / 2>(rows, [&](auto of_group) {
          add_tile_products<of_group>(unpacked, block.scales, x.at(group, first), count, first == 0,
                                      sums[groups.begin(group)] + panel * kPanelOutputs, kOutputsPerTask);
        });
      }
    }
}

#endif

}  // namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE
