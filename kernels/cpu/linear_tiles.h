// Rows of x times int8 weights in panels by AMX: an instruction adds up the products of up to sixteen rows
// with a block of sixteen outputs' inputs, which is a panel's kilobyte as it lies.
#pragma once

#include <array>
#include <cstdint>
#include <utility>

#include "kernels/cpu/linear_byte_panels.h"
#include "kernels/cpu/linear_outputs.h"

namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE {

#if defined(__AMX_INT8__)

static_assert(kPanelOutputs * kQuadInputs == 64 && kQuadsOfBlock == 16, "a tile is 16 rows of 64 bytes");

// Registers 0 and 1 hold the sums of high bytes of x beside each of two panels, 2 and 3 those of low bytes, 4
// and 5 high and low bytes of x, 6 and 7 the panels. (GCC 12 takes no names for them, only digits.)
constexpr int kTileWeight = 6;

// The registers' sizes beside so many rows of x, with so many inputs in a tile, as LDTILECFG reads them.
struct alignas(64) TileShapes {
  std::uint8_t palette = 1;
  std::uint8_t reserved[15] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};

  constexpr TileShapes(int x_rows, int inputs) {
    for (int tile = 0; tile < 8; ++tile) {
      row_bytes[tile] = static_cast<std::uint16_t>(tile == 4 || tile == 5 ? inputs : 64);
      rows[tile] = static_cast<std::uint8_t>(tile < kTileWeight ? x_rows : inputs / kQuadInputs);
    }
  }
};

// A thread's use of the tiles. Once they are released, switches between threads need not save them.
template <int kInputs>
class TileRegisters {
 public:
  TileRegisters() = default;
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
  ~TileRegisters() { _tile_release(); }

  void shape_for(std::int64_t rows) {
    if (rows == rows_) return;
    rows_ = rows;
    _tile_loadconfig(&kShapes[rows - 1]);
  }

 private:
  // Not on the stack, where GCC 12 leaves out all but the first 8 bytes: all it knows this instruction to
  // read.
  static constexpr auto kShapes = []<int... kRow>(std::integer_sequence<int, kRow...>) {
    return std::array{TileShapes(kRow + 1, kInputs)...};
  }
  (std::make_integer_sequence<int, kMostTileRows>{});

  std::int64_t rows_ = 0;
};

// sums = the products of whole blocks of inputs, as many as `in`, of a group's rows with kPanels panels,
// `apart` from one to the next; all blocks of a row of x have one shift. Its callers take it for unknown
// code: GCC 12 does not know that loads of tiles read memory, and may drop what was stored for them.
template <int kPanels, bool kFetches>
[[gnu::noipa]] void tile_products(const std::uint8_t* weight, std::int64_t apart, const char* fetched,
                                  const ByteGroup& x, std::int64_t rows, std::int64_t in,
                                  const PanelSums<std::int32_t>& sums) {
  constexpr std::int64_t kBlockBytes = kActivationBlock * kPanelOutputs;
  constexpr int kRowBytes = 64;
  _tile_zero(0);
  _tile_zero(2);
  if constexpr (kPanels == 2) {
    _tile_zero(1);
    _tile_zero(3);
  }
  const std::int8_t* high = x.high;
  const std::int8_t* low = x.low;
  for (std::int64_t i = 0; i < in; i += kActivationBlock) {
    if constexpr (kFetches) {
      for (int p = 0; p < kPanels; ++p)
        for (std::int64_t line = 0; line < kBlockBytes; line += kCacheLine)
          __builtin_prefetch(fetched + p * apart + line, 0, 2);
      fetched += kBlockBytes;
    }
    _tile_loadd(6, weight, kRowBytes);
    _tile_loadd(4, high, kRowBytes);
    _tile_loadd(5, low, kRowBytes);
    _tile_dpbsud(0, 4, 6);
    _tile_dpbsud(2, 5, 6);
    if constexpr (kPanels == 2) {
      _tile_loadd(7, weight + apart, kRowBytes);
      _tile_dpbsud(1, 4, 7);
      _tile_dpbsud(3, 5, 7);
    }
    weight += kBlockBytes;
    high += rows * kActivationBlock;
    low += rows * kActivationBlock;
  }
  alignas(64) std::int32_t parts[2][kPanels][16][kPanelOutputs];
  _tile_stored(0, parts[0][0], kRowBytes);
  _tile_stored(2, parts[1][0], kRowBytes);
  if constexpr (kPanels == 2) {
    _tile_stored(1, parts[0][1], kRowBytes);
    _tile_stored(3, parts[1][1], kRowBytes);
  }
  for (std::int64_t row = 0; row < rows; ++row)
    for (int p = 0; p < kPanels; ++p) {
      std::int32_t* sum = sums.data + row * sums.row_stride + p * sums.panel_stride;
      store(sum, splat_sum(x.start[row]) + shifted(load_sum(parts[0][p][row]), x.shift[row]) +
                     load_sum(parts[1][p][row]));
    }
}

// sums[row] = the products of all rows of x with `panels` panels.
inline void sum_tiles(const BytePanelInputs& x, std::int64_t in, const std::uint8_t* weight,
                      const char* fetched, std::int64_t panels, std::int32_t (*sums)[kOutputsPerTask]) {
  const RowGroups& groups = x.groups;
  const std::int64_t size = kPanelOutputs * in;
  TileRegisters<kActivationBlock> registers;
  for (std::int64_t group = 0; group < groups.count; ++group) {
    const std::int64_t rows = groups.size(group);
    const ByteGroup of_group = x.at(group, 0);
    registers.shape_for(rows);
    const auto multiply = [&]<int kPanels, bool kFetches>(std::int64_t panel) {
      tile_products<kPanels, kFetches>(
          weight + panel * size, size, fetched + panel * size, of_group, rows, in,
          {sums[groups.begin(group)] + panel * kPanelOutputs, kOutputsPerTask, kPanelOutputs});
    };
    const auto multiply_all = [&]<bool kFetches>() {
      std::int64_t panel = 0;
      // A group alone waits for memory, and reads in its order.
      for (; groups.count > 1 && panel + 2 <= panels; panel += 2)
        multiply.template operator()<2, kFetches>(panel);
      for (; panel < panels; ++panel) multiply.template operator()<1, kFetches>(panel);
    };
    if (group == 0)
      multiply_all.template operator()<true>();
    else
      multiply_all.template operator()<false>();
  }
}

#endif

}  // namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE
