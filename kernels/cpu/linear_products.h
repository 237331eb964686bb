// A few rows of x times rows of a weight, for every format that weights are kept in.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "kernels/cpu/simd.h"
#include "kernels/linear.h"

namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE {

// f(0) ... f(kCount - 1) with constants: sums in arrays that a loop indexed would go through memory (GCC 12).
template <int kCount, typename F>
[[gnu::always_inline]] inline void unrolled(F&& f) {
  [&]<int... kIndex>(std::integer_sequence<int, kIndex...>) __attribute__((always_inline)) {
    (f(std::integral_constant<int, kIndex>{}), ...);
  }
  (std::make_integer_sequence<int, kCount>{});
}

// sums[row][output] = the lane sums of parts[row][output].
template <typename Part, int kRows, int kOutputs>
[[gnu::always_inline]] inline void sum_lanes(const Part (&parts)[kRows][kOutputs],
                                             float (&sums)[kRows][kOutputs]) {
  constexpr int kSums = kRows * kOutputs;
  float* out = sums[0];
  unrolled<(kSums + 7) / 8>([&](auto block) {
    constexpr int kFirst = 8 * block;
    Part eight[8];
    unrolled<8>([&](auto i) {
      constexpr int kAt = std::min(kFirst + i, kSums - 1);
      eight[i] = parts[kAt / kOutputs][kAt % kOutputs];
    });
    if constexpr (kFirst + 8 <= kSums) {
      sum_rows8(eight, out + kFirst);
    } else {
      float totals[8];
      sum_rows8(eight, totals);
      std::copy_n(totals, kSums - kFirst, out + kFirst);
    }
  });
}

constexpr std::int64_t kCacheLine = 64;
// Of weights, that a core's second-level cache holds beside x: a task's, or the next one's.
constexpr std::int64_t kTaskBytes = 200 << 10;

// What products fetch from memory on the way, for later: `step` bytes in each of their steps, in whole lines.
// Always inlined: a call that only prefetches is one that GCC 12 may leave out.
struct Ahead {
  const char* data = nullptr;
  std::int64_t step = 0;

  [[gnu::always_inline]] void fetch() {
    for (std::int64_t i = 0; i < step; i += kCacheLine)
      __builtin_prefetch(data + i, 0, 2);  // into the second-level cache
    data += step;
  }
};

struct NothingAhead {
  [[gnu::always_inline]] void fetch() {}
};

// The same of kLines at most, of one or two without asking, whether there are so many: a loop took a tenth of
// the time of products from the caches.
template <int kLines>
struct LinesAhead {
  const char* data;
  std::int64_t step;

  [[gnu::always_inline]] void fetch() {
    fetch_from<0>();
    data += step;
  }

 private:
  template <int kLine>
  [[gnu::always_inline]] void fetch_from() {
    if constexpr (kLine < kLines) {
      if (kLines > 2 && kLine * kCacheLine >= step) return;
      __builtin_prefetch(data + kLine * kCacheLine, 0, 2);
      fetch_from<kLine + 1>();
    }
  }
};

// Elements of a weight that a step of the products below takes of each of its rows.
template <typename W>
constexpr std::int64_t kStepElements = std::is_same_v<W, std::int8_t> ? kCodeLanes : kLanes;

// sums[row][output] = the products of a row of the weight, `apart` elements from one to the next, with row
// `row` of x. A product is one chain of sums, the same for any number of rows: a row's bits are the same
// alone and in a batch.
template <int kRows, int kOutputs, typename W, typename Fetch>
[[gnu::always_inline]] inline void products_apart(const W* weight, std::int64_t apart, const float* x,
                                                  std::int64_t stride, std::int64_t in, Fetch ahead,
                                                  float (&sums)[kRows][kOutputs]) {
  Vec chains[kRows][kOutputs];
  unrolled<kRows>([&](auto row) { unrolled<kOutputs>([&](auto o) { chains[row][o] = zero(); }); });
  std::int64_t i = 0;
  for (; i + kLanes <= in; i += kLanes) {
    ahead.fetch();
    Vec w[kOutputs];
    unrolled<kOutputs>([&](auto o) { w[o] = load(weight + o * apart + i); });
    unrolled<kRows>([&](auto row) {
      const Vec values = load(x + row * stride + i);
      unrolled<kOutputs>([&](auto o) { chains[row][o] = fma(w[o], values, chains[row][o]); });
    });
  }
  if constexpr (kRows * kOutputs == 1)
    sums[0][0] = reduce_add(chains[0][0]);
  else
    sum_lanes(chains, sums);
  for (int row = 0; row < kRows; ++row)
    for (int o = 0; o < kOutputs; ++o)
      for (std::int64_t j = i; j < in; ++j)
        sums[row][o] += to_float(weight[o * apart + j]) * x[row * stride + j];
}

// The same in integers: exact, in whatever order. Rows of x go on with zeros, for a whole vector at least.
template <int kRows, int kOutputs, typename Fetch>
[[gnu::always_inline]] inline void products_apart(const std::int8_t* weight, std::int64_t apart,
                                                  const std::int16_t* x, std::int64_t stride, std::int64_t in,
                                                  Fetch ahead, float (&sums)[kRows][kOutputs]) {
  CodeSum parts[kRows][kOutputs];
  unrolled<kRows>([&](auto row) { unrolled<kOutputs>([&](auto o) { parts[row][o] = code_zero(); }); });
  const auto step = [&](const std::int8_t* codes, std::int64_t codes_stride, std::int64_t i) {
    CodeVec w[kOutputs];
    unrolled<kOutputs>([&](auto o) { w[o] = load_codes(codes + o * codes_stride); });
    unrolled<kRows>([&](auto row) {
      unrolled<kOutputs>(
          [&](auto o) { parts[row][o] = code_dot(parts[row][o], w[o], x + row * stride + i); });
    });
  };
  const std::int64_t whole = in / kCodeLanes * kCodeLanes;
  for (std::int64_t i = 0; i < whole; i += kCodeLanes) {
    ahead.fetch();
    step(weight + i, apart, i);
  }
  if (whole < in) {
    alignas(64) std::int8_t rest[kOutputs][kCodeLanes] = {};
    for (int o = 0; o < kOutputs; ++o)
      std::memcpy(rest[o], weight + o * apart + whole, static_cast<std::size_t>(in - whole));
    step(rest[0], kCodeLanes, whole);
  }
  sum_lanes(parts, sums);
}

// The same of rows that lie one behind the other. Not inlined, as above.
template <int kRows, int kOutputs, typename W, typename X, typename Fetch>
[[gnu::noinline]] void products(const W* weight, const X* x, std::int64_t stride, std::int64_t in,
                                Fetch ahead, float (&sums)[kRows][kOutputs]) {
  products_apart(weight, in, x, stride, in, ahead, sums);
}

// How far ahead streams of weights are fetched where prefetchers leave a core waiting: Intel's.
constexpr std::int64_t kStreamAheadBytes = 3 << 10;

// Of element i of a row, a line at once.
template <bool kFetched, typename W>
[[gnu::always_inline]] inline void fetch_stream(const W* row, std::int64_t i) {
  if (kFetched && i * static_cast<std::int64_t>(sizeof(W)) % kCacheLine == 0)
    __builtin_prefetch(reinterpret_cast<const char*>(row + i) + kStreamAheadBytes, 0, 3);
}

// One row of x with kPair rows each of two weights far from each other: a core reads two streams faster than
// one, which its prefetchers do not keep full. sums[weight][row], the same bits as above.
constexpr int kPair = 4;
template <bool kFetched, typename W>
void paired_products(const W* const (&weights)[2], const float* x, std::int64_t in, float (&sums)[2][kPair]) {
  for (int row = 0; row < kPair; ++row) {
    const W* first = weights[0] + row * in;
    const W* second = weights[1] + row * in;
    Vec chains[2] = {zero(), zero()};
    std::int64_t i = 0;
    for (; i + kLanes <= in; i += kLanes) {
      fetch_stream<kFetched>(first, i);
      fetch_stream<kFetched>(second, i);
      const Vec values = load(x + i);
      chains[0] = fma(load(first + i), values, chains[0]);
      chains[1] = fma(load(second + i), values, chains[1]);
    }
    sums[0][row] = reduce_add(chains[0]);
    sums[1][row] = reduce_add(chains[1]);
    for (; i < in; ++i) {
      sums[0][row] += to_float(first[i]) * x[i];
      sums[1][row] += to_float(second[i]) * x[i];
    }
  }
}

// `in` is a multiple of kCodeLanes.
template <bool kFetched>
void paired_products(const std::int8_t* const (&weights)[2], const std::int16_t* x, std::int64_t in,
                     float (&sums)[2][kPair]) {
  CodeSum parts[2][kPair];
  for (int row = 0; row < kPair; ++row) {
    const std::int8_t* first = weights[0] + row * in;
    const std::int8_t* second = weights[1] + row * in;
    CodeSum sum[2] = {code_zero(), code_zero()};
    for (std::int64_t i = 0; i < in; i += kCodeLanes) {
      fetch_stream<kFetched>(first, i);
      fetch_stream<kFetched>(second, i);
      sum[0] = code_dot(sum[0], load_codes(first + i), x + i);
      sum[1] = code_dot(sum[1], load_codes(second + i), x + i);
    }
    parts[0][row] = sum[0];
    parts[1][row] = sum[1];
  }
  sum_lanes(parts, sums);
}

}  // namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE
