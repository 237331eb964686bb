// Many rows of x times int8 weights, in bytes: half the instructions of 16-bit products. Weights are packed
// anew in each call, which many rows pay for.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#include "kernels/cpu/linear_rounding.h"

namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE {

constexpr int kPanelRows = 8;  // of x, which share a weight in a register
constexpr int kPanelVectors = 3;
constexpr int kPanelOutputs = 16 * kPanelVectors;
constexpr int kQuad = 4;  // inputs whose products an instruction adds up

#if defined(__AVX512VNNI__)
constexpr std::int64_t kLeastPanelRows = 24;
#else
// Without byte products that add up in 32 bits panels gain nothing.
constexpr std::int64_t kLeastPanelRows = std::numeric_limits<std::int64_t>::max();
#endif
constexpr std::int64_t kMostPanelInputs = 16 << 10;  // a panel fits the second-level cache

inline bool goes_by_panels(const LinearParams& p) {
  return p.weight_format == WeightFormat::kInt8Rows && !p.fine_activations && p.rows >= kLeastPanelRows &&
         p.in <= kMostPanelInputs;
}

// kPanelOutputs rows of a weight.
struct Panel {
  std::int8_t* codes = nullptr;   // [activation_blocks * kActivationBlock / kQuad, kPanelOutputs, kQuad]
  std::int32_t* start = nullptr;  // [activation_blocks, kPanelOutputs]: takes kByteZero off the products

  static constexpr std::int64_t code_bytes(std::int64_t blocks) {
    return blocks * kActivationBlock * kPanelOutputs;
  }
  // From one to the next, which another core writes: further apart than prefetchers look ahead.
  static constexpr std::int64_t bytes(std::int64_t blocks) {
    return code_bytes(blocks) + blocks * kPanelOutputs * static_cast<std::int64_t>(sizeof(std::int32_t)) +
           4096;
  }
  static Panel at(char* memory, std::int64_t blocks) {
    return {reinterpret_cast<std::int8_t*>(memory),
            reinterpret_cast<std::int32_t*>(memory + code_bytes(blocks))};
  }
};

constexpr int kByteZero = 128;  // added to bytes of x, as the instruction takes them unsigned

// Rows of x as bytes, kPanelRows times a whole number of them: code = high * 2^shift + low.
struct PanelInputs {
  std::int64_t rows = 0;
  std::int64_t stride = 0;        // bytes from row to row
  std::uint8_t* high = nullptr;   // [rows, stride]
  std::uint8_t* low = nullptr;    // [rows, stride]
  std::int32_t* shift = nullptr;  // [rows, blocks]
  bool* whole = nullptr;          // [blocks, rows]: low is not all zeros

  // Row `row`, from its codes.
  void split(const RoundedRow& from, std::int64_t blocks, std::int64_t row) const {
    for (std::int64_t b = 0; b < blocks; ++b) {
      const std::int16_t* codes = from.codes + b * kActivationBlock;
      std::uint8_t* to_high = high + row * stride + b * kActivationBlock;
      std::uint8_t* to_low = low + row * stride + b * kActivationBlock;
      const int by = from.shift[b];
      const auto half = static_cast<std::int16_t>((1 << by) >> 1);  // so that low is in [-128, 127]
      for (std::int64_t i = 0; i < kActivationBlock; ++i) {
        const auto part = static_cast<std::int16_t>((codes[i] + half) >> by);
        to_high[i] = static_cast<std::uint8_t>(part + kByteZero);
        to_low[i] = static_cast<std::uint8_t>(codes[i] - (part << by) + kByteZero);
      }
      shift[row * blocks + b] = by;
      whole[b * rows + row] = from.whole[b];
    }
  }

  // Row `row` as zeros.
  void clear(std::int64_t blocks, std::int64_t row) const {
    std::memset(high + row * stride, kByteZero, static_cast<std::size_t>(stride));
    std::memset(low + row * stride, kByteZero, static_cast<std::size_t>(stride));
    std::fill_n(shift + row * blocks, blocks, 0);
    for (std::int64_t b = 0; b < blocks; ++b) whole[b * rows + row] = false;
  }
};

#if defined(__AVX512VNNI__)

// Weight rows [begin, end) as a panel, which zeros fill up.
inline void pack(const std::int8_t* weight, std::int64_t in, std::int64_t begin, std::int64_t end,
                 const Panel& panel) {
  static constexpr std::uint8_t kZeros[kQuad] = {kByteZero, kByteZero, kByteZero, kByteZero};
  for (int v = 0; v < kPanelVectors; ++v)
    for (std::int64_t b = 0; b < activation_blocks(in); ++b) {
      ByteVec rows[16];
      for (int i = 0; i < 16; ++i) {
        const std::int64_t row = begin + 16 * v + i;
        const std::int64_t first = b * kActivationBlock;
        rows[i] = load_bytes(weight + std::min(row, end - 1) * in + first, row < end ? in - first : 0);
      }
      transpose_quads(rows);
      CodeSum sum = code_zero();
      for (int i = 0; i < 16; ++i) {
        sum = byte_dot(sum, load_quad(kZeros), rows[i]);
        store(panel.codes + ((b * 16 + i) * kPanelVectors + v) * 64, rows[i]);
      }
      store(panel.start + b * kPanelOutputs + 16 * v, code_zero() - sum);
    }
}

// totals[row][output] += the products of a block, whose first are at `codes`, `start` and `x`, times 2^shift,
// the first of shifts `shift_stride` apart.
[[gnu::noinline]] inline void add_block(const std::int8_t* codes, const std::int32_t* start,
                                        const std::uint8_t* x, std::int64_t stride, const std::int32_t* shift,
                                        std::int64_t shift_stride, std::int32_t (*totals)[kPanelOutputs]) {
  CodeSum sums[kPanelRows][kPanelVectors];
  unrolled<kPanelRows>(
      [&](auto row) { unrolled<kPanelVectors>([&](auto v) { sums[row][v] = load_sum(start + 16 * v); }); });
  for (std::int64_t i = 0; i < kActivationBlock; i += kQuad) {
    ByteVec w[kPanelVectors];
    unrolled<kPanelVectors>([&](auto v) { w[v] = load_bytes(codes + i * kPanelOutputs + 64 * v); });
    unrolled<kPanelRows>([&](auto row) {
      const ByteVec quad = load_quad(x + row * stride + i);
      unrolled<kPanelVectors>([&](auto v) { sums[row][v] = byte_dot(sums[row][v], quad, w[v]); });
    });
  }
  unrolled<kPanelRows>([&](auto row) {
    unrolled<kPanelVectors>([&](auto v) {
      std::int32_t* total = totals[row] + 16 * v;
      store(total, load_sum(total) + (sums[row][v] << shift[row * shift_stride]));
    });
  });
}

// sums[row][output] = the products of rows [first, first + kPanelRows) of x with those of the panel, without
// the scales of codes: exact, in whatever order. A block is a step of `ahead`.
inline void panel_products(const Panel& panel, const PanelInputs& x, std::int64_t blocks, std::int64_t first,
                           Ahead ahead, float (*sums)[kPanelOutputs]) {
  static constexpr std::int32_t kUnshifted[kPanelRows] = {};
  alignas(64) std::int32_t totals[kPanelRows][kPanelOutputs] = {};
  for (std::int64_t b = 0; b < blocks; ++b) {
    const std::int8_t* codes = panel.codes + b * kActivationBlock * kPanelOutputs;
    const std::int32_t* start = panel.start + b * kPanelOutputs;
    const std::int64_t at = first * x.stride + b * kActivationBlock;
    ahead.fetch();
    add_block(codes, start, x.high + at, x.stride, x.shift + first * blocks + b, blocks, totals);
    const bool* whole = x.whole + b * x.rows + first;
    if (std::find(whole, whole + kPanelRows, true) != whole + kPanelRows)
      add_block(codes, start, x.low + at, x.stride, kUnshifted, 1, totals);
  }
  for (int row = 0; row < kPanelRows; ++row)
    for (int o = 0; o < kPanelOutputs; ++o) sums[row][o] = static_cast<float>(totals[row][o]);
}

#endif

}  // namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE
