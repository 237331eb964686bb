// The two products of prefill attention on tensor cores, one warp's 16 queries by a tile of tokens: scores =
// queries . K rows, and results += weights . V rows. Accumulators are fragments as mma.h lays them out:
// [n][i] is row lane / 4 + 8 * (i / 2), column 8 * n + 2 * (lane % 4) + i % 2.
#pragma once

#include "kernels/cuda/device/mma.h"
#include "kernels/cuda/device/number.h"
#include "kernels/cuda/prefill_tile.h"

namespace kvfuse::cuda {

// For Float16 and BFloat16. kCodes: K and V rows hold int8 codes, which only matters to float.
template <typename T, bool kCodes, int kHeadDim>
class PrefillProducts {
  using Tile = PrefillTile<T, kHeadDim>;
  using Row = typename Tile::Row;

 public:
  struct SharedQueries {};  // none: they stay in registers

  // `rows` are the warp's queries.
  KVFUSE_DEVICE PrefillProducts(const Row* rows, SharedQueries&) {
    KVFUSE_UNROLL
    for (int k = 0; k < kHeadDim / 16; ++k)
      ldmatrix_x4(queries_[k], &rows[lane_id() % 16].chunks[2 * k + lane_id() / 16]);
  }

  KVFUSE_DEVICE void score(const Row* rows, float (&scores)[Tile::kTokens / 8][4]) const {
    const Row* row = rows + lane_id() / 16 * 8 + lane_id() % 8;  // matrices: 8 tokens by 8 channels
    const int chunk = lane_id() / 8 % 2;
    KVFUSE_UNROLL
    for (int n = 0; n < Tile::kTokens / 8; n += 2) {
      KVFUSE_UNROLL
      for (int i = 0; i < 4; ++i) scores[n][i] = scores[n + 1][i] = 0.0F;
      KVFUSE_UNROLL
      for (int k = 0; k < kHeadDim / 16; ++k) {
        std::uint32_t keys[4];
        ldmatrix_x4(keys, &row[8 * n].chunks[2 * k + chunk]);
        mma_16x8x16(scores[n], queries_[k], {keys[0], keys[1]}, T{});
        mma_16x8x16(scores[n + 1], queries_[k], {keys[2], keys[3]}, T{});
      }
    }
  }

  KVFUSE_DEVICE void add_values(const float (&weights)[Tile::kTokens / 8][4], const Row* rows,
                                float (&results)[kHeadDim / 8][4]) const {
    const Row* row = rows + lane_id() % 16;
    const int chunk = lane_id() / 16;
    KVFUSE_UNROLL
    for (int k = 0; k < Tile::kTokens / 16; ++k) {
      // Two accumulators side by side are laid out as one operand of twice the depth.
      const std::uint32_t left[4] = {pack2<T>(weights[2 * k][0], weights[2 * k][1]),
                                     pack2<T>(weights[2 * k][2], weights[2 * k][3]),
                                     pack2<T>(weights[2 * k + 1][0], weights[2 * k + 1][1]),
                                     pack2<T>(weights[2 * k + 1][2], weights[2 * k + 1][3])};
      KVFUSE_UNROLL
      for (int n = 0; n < kHeadDim / 8; n += 2) {
        std::uint32_t values[4];
        ldmatrix_x4_trans(values, &row[16 * k].chunks[n + chunk]);
        mma_16x8x16(results[n], left, {values[0], values[1]}, T{});
        mma_16x8x16(results[n + 1], left, {values[2], values[3]}, T{});
      }
    }
  }

 private:
  std::uint32_t queries_[kHeadDim / 16][4];
};

// A float operand as the sum of two tf32 numbers, which leaves at most its last bit out.
template <int kCount>
struct SplitFloats {
  std::uint32_t big[kCount];
  std::uint32_t small[kCount];
};

template <int kCount>
KVFUSE_DEVICE SplitFloats<kCount> split(const float (&x)[kCount]) {
  SplitFloats<kCount> parts;
  KVFUSE_UNROLL
  for (int i = 0; i < kCount; ++i) {
    const float big = round_to_tf32(x[i]);
    parts.big[i] = std::bit_cast<std::uint32_t>(big);
    parts.small[i] = std::bit_cast<std::uint32_t>(round_to_tf32(x[i] - big));
  }
  return parts;
}

// c += a * b in three products of tf32, two if b holds int8 codes, which tf32 represents exactly. What is
// left out, small by small, is 2^-22 of the product.
template <bool kCodes>
KVFUSE_DEVICE void multiply_add(float (&c)[4], const SplitFloats<4>& a, const float (&b)[2]) {
  if constexpr (kCodes) {
    const std::uint32_t codes[2] = {std::bit_cast<std::uint32_t>(b[0]), std::bit_cast<std::uint32_t>(b[1])};
    mma_16x8x8_tf32(c, a.small, codes);
    mma_16x8x8_tf32(c, a.big, codes);
  } else {
    const SplitFloats<2> parts = split(b);
    mma_16x8x8_tf32(c, a.small, parts.big);
    mma_16x8x8_tf32(c, a.big, parts.small);
    mma_16x8x8_tf32(c, a.big, parts.big);
  }
}

// Tensor cores truncate when they add to an accumulator, so the errors of a long sum would all point one way:
// they sum over kChain steps of the depth for scores, over a tile for results, and those sums are rounded.
template <bool kCodes, int kHeadDim>
class PrefillProducts<float, kCodes, kHeadDim> {
  using Tile = PrefillTile<float, kHeadDim>;
  using Row = typename Tile::Row;

