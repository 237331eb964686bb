// Rows of x times int8 weights in panels (weight_format.h): four inputs of sixteen outputs in a vector, whose
// products with bytes of x one instruction adds up. It takes weights without a sign, hence what is added to
// them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/linear_float_panels.h"
#include "kernels/cpu/linear_rounding.h"

namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE {

constexpr std::int64_t kQuadsOfBlock = kActivationBlock / kQuadInputs;

// Weights in rows are packed beside so many rows of x.
constexpr std::int64_t kLeastRowsToPackCodes = 24;
#if defined(__AVX512VNNI__)
constexpr bool kHasByteProducts = true;
#else
// Without byte products that add up in 32 bits panels gain nothing.
constexpr bool kHasByteProducts = false;
#endif

inline bool goes_by_byte_panels(const LinearParams& p) {
  if (!kHasByteProducts) return false;
  return p.weight_format == WeightFormat::kInt8Panels ||
         (p.weight_format == WeightFormat::kInt8Rows && !p.fine_activations &&
          p.rows >= kLeastRowsToPackCodes && p.in % kQuadInputs == 0);
}

// Rows of x of a group as bytes: code = high * 2^shift + low.
struct ByteGroup {
  const std::int8_t* high;    // [block][quad][row of the group][kQuadInputs]
  const std::int8_t* low;     // the same
  const std::int32_t* shift;  // [block][row of the group]
  const bool* whole;          // [block][row of the group]: low is not all zeros
  const std::int32_t* start;  // [row of the group]: takes kPackedZero off the sums
};

// Those of all groups, one behind the other.
struct BytePanelInputs {
  RowGroups groups;
  std::int64_t blocks = 0;
  std::int8_t* high = nullptr;
  std::int8_t* low = nullptr;
  std::int32_t* shift = nullptr;
  bool* whole = nullptr;
  std::int32_t* start = nullptr;

  // Of a group, from input `first` on, a multiple of kActivationBlock.
  ByteGroup at(std::int64_t group, std::int64_t first) const {
    const std::int64_t begin = groups.begin(group);
    const std::int64_t block = begin * blocks + first / kActivationBlock * groups.size(group);
    return {high + block * kActivationBlock, low + block * kActivationBlock, shift + block, whole + block,
            start + begin};
  }

  void take(const RoundedRow& from, std::int64_t row) const {
    const std::int64_t group = groups.group_of(row), rows = groups.size(group);
    const std::int64_t place = row - groups.begin(group);  // in the group
    std::uint32_t sum = 0;
    for (std::int64_t b = 0; b < blocks; ++b) {
      const std::int64_t block = groups.begin(group) * blocks + b * rows;
      const std::int16_t* codes = from.codes + b * kActivationBlock;
      const int by = from.shift[b];
      const auto half = static_cast<std::int16_t>((1 << by) >> 1);  // so that low is in [-128, 127]
      alignas(64) std::int8_t parts[2][kActivationBlock];
      std::int32_t of_block = 0;
      for (std::int64_t i = 0; i < kActivationBlock; ++i) {
        const auto part = static_cast<std::int16_t>((codes[i] + half) >> by);
        parts[0][i] = static_cast<std::int8_t>(part);
        parts[1][i] = static_cast<std::int8_t>(codes[i] - (part << by));
        of_block += codes[i];
      }
      for (std::int64_t quad = 0; quad < kQuadsOfBlock; ++quad) {
        const std::int64_t to = block * kActivationBlock + (quad * rows + place) * kQuadInputs;
        std::memcpy(high + to, parts[0] + quad * kQuadInputs, kQuadInputs);
        std::memcpy(low + to, parts[1] + quad * kQuadInputs, kQuadInputs);
      }
      shift[block + place] = by;
      whole[block + place] = from.whole[b];
      sum += static_cast<std::uint32_t>(of_block);
    }
    // Here and in the sums 32 bits may run over: what is left at the end fits.
    start[row] = static_cast<std::int32_t>(0U - static_cast<std::uint32_t>(kPackedZero) * sum);
  }
};

#if defined(__AVX512VNNI__)

// A block of `quads` quads of inputs. Where its weights and `values` of x lie.
template <Fetch kFetch>
struct ByteBlock {
  const std::uint8_t* weight;
  std::int64_t apart;   // from one panel's to the next one's
  const char* fetched;  // as in add_panel_products
  std::int64_t quads;
};

// sums += the products of a block with values [quad][row][kQuadInputs], times 2^shift[row].
template <int kRows, int kPanels, Fetch kFetch>
[[gnu::always_inline]] inline void add_byte_products(ByteBlock<kFetch> block, const std::int8_t* values,
                                                     const std::int32_t* shift,
                                                     PanelSums<std::int32_t> sums) {
  CodeSum parts[kRows][kPanels];
  unrolled<kRows>([&](auto row) { unrolled<kPanels>([&](auto p) { parts[row][p] = code_zero(); }); });
  for (std::int64_t quad = 0; quad < block.quads; ++quad, values += kRows * kQuadInputs) {
    ByteVec w[kPanels];
    unrolled<kPanels>([&](auto p) {
      // Beside a load: GCC 12 leaves out a call that does nothing but prefetch.
      if constexpr (kFetch != Fetch::kNothing)
        __builtin_prefetch(block.fetched + p * block.apart, 0, kFetch == Fetch::kSoon ? 3 : 2);
      w[p] = load_bytes(block.weight + p * block.apart);
    });
    block.weight += kPanelOutputs * kQuadInputs;
    if constexpr (kFetch != Fetch::kNothing) block.fetched += kPanelOutputs * kQuadInputs;
    unrolled<kRows>([&](auto row) {
      const ByteVec quad_of_x = load_quad(values + row * kQuadInputs);
      unrolled<kPanels>([&](auto p) { parts[row][p] = byte_dot(parts[row][p], w[p], quad_of_x); });
    });
  }
  unrolled<kRows>([&](auto row) {
    unrolled<kPanels>([&](auto p) {
      std::int32_t* sum = sums.data + row * sums.row_stride + p * sums.panel_stride;
      store(sum, load_sum(sum) + shifted(parts[row][p], shift[row]));
    });
  });
}

// The same as a function of its own: among others GCC 12 has no registers for so many sums. Few rows wait for
// memory, and calls keep them from asking for it.
template <int kRows, int kPanels, Fetch kFetch>
[[gnu::noinline]] void call_add_byte_products(const ByteBlock<kFetch>& block, const std::int8_t* values,
                                              const std::int32_t* shift,
                                              const PanelSums<std::int32_t>& sums) {
  add_byte_products<kRows, kPanels, kFetch>(block, values, shift, sums);
}

// As for floats (linear_float_panels.h), without the scales of codes: exact, in whatever order. `in` is a
// multiple of kQuadInputs.
template <int kRows, int kPanels, Fetch kFetch>
[[gnu::noinline]] void add_panel_products(const std::uint8_t* weight, std::int64_t apart, const char* fetched,
                                          const ByteGroup& x, std::int64_t in, bool begins,
                                          const PanelSums<std::int32_t>& sums) {
  static constexpr std::int32_t kUnshifted[kRows] = {};
  if (begins)
    for (int row = 0; row < kRows; ++row)
      for (int p = 0; p < kPanels; ++p)
        store(sums.data + row * sums.row_stride + p * sums.panel_stride, splat_sum(x.start[row]));
  for (std::int64_t i = 0; i < in; i += kActivationBlock) {
    const std::int64_t quads = std::min(kQuadsOfBlock, (in - i) / kQuadInputs);
    const std::uint8_t* codes = weight + i * kPanelOutputs;
    ByteBlock<kFetch> block = {codes, apart,
                               kFetch == Fetch::kNothing ? nullptr : fetched + i * kPanelOutputs, quads};
    const std::int8_t* high = x.high + i * kRows;
    const std::int64_t b = i / kActivationBlock * kRows;
    if constexpr (kRows * kPanels > 8) {
      call_add_byte_products<kRows, kPanels, kFetch>(block, high, x.shift + b, sums);
    } else if (quads < kQuadsOfBlock) {
      add_byte_products<kRows, kPanels, kFetch>(block, high, x.shift + b, sums);
    } else {
      block.quads = kQuadsOfBlock;  // a constant: unrolled
      add_byte_products<kRows, kPanels, kFetch>(block, high, x.shift + b, sums);
    }
    if (std::find(x.whole + b, x.whole + b + kRows, true) != x.whole + b + kRows)
      call_add_byte_products<kRows, kPanels, Fetch::kNothing>({codes, apart, nullptr, quads},
                                                              x.low + i * kRows, kUnshifted, sums);
  }
}

// `count` rows of a weight (kPanelOutputs at most) as a panel, which zeros fill up.
inline void pack_rows(const std::int8_t* rows, std::int64_t in, std::int64_t count, std::uint8_t* panel) {
  for (std::int64_t i = 0; i < in; i += kActivationBlock) {
    ByteVec block[kPanelOutputs];
    for (std::int64_t o = 0; o < kPanelOutputs; ++o)
      block[o] = load_bytes(rows + std::min(o, count - 1) * in + i, o < count ? in - i : 0);
    transpose_quads(block);
    const std::int64_t quads = std::min(kQuadsOfBlock, (in - i) / kQuadInputs);
    for (std::int64_t quad = 0; quad < quads; ++quad)
      store_packed(panel + (i + quad * kQuadInputs) * kPanelOutputs, block[quad]);
  }
}

#endif

}  // namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE
