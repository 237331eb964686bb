// AVX2 + FMA + F16C vectors. Included through simd.h.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/simd_avx_common.h"
#include "kernels/half.h"

namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE {

using Vec = __m256;
constexpr int kLanes = 8;

inline Vec zero() { return _mm256_setzero_ps(); }
inline Vec splat(float x) { return _mm256_set1_ps(x); }
inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline Vec load(const BFloat16* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline Vec load(const Float16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Vec load(const std::int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline void store(float* p, Vec x) { _mm256_storeu_ps(p, x); }

inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec absolute(Vec x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0F), x); }

inline Vec round_to_even(Vec x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Vec exp2_scale(Vec x, Vec n) {  // n in [-126, 0]
  const __m256i exponent = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
  return _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_add_epi32(exponent, _mm256_set1_epi32(127 << 23))));
}
inline Vec keep_if_not_less(Vec x, Vec a, Vec b) {
  return _mm256_and_ps(x, _mm256_cmp_ps(a, b, _CMP_NLT_UQ));
}

// rows[i] becomes lanes i of each of the rows.
inline void transpose(Vec (&rows)[8]) {
  Vec pairs[8], fours[8];
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
  }
  // fours[4 g + j]: lanes j of each 128 bits of rows 4 g to 4 g + 3.
  for (int g = 0; g < 8; g += 4) {
    fours[g] = _mm256_shuffle_ps(pairs[g], pairs[g + 2], 0x44);
    fours[g + 1] = _mm256_shuffle_ps(pairs[g], pairs[g + 2], 0xEE);
    fours[g + 2] = _mm256_shuffle_ps(pairs[g + 1], pairs[g + 3], 0x44);
    fours[g + 3] = _mm256_shuffle_ps(pairs[g + 1], pairs[g + 3], 0xEE);
  }
  for (int j = 0; j < 4; ++j) {
    rows[j] = _mm256_permute2f128_ps(fours[j], fours[4 + j], 0x20);
    rows[4 + j] = _mm256_permute2f128_ps(fours[j], fours[4 + j], 0x31);
  }
}

inline void quantize(Vec x, std::int8_t* codes) {
  __m256i integers = _mm256_cvtps_epi32(x);
  integers = _mm256_min_epi32(_mm256_max_epi32(integers, _mm256_set1_epi32(-127)), _mm256_set1_epi32(127));
  const __m128i words =
      _mm_packs_epi32(_mm256_castsi256_si128(integers), _mm256_extracti128_si256(integers, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(codes), _mm_packs_epi16(words, words));
}
inline void quantize(Vec x, std::int16_t* codes) {
  const __m256i integers = _mm256_cvtps_epi32(x);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(codes),
                   _mm_packs_epi32(_mm256_castsi256_si128(integers), _mm256_extracti128_si256(integers, 1)));
}

// Codes in a register for several rows of 16-bit values, with sums that stay integers.
using CodeVec = __m256i;
using CodeSum = IntVec;
constexpr int kCodeLanes = kIntLanes;

inline CodeSum code_zero() { return int_zero(); }
inline CodeVec load_codes(const std::int8_t* codes) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
}
inline CodeSum code_dot(CodeSum acc, CodeVec codes, const std::int16_t* x) {
  return multiply_pairs(acc, codes, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
}
inline CodeSum add(CodeSum a, CodeSum b) {  // may run over on the way
  return CodeSum(_mm256_add_epi32(__m256i(a), __m256i(b)));
}

// Bytes: 32 of them, or four values again and again.
using ByteVec = __m256i;
inline ByteVec load_bytes(const std::uint8_t* codes) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
}
// The first `count` (32 at most), then zeros.
inline ByteVec load_bytes(const std::uint8_t* codes, std::int64_t count) {
  if (count >= 32) return load_bytes(codes);
  alignas(32) std::uint8_t bytes[32] = {};
  std::copy_n(codes, count, bytes);
  return load_bytes(bytes);
}
inline void store(std::uint8_t* codes, ByteVec bytes) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes), bytes);
}
// rows[i] becomes bytes 4 i to 4 i + 3 of each of the rows.
inline void transpose_quads(ByteVec (&rows)[8]) {
  Vec lanes[8];
  for (int i = 0; i < 8; ++i) lanes[i] = _mm256_castsi256_ps(rows[i]);
  transpose(lanes);
  for (int i = 0; i < 8; ++i) rows[i] = _mm256_castps_si256(lanes[i]);
}

struct NibbleVec {
  ByteVec low, high;
};

inline NibbleVec load_nibbles(const std::uint8_t* codes) {
  const __m256i packed = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
  const __m256i low = _mm256_set1_epi8(15);
  return {_mm256_and_si256(packed, low), _mm256_and_si256(_mm256_srli_epi16(packed, 4), low)};
}
inline ByteVec load_quad(const std::int8_t* values) { return _mm256_set1_epi32(bits_of_quad(values)); }
#if defined(__AVXVNNI__)
// Each code plus kPackedZero.
inline void store_packed(std::uint8_t* codes, ByteVec bytes) {
  store(codes, _mm256_xor_si256(bytes, _mm256_set1_epi8(static_cast<char>(0x80))));
}
// Adds four products to each lane.
inline CodeSum byte_dot(CodeSum acc, ByteVec values, ByteVec codes) {
  return CodeSum(_mm256_dpbusd_avx_epi32(__m256i(acc), values, codes));
}
inline CodeSum splat_sum(std::int32_t value) { return CodeSum(_mm256_set1_epi32(value)); }
inline CodeSum shifted(CodeSum sum, std::int32_t by) {
  return CodeSum(_mm256_sllv_epi32(__m256i(sum), _mm256_set1_epi32(by)));
}
inline CodeSum load_sum(const std::int32_t* p) {
  return CodeSum(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline Vec load(const std::int32_t* p) { return _mm256_cvtepi32_ps(__m256i(load_sum(p))); }
inline void store(std::int32_t* p, CodeSum sum) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), __m256i(sum));
}

using GroupSum = CodeSum;
inline GroupSum begin_group(std::int32_t start) { return splat_sum(start); }
inline GroupSum group_dot(GroupSum acc, ByteVec codes, ByteVec values) {
  return byte_dot(acc, codes, values);
}
inline Vec end_group(GroupSum sum, std::int32_t /*start*/) { return _mm256_cvtepi32_ps(__m256i(sum)); }
#else
// Sixteen products of at most 15 * 127 fit 16 bits.
using GroupSum = __v16hi;
inline GroupSum begin_group(std::int32_t /*start*/) { return GroupSum{}; }
inline GroupSum group_dot(GroupSum acc, ByteVec codes, ByteVec values) {
  acc += GroupSum(_mm256_maddubs_epi16(codes, values));
  // Else GCC 12 takes all products of a group, for which there are no registers, before it adds them up.
  asm("" : "+x"(acc));
  return acc;
}
inline Vec end_group(GroupSum sum, std::int32_t start) {
  const __m256i pairs = _mm256_madd_epi16(__m256i(sum), _mm256_set1_epi16(1));
  return _mm256_cvtepi32_ps(_mm256_add_epi32(pairs, _mm256_set1_epi32(start)));
}
#endif

}  // namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE
