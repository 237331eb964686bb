// Rows of x times int8 weights in panels (weight_format.h): four inputs of sixteen outputs in a vector, whose
// products with bytes of x one instruction adds up. It takes weights without a sign, hence what is added to
// them.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/linear_float_panels.h"
#include "kernels/cpu/linear_rounding.h"

namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE {

constexpr std::int64_t kQuadsOfBlock = kActivationBlock / kQuadInputs;

// Weights in rows are packed beside so many rows of x, if a panel fits the second-level cache.
constexpr std::int64_t kLeastRowsToPackCodes = 24;
constexpr std::int64_t kMostInputsToPack = 16 << 10;
#if defined(KVFUSE_VNNI)
constexpr bool kHasByteProducts = true;
#else
// Without byte products that add up in 32 bits panels gain nothing.
constexpr bool kHasByteProducts = false;
#endif
#if defined(__AMX_INT8__)
constexpr bool kHasTiles = true;
#else
constexpr bool kHasTiles = false;
#endif
// Fewer wait for memory.
constexpr int kLeastTileRows = 3, kMostTileRows = 16;

inline bool goes_by_byte_panels(const LinearParams& p) {
  if (!kHasByteProducts) return false;
  return p.weight_format == WeightFormat::kInt8Panels ||
         (p.weight_format == WeightFormat::kInt8Rows && !p.fine_activations &&
          p.rows >= kLeastRowsToPackCodes && p.in <= kMostInputsToPack && p.in % kQuadInputs == 0);
}

// Whether they do by tiles (linear_tiles.h).
inline bool goes_by_tiles(const LinearParams& p) {
  return kHasTiles && goes_by_byte_panels(p) && p.rows >= kLeastTileRows && p.in % kActivationBlock == 0;
}

// As the products take them together.
inline RowGroups byte_panel_groups(const LinearParams& p) {
  if (goes_by_tiles(p)) return {p.rows, kMostTileRows};
  return p.fine_activations ? RowGroups{p.rows, kMostWidePanelRows} : panel_groups(p.rows);
}

// Rows of x of a group as bytes: code = high * 2^shift + low. A block of a row is a cache line: workers that
// prepare rows side by side meet in none.
struct ByteGroup {
  const std::int8_t* high;    // [block][row of the group][kActivationBlock]
  const std::int8_t* low;     // the same
  const std::int32_t* shift;  // [block][row of the group]
  const bool* whole;          // [block][row of the group]: low is not all zeros
  const std::int32_t* start;  // [row of the group]: takes kPackedZero off the sums
  bool fine;                  // all blocks of a row have one shift
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
  bool fine = false;            // as in ByteGroup
  std::int32_t most_shift = 0;  // that one

  // Of a group, from input `first` on, a multiple of kActivationBlock.
  ByteGroup at(std::int64_t group, std::int64_t first) const {
    const std::int64_t begin = groups.begin(group);
    const std::int64_t block = begin * blocks + first / kActivationBlock * groups.size(group);
    return {high + block * kActivationBlock,
            low + block * kActivationBlock,
            shift + block,
            whole + block,
            start + begin,
            fine};
  }

  void take(const RoundedRow& from, std::int64_t row) const {
    const std::int64_t group = groups.group_of(row), rows = groups.size(group);
    const std::int64_t place = row - groups.begin(group);  // in the group
    std::uint32_t sum = 0;
    for (std::int64_t b = 0; b < blocks; ++b) {
      const std::int64_t block = groups.begin(group) * blocks + b * rows;
      const std::int16_t* codes = from.codes + b * kActivationBlock;
      const int by = fine ? most_shift : from.shift[b];
      const auto half = static_cast<std::int16_t>((1 << by) >> 1);  // so that low is in [-128, 127]
      std::int8_t* to_high = high + (block + place) * kActivationBlock;
      std::int8_t* to_low = low + (block + place) * kActivationBlock;
      std::int32_t of_block = 0;
      for (std::int64_t i = 0; i < kActivationBlock; ++i) {
        const auto part = static_cast<std::int16_t>((codes[i] + half) >> by);
        to_high[i] = static_cast<std::int8_t>(part);
        to_low[i] = static_cast<std::int8_t>(codes[i] - (part << by));
        of_block += codes[i];
      }
      shift[block + place] = by;
      whole[block + place] = fine || from.whole[b];
      sum += static_cast<std::uint32_t>(of_block);
    }
    // Here and in the sums 32 bits may run over: what is left at the end fits.
    start[row] = static_cast<std::int32_t>(0U - static_cast<std::uint32_t>(kPackedZero) * sum);
  }
};

// `count` rows of `bytes` bytes (kPanelOutputs rows at most, whole quads), quads of all outputs side by side;
// behind the last row zeros. `store_quads` stores a vector of them.
template <typename Store>
void pack_quads(const std::uint8_t* rows, std::int64_t bytes, std::int64_t count, std::uint8_t* panel,
                Store&& store_quads) {
  constexpr std::int64_t kVectorBytes = kLanes * kQuadInputs;
  for (std::int64_t i = 0; i < bytes; i += kVectorBytes)
    for (std::int64_t first = 0; first < kPanelOutputs; first += kLanes) {
      ByteVec block[kLanes];
      for (std::int64_t o = 0; o < kLanes; ++o)
        block[o] =
            load_bytes(rows + std::min(first + o, count - 1) * bytes + i, first + o < count ? bytes - i : 0);
      transpose_quads(block);
      const std::int64_t quads = std::min<std::int64_t>(kLanes, (bytes - i) / kQuadInputs);
      for (std::int64_t quad = 0; quad < quads; ++quad)
        store_quads(panel + (i + quad * kQuadInputs) * kPanelOutputs + first * kQuadInputs, block[quad]);
    }
}

#if defined(KVFUSE_VNNI)

// Weights of `inputs` inputs, whole quads.
template <Fetch kFetch>
struct ByteWeights {
  const std::uint8_t* weight;
  std::int64_t apart;   // from one panel's to the next one's
  const char* fetched;  // as in add_panel_products
  std::int64_t inputs;
};

// Of x kParts values [block][row][kActivationBlock]: the high and the low bytes, or one of them.
template <int kParts>
struct ByteParts {
  const std::int8_t* values[kParts];
  const std::int32_t* shift;  // of the first part
};

// sums += the products of the inputs with x, of the first part times 2^shift[row]. `kBlocks`: of several
// blocks, else of one at most.
template <bool kBlocks, int kRows, int kPanels, Fetch kFetch, int kParts>
[[gnu::always_inline]] inline void add_byte_products(ByteWeights<kFetch> w, ByteParts<kParts> x,
                                                     PanelSums<std::int32_t> sums) {
  constexpr std::int64_t kQuadBytes = kPanelOutputs * kQuadInputs;  // of all outputs
  constexpr int kVectors = kPanels * kVectorsOfPanel;
  CodeSum parts[kParts][kRows][kVectors];
  const auto each = [](auto&& f) __attribute__((always_inline)) {
    unrolled<kParts>([&](auto part) {
      unrolled<kRows>([&](auto row) { unrolled<kVectors>([&](auto v) { f(part, row, v); }); });
    });
  };
  each([&](auto part, auto row, auto v) { parts[part][row][v] = code_zero(); });
  const auto add_block = [&](std::int64_t inputs) __attribute__((always_inline)) {
    for (std::int64_t i = 0; i < inputs; i += kQuadInputs) {
      ByteVec quads[kVectors];
      unrolled<kVectors>([&](auto v) {
        constexpr int kPanel = v / kVectorsOfPanel, kPart = v % kVectorsOfPanel;
        // Beside a load: GCC 12 leaves out a call that does nothing but prefetch.
        if constexpr (kFetch != Fetch::kNothing && kPart == 0)
          __builtin_prefetch(w.fetched + kPanel * w.apart, 0, kFetch == Fetch::kSoon ? 3 : 2);
        quads[v] = load_bytes(w.weight + kPanel * w.apart + kPart * kLanes * kQuadInputs);
      });
      w.weight += kQuadBytes;
      if constexpr (kFetch != Fetch::kNothing) w.fetched += kQuadBytes;
      unrolled<kParts>([&](auto part) {
        unrolled<kRows>([&](auto row) {
          const ByteVec values = load_quad(x.values[part] + row * kActivationBlock);
          unrolled<kVectors>(
              [&](auto v) { parts[part][row][v] = byte_dot(parts[part][row][v], quads[v], values); });
        });
        x.values[part] += kQuadInputs;
      });
    }
  };
  if constexpr (kBlocks) {
    for (std::int64_t i = 0; i < w.inputs; i += kActivationBlock) {
      add_block(std::min(kActivationBlock, w.inputs - i));
      unrolled<kParts>([&](auto part) { x.values[part] += (kRows - 1) * kActivationBlock; });
    }
  } else {
    add_block(w.inputs);
  }
  each([&](auto part, auto row, auto v) {
    std::int32_t* sum = sums.at(row, v);
    const CodeSum products = parts[part][row][v];
    store(sum, add(load_sum(sum), part == 0 ? shifted(products, x.shift[row]) : products));
  });
}

// The same as a function of its own: among others GCC 12 has no registers for so many sums.
template <bool kBlocks, int kRows, int kPanels, Fetch kFetch, int kParts>
[[gnu::noinline]] void call_add_byte_products(const ByteWeights<kFetch>& w, const ByteParts<kParts>& x,
                                              const PanelSums<std::int32_t>& sums) {
  add_byte_products<kBlocks, kRows, kPanels>(w, x, sums);
}

// As for floats (linear_float_panels.h), without the scales of codes: exact, in whatever order. `in` is a
// multiple of kQuadInputs.
template <int kRows, int kPanels, Fetch kFetch>
[[gnu::noinline]] void add_panel_products(const std::uint8_t* weight, std::int64_t apart, const char* fetched,
                                          const ByteGroup& x, std::int64_t in, bool begins,
                                          const PanelSums<std::int32_t>& sums) {
  constexpr int kVectors = kPanels * kVectorsOfPanel;
  if (begins)
    for (int row = 0; row < kRows; ++row)
      for (int v = 0; v < kVectors; ++v) store(sums.at(row, v), splat_sum(x.start[row]));
  // More sums than registers go one part after the other.
  constexpr bool kBothParts = kRows * kVectors <= (kLanes == 16 ? 14 : 6);
  if constexpr (kBothParts)
    if (x.fine)
      return call_add_byte_products<true, kRows, kPanels>(ByteWeights<kFetch>{weight, apart, fetched, in},
                                                          ByteParts<2>{{x.high, x.low}, x.shift}, sums);
  const auto add = [&](const ByteWeights<kFetch>& w, const auto& parts) __attribute__((always_inline)) {
    // One or two rows wait for memory, and calls would keep them from asking for it.
    if constexpr (kRows > 2)
      call_add_byte_products<false, kRows, kPanels>(w, parts, sums);
    else if (w.inputs == kActivationBlock)  // a constant: unrolled
      add_byte_products<false, kRows, kPanels>(
          ByteWeights<kFetch>{w.weight, w.apart, w.fetched, kActivationBlock}, parts, sums);
    else
      add_byte_products<false, kRows, kPanels>(w, parts, sums);
  };
  for (std::int64_t i = 0; i < in; i += kActivationBlock) {
    const std::int64_t block = i / kActivationBlock * kRows;
    const ByteWeights<kFetch> w = {weight + i * kPanelOutputs, apart,
                                   kFetch == Fetch::kNothing ? nullptr : fetched + i * kPanelOutputs,
                                   std::min(kActivationBlock, in - i)};
    const std::int8_t* high = x.high + i * kRows;
    const std::int8_t* low = x.low + i * kRows;
    const std::int32_t* shift = x.shift + block;
    const bool* whole = x.whole + block;
    if (std::find(whole, whole + kRows, true) == whole + kRows) {
      add(w, ByteParts<1>{{high}, shift});
    } else if constexpr (kBothParts) {
      add(w, ByteParts<2>{{high, low}, shift});
    } else {
      static constexpr std::int32_t kUnshifted[kRows] = {};
      add(w, ByteParts<1>{{high}, shift});
      add(w, ByteParts<1>{{low}, kUnshifted});
    }
  }
}

// `count` rows of a weight (kPanelOutputs at most) as a panel, which zeros fill up.
inline void pack_rows(const std::int8_t* rows, std::int64_t in, std::int64_t count, std::uint8_t* panel) {
  pack_quads(reinterpret_cast<const std::uint8_t*>(rows), in, count, panel,
             [](auto... quad) { store_packed(quad...); });
}

#endif

}  // namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE
