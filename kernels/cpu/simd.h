// The vector operations that the CPU kernels are written in, for the instruction set that the file including
// this is compiled for. Each simd_<isa>.h defines, for its vector type Vec of kLanes floats:
//
//   zero, splat, load (float, BFloat16, Float16, int8_t), store, add, sub, mul, fma (a * b + c), max,
//   reduce_add, reduce_max, exp2_scale (x * 2^n), round_to_even, keep_if_not_less (x where a >= b or either
//   is NaN, else 0), transpose (kLanes vectors), sum_rows8 (lane sums of eight vectors), quantize (round,
//   clamp to +-127, narrow to int8), IntVec with int_zero, int_dot (acc + q * row over kIntLanes products),
//   sum_rows8 and reduce_add, pair_weights, add_row_pair (acc + weighted pair of rows) and store_scaled;
//   CodeVec, kCodeLanes 8-bit codes widened by load_codes, and CodeSum with code_zero, code_dot (acc + codes
//   * 16-bit values), add and sum_rows8; ByteVec, four bytes a lane, with load_bytes, store, load_quad
//   (four bytes in all lanes) and transpose_quads (kLanes vectors); NibbleVec, the halves of as many bytes,
//   with load_nibbles; and of a group of 4-bit weights (weight_format.h) GroupSum, with begin_group,
//   group_dot (acc + the four products of each lane) and end_group (to floats), of which one adds `start`.
//
// With VNNI also store_packed (bytes plus 128), byte_dot (acc + sums of four products, unsigned by signed),
// splat_sum, shifted (sums * 2^n), load_sum, load (to floats) and store; with AVX-512 too store_less_eight,
// and for weighted sums of four rows at once quantize (to integers of 16 bits, the high and the low ones
// apart), interleave_rows and store_scaled.
//
// Only kLanes-independent code lives here.
#pragma once

#include "kernels/half.h"

// Products of bytes that add up in 32 bits.
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define KVFUSE_VNNI
#endif

#if defined(__AVX512F__)
#include "kernels/cpu/simd_avx512.h"
#elif defined(__AVX2__)
#include "kernels/cpu/simd_avx2.h"
#else
#include "kernels/cpu/simd_portable.h"
#endif

namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE {

// e^x for x <= 0, to 2 units in the last place; 0 below -87.3 (where float32 would leave its normal range);
// NaN stays. Range reduction and the degree-5 polynomial are those of Cephes expf.
inline Vec exp_nonpositive(Vec x) {
  const Vec n = round_to_even(mul(x, splat(1.44269504088896341F)));
  Vec r = fma(n, splat(-0.693359375F), x);
  r = fma(n, splat(2.12194440e-4F), r);
  Vec poly = splat(1.9875691500e-4F);
  poly = fma(poly, r, splat(1.3981999507e-3F));
  poly = fma(poly, r, splat(8.3334519073e-3F));
  poly = fma(poly, r, splat(4.1665795894e-2F));
  poly = fma(poly, r, splat(1.6666665459e-1F));
  poly = fma(poly, r, splat(5.0000001201e-1F));
  poly = fma(mul(r, r), poly, add(r, splat(1.0F)));
  return keep_if_not_less(exp2_scale(poly, n), x, splat(-87.3F));
}

}  // namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE
