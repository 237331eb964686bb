// Online softmax over the rows of one warp's score fragments, in float32.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "kernels/cuda/device/number.h"
#include "kernels/cuda/device/warp.h"
#include "kernels/cuda/prefill_tile.h"

namespace kvfuse::cuda {

// Each lane holds two rows (lane / 4 and 8 further), a quarter of their columns: see prefill_products.h.
// A weight is 2^(score - reference); results and sums so far are relative to the same reference. It follows
// the largest score seen and, for int8 codes, the largest V scale seen times that, so that weight times V
// scale stays below 1 and close to it: it neither over- nor underflows a 16-bit T. Only tokens that the row
// sees count, the others may have any scale, or NaN.
template <typename T, bool kInt8, int kHeadDim>
class PrefillSoftmax {
  using Tile = PrefillTile<T, kHeadDim>;
  static constexpr int kFragments = Tile::kTokens / 8;

 public:
  // Turns dot products into the weights of V's rows (or codes) and shrinks `results` to their reference.
  // Row r sees the first visible[r] tokens of the tile; all of them unless kMasked.
  template <bool kMasked>
  KVFUSE_DEVICE void weigh(float (&scores)[kFragments][4], float (&results)[kHeadDim / 8][4],
                           const int (&visible)[2], const typename Tile::Scales& scales, float factor) {
    float v_most[2] = {0.0F, 0.0F};
    KVFUSE_UNROLL
    for (int n = 0; n < kFragments; ++n) {
      KVFUSE_UNROLL
      for (int i = 0; i < 4; ++i) {
        const int token = token_of(n, i);
        const bool hidden = kMasked && token >= visible[i / 2];
        scores[n][i] = hidden ? -INFINITY : scores[n][i] * (kInt8 ? scales.score[token] : factor);
        most_[i / 2] = maximum(most_[i / 2], scores[n][i]);
        if constexpr (kInt8) v_most[i / 2] = maximum(v_most[i / 2], hidden ? 0.0F : scales.v[token]);
      }
    }
    float base[2];  // the reference, or 0 while the row has seen no token: weights 2^-inf, not NaN
    KVFUSE_UNROLL
    for (int row = 0; row < 2; ++row) {
      shrink(row, v_most[row], results);
      base[row] = reference_[row] == -INFINITY ? 0.0F : reference_[row];
    }
    KVFUSE_UNROLL
    for (int n = 0; n < kFragments; ++n) {
      KVFUSE_UNROLL
      for (int i = 0; i < 4; ++i) {
        const float weight = exp2_approx(scores[n][i] - base[i / 2]);
        sum_[i / 2] += weight;
        const int token = token_of(n, i);
        if constexpr (kInt8)
          scores[n][i] = kMasked && token >= visible[i / 2] ? 0.0F : weight * scales.v[token];
        else
          scores[n][i] = weight;
      }
    }
  }

  // Makes every normaliser NaN.
  KVFUSE_DEVICE void spoil() { sum_[0] = sum_[1] = NAN; }

  // What the results of row r are to be multiplied with at the end: 0 if it saw no token.
  KVFUSE_DEVICE float normaliser(int row) const {
    const float sum = group_sum<4>(sum_[row]);
    return sum == 0.0F ? 0.0F : 1.0F / sum;
  }

 private:
  static KVFUSE_DEVICE int token_of(int n, int i) { return 8 * n + 2 * (lane_id() % 4) + i % 2; }

  // Moves the row's reference up to what its most_ and v_most ask for.
  KVFUSE_DEVICE void shrink(int row, float v_most, float (&results)[kHeadDim / 8][4]) {
    most_[row] = group_max<4>(most_[row]);
    float reference = most_[row];
    if constexpr (kInt8) {
      // The power of two above v_most.
      const int exponent = static_cast<int>(std::bit_cast<std::uint32_t>(group_max<4>(v_most)) >> 23) - 126;
      v_exponent_[row] = maximum(v_exponent_[row], exponent < kMostExponent ? exponent : kMostExponent);
      reference += static_cast<float>(v_exponent_[row]);
    }
    // Nothing to shrink before the first token: -inf - -inf would be NaN.
    const float factor = reference_[row] == -INFINITY ? 0.0F : exp2_approx(reference_[row] - reference);
    reference_[row] = reference;
    sum_[row] *= factor;
    KVFUSE_UNROLL
    for (int n = 0; n < kHeadDim / 8; ++n) {
      results[n][2 * row] *= factor;
      results[n][2 * row + 1] *= factor;
    }
  }

  // V scales beyond 2^+-60 are left as they are: the largest weight must stay a normal float.
  static constexpr int kMostExponent = 60;

  float most_[2] = {-INFINITY, -INFINITY};
  float reference_[2] = {-INFINITY, -INFINITY};
  float sum_[2] = {0.0F, 0.0F};  // of this lane's columns
  int v_exponent_[2] = {-kMostExponent, -kMostExponent};
};

}  // namespace kvfuse::cuda