 public:
  // The queries as operands, of every thread. Two parts of every element would not fit the registers.
  struct SharedQueries {
    uint4 operands[kHeadDim / 8][kPrefillThreads];
  };

  KVFUSE_DEVICE PrefillProducts(const Row* rows, SharedQueries& queries) : queries_(queries) {
    const float* upper = elements(rows[group()]) + column();
    const float* lower = elements(rows[group() + 8]) + column();
    KVFUSE_UNROLL
    for (int k = 0; k < kHeadDim / 8; ++k)
      queries.operands[k][threadIdx.x] =
          pack_floats(upper[8 * k], lower[8 * k], upper[8 * k + 4], lower[8 * k + 4]);
  }

  KVFUSE_DEVICE void score(const Row* rows, float (&scores)[Tile::kTokens / 8][4]) const {
    KVFUSE_UNROLL
    for (int n = 0; n < Tile::kTokens / 8; ++n) {
      KVFUSE_UNROLL
      for (int i = 0; i < 4; ++i) scores[n][i] = 0.0F;
    }
    KVFUSE_UNROLL
    for (int k = 0; k < kHeadDim / 8; k += kChain) {
      SplitFloats<4> left[kChain];
      KVFUSE_UNROLL
      for (int i = 0; i < kChain; ++i) {
        float query[4];
        unpack<float>(queries_.operands[k + i][threadIdx.x], query);
        left[i] = split(query);
      }
      KVFUSE_UNROLL
      for (int n = 0; n < Tile::kTokens / 8; ++n) {
        const float* key = elements(rows[8 * n + group()]) + 8 * k + column();
        float sum[4] = {};
        KVFUSE_UNROLL
        for (int i = 0; i < kChain; ++i) multiply_add<kCodes>(sum, left[i], {key[8 * i], key[8 * i + 4]});
        add(scores[n], sum);
      }
    }
  }

  KVFUSE_DEVICE void add_values(const float (&weights)[Tile::kTokens / 8][4], const Row* rows,
                                float (&results)[kHeadDim / 8][4]) const {
    // A lane's accumulators hold tokens 2 * column and 2 * column + 1, as an operand they stand for the
    // depths column and column + 4: the rows of V are taken in the same order.
    SplitFloats<4> left[Tile::kTokens / 8];
    KVFUSE_UNROLL
    for (int k = 0; k < Tile::kTokens / 8; ++k)
      left[k] = split({weights[k][0], weights[k][2], weights[k][1], weights[k][3]});
    const float* even = elements(rows[2 * column()]) + group();
    const float* odd = elements(rows[2 * column() + 1]) + group();
    KVFUSE_UNROLL
    for (int n = 0; n < kHeadDim / 8; ++n) {
      float sum[4] = {};
      KVFUSE_UNROLL
      for (int k = 0; k < Tile::kTokens / 8; ++k)
        multiply_add<kCodes>(sum, left[k],
                             {even[8 * k * kRowFloats + 8 * n], odd[8 * k * kRowFloats + 8 * n]});
      add(results[n], sum);
    }
  }

 private:
  static constexpr int kChain = 2;
  static_assert(kHeadDim / 8 % kChain == 0);
  static constexpr int kRowFloats = sizeof(Row) / sizeof(float);
  static KVFUSE_DEVICE void add(float (&c)[4], const float (&x)[4]) {
    KVFUSE_UNROLL
    for (int i = 0; i < 4; ++i) c[i] += x[i];
  }
  static KVFUSE_DEVICE int group() { return lane_id() / 4; }
  static KVFUSE_DEVICE int column() { return lane_id() % 4; }
  static KVFUSE_DEVICE const float* elements(const Row& row) {
    return reinterpret_cast<const float*>(row.chunks);
  }

  const SharedQueries& queries_;
};

}  // namespace kvfuse::cuda
