// AVX-512 (F, BW, VL, DQ; VNNI where the file is compiled with it) vectors. Included through simd.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/cpu/simd_avx_common.h"
#include "kernels/half.h"

namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE {

using Vec = __m512;
constexpr int kLanes = 16;

inline Vec zero() { return _mm512_setzero_ps(); }
inline Vec splat(float x) { return _mm512_set1_ps(x); }
inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline Vec load(const BFloat16* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
inline Vec load(const Float16* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline Vec load(const std::int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline void store(float* p, Vec x) { _mm512_storeu_ps(p, x); }

inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec absolute(Vec x) { return _mm512_abs_ps(x); }

inline __m256 low_half(Vec x) { return _mm512_castps512_ps256(x); }
inline __m256 high_half(Vec x) { return _mm512_extractf32x8_ps(x, 1); }
inline float reduce_add(Vec x) { return reduce_add(_mm256_add_ps(low_half(x), high_half(x))); }
inline float reduce_max(Vec x) { return reduce_max(_mm256_max_ps(low_half(x), high_half(x))); }

inline Vec round_to_even(Vec x) {
  return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline Vec exp2_scale(Vec x, Vec n) { return _mm512_scalef_ps(x, n); }
inline Vec keep_if_not_less(Vec x, Vec a, Vec b) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_NLT_UQ), x);
}

// rows[i] becomes bytes 4 i to 4 i + 3 of each of the rows.
inline void transpose_quads(__m512i (&rows)[16]) {
  __m512i pairs[16], fours[16];
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  // fours[4 g + j]: quads j of each 128 bits of rows 4 g to 4 g + 3.
  for (int g = 0; g < 16; g += 4) {
    fours[g] = _mm512_unpacklo_epi64(pairs[g], pairs[g + 2]);
    fours[g + 1] = _mm512_unpackhi_epi64(pairs[g], pairs[g + 2]);
    fours[g + 2] = _mm512_unpacklo_epi64(pairs[g + 1], pairs[g + 3]);
    fours[g + 3] = _mm512_unpackhi_epi64(pairs[g + 1], pairs[g + 3]);
  }
  for (int j = 0; j < 4; ++j) {
    const __m512i even_low = _mm512_shuffle_i32x4(fours[j], fours[4 + j], 0x88);
    const __m512i even_high = _mm512_shuffle_i32x4(fours[8 + j], fours[12 + j], 0x88);
    const __m512i odd_low = _mm512_shuffle_i32x4(fours[j], fours[4 + j], 0xDD);
    const __m512i odd_high = _mm512_shuffle_i32x4(fours[8 + j], fours[12 + j], 0xDD);
    rows[j] = _mm512_shuffle_i32x4(even_low, even_high, 0x88);
    rows[4 + j] = _mm512_shuffle_i32x4(odd_low, odd_high, 0x88);
    rows[8 + j] = _mm512_shuffle_i32x4(even_low, even_high, 0xDD);
    rows[12 + j] = _mm512_shuffle_i32x4(odd_low, odd_high, 0xDD);
  }
}
inline void transpose(Vec (&rows)[16]) {
  __m512i bits[16];
  for (int i = 0; i < 16; ++i) bits[i] = _mm512_castps_si512(rows[i]);
  transpose_quads(bits);
  for (int i = 0; i < 16; ++i) rows[i] = _mm512_castsi512_ps(bits[i]);
}

// out[i] = reduce_add(rows[i]), to the bit.
inline void sum_rows8(const Vec (&rows)[8], float* out) {
  __m256 halves[8];
  for (int i = 0; i < 8; ++i) halves[i] = _mm256_add_ps(low_half(rows[i]), high_half(rows[i]));
  sum_rows8(halves, out);
}

inline void quantize(Vec x, std::int8_t* codes) {
  const __m512i integers = _mm512_min_epi32(_mm512_max_epi32(_mm512_cvtps_epi32(x), _mm512_set1_epi32(-127)),
                                            _mm512_set1_epi32(127));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(codes), _mm512_cvtepi32_epi8(integers));
}
inline void quantize(Vec x, std::int16_t* codes) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(x)));
}

// Codes in a register for several rows of 16-bit values, with sums that stay integers.
using CodeVec = __m512i;
// By its elements, not as __m512i: GCC 12 copies a sum at each code_dot if its type changes there.
using CodeSum = __v16su;  // signed sums; adding may run over on the way
constexpr int kCodeLanes = 32;

inline CodeSum code_zero() { return CodeSum{}; }
inline CodeVec load_codes(const std::int8_t* codes) {
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)));
}
inline CodeSum code_dot(CodeSum acc, CodeVec codes, const std::int16_t* x) {
  const __m512i values = _mm512_loadu_si512(x);
#if defined(__AVX512VNNI__)
  return CodeSum(_mm512_dpwssd_epi32(__m512i(acc), codes, values));
#else
  return acc + CodeSum(_mm512_madd_epi16(codes, values));
#endif
}
inline CodeSum add(CodeSum a, CodeSum b) { return a + b; }
// out[i] = sum of the lanes of rows[i].
inline void sum_rows8(const CodeSum (&rows)[8], float* out) {
  __m512i two[4];  // of rows 2i and 2i + 1
  for (int i = 0; i < 4; ++i) {
    const __m512i a = __m512i(rows[2 * i]), b = __m512i(rows[2 * i + 1]);
    two[i] = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  }
  __m512i four[2];  // of rows 4i to 4i + 3, in each 128 bits
  for (int i = 0; i < 2; ++i)
    four[i] = _mm512_add_epi32(_mm512_unpacklo_epi64(two[2 * i], two[2 * i + 1]),
                               _mm512_unpackhi_epi64(two[2 * i], two[2 * i + 1]));
  const __m512i halves = _mm512_add_epi32(_mm512_shuffle_i32x4(four[0], four[1], 0x44),
                                          _mm512_shuffle_i32x4(four[0], four[1], 0xEE));
  const __m512i sums = _mm512_add_epi32(halves, _mm512_shuffle_i32x4(halves, halves, 0xB1));
  const __m256i eight = _mm512_castsi512_si256(_mm512_shuffle_i32x4(sums, sums, 0x08));
  _mm256_storeu_ps(out, _mm256_cvtepi32_ps(eight));
}

// Bytes: 64 of them, or four values again and again.
using ByteVec = __m512i;

template <typename Byte>
ByteVec load_quad(const Byte* values) {
  return _mm512_set1_epi32(bits_of_quad(values));
}

inline ByteVec load_bytes(const std::uint8_t* codes) { return _mm512_loadu_si512(codes); }
// The first `count` (64 at most), then zeros.
inline ByteVec load_bytes(const std::uint8_t* codes, std::int64_t count) {
  return _mm512_maskz_loadu_epi8(count >= 64 ? ~__mmask64{0} : (__mmask64{1} << count) - 1, codes);
}
inline void store(std::uint8_t* codes, ByteVec bytes) { _mm512_storeu_si512(codes, bytes); }

#if defined(__AVX512VNNI__)
inline ByteVec load_bytes(const std::int8_t* codes) { return _mm512_loadu_si512(codes); }
// Each code plus kPackedZero.
inline void store_packed(std::uint8_t* codes, ByteVec bytes) {
  _mm512_storeu_si512(codes, _mm512_xor_si512(bytes, _mm512_set1_epi8(static_cast<char>(0x80))));
}
// Adds four products to each lane.
inline CodeSum byte_dot(CodeSum acc, ByteVec values, ByteVec codes) {
  return CodeSum(_mm512_dpbusd_epi32(__m512i(acc), values, codes));
}
// quads[j], lane 4 l + i: the codes of four rows at channel 16 l + 4 j + i.
inline void interleave_rows(const ByteVec (&rows)[4], ByteVec (&quads)[4]) {
  const ByteVec first[2] = {_mm512_unpacklo_epi8(rows[0], rows[1]), _mm512_unpackhi_epi8(rows[0], rows[1])};
  const ByteVec second[2] = {_mm512_unpacklo_epi8(rows[2], rows[3]), _mm512_unpackhi_epi8(rows[2], rows[3])};
  for (int i = 0; i < 2; ++i) {
    quads[2 * i] = _mm512_unpacklo_epi16(first[i], second[i]);
    quads[2 * i + 1] = _mm512_unpackhi_epi16(first[i], second[i]);
  }
}
// 64 channels whose sums lie like that: out = (256 * high + low) * scale.
inline void store_scaled(float* out, const CodeSum (&high)[4], const CodeSum (&low)[4], float scale) {
  Vec quads[4];
  for (int j = 0; j < 4; ++j)
    quads[j] = _mm512_mul_ps(_mm512_cvtepi32_ps(__m512i((high[j] << 8) + low[j])), _mm512_set1_ps(scale));
  const Vec lanes01[2] = {_mm512_shuffle_f32x4(quads[0], quads[1], 0x44),
                          _mm512_shuffle_f32x4(quads[2], quads[3], 0x44)};
  const Vec lanes23[2] = {_mm512_shuffle_f32x4(quads[0], quads[1], 0xEE),
                          _mm512_shuffle_f32x4(quads[2], quads[3], 0xEE)};
  _mm512_storeu_ps(out, _mm512_shuffle_f32x4(lanes01[0], lanes01[1], 0x88));
  _mm512_storeu_ps(out + 16, _mm512_shuffle_f32x4(lanes01[0], lanes01[1], 0xDD));
  _mm512_storeu_ps(out + 32, _mm512_shuffle_f32x4(lanes23[0], lanes23[1], 0x88));
  _mm512_storeu_ps(out + 48, _mm512_shuffle_f32x4(lanes23[0], lanes23[1], 0xDD));
}
// Rounds to integers below 2^16.
inline void quantize(Vec x, std::uint8_t* high, std::uint8_t* low) {
  const __m512i integers = _mm512_cvtps_epi32(x);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(high), _mm512_cvtepi32_epi8(_mm512_srli_epi32(integers, 8)));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(low), _mm512_cvtepi32_epi8(integers));
}
inline CodeSum splat_sum(std::int32_t value) { return CodeSum(_mm512_set1_epi32(value)); }
inline CodeSum shifted(CodeSum sum, std::int32_t by) {
  return CodeSum(_mm512_sllv_epi32(__m512i(sum), _mm512_set1_epi32(by)));
}
inline Vec load(const std::int32_t* p) { return _mm512_cvtepi32_ps(_mm512_loadu_si512(p)); }
inline void store_less_eight(std::int8_t* codes, ByteVec bytes) {
  _mm512_storeu_si512(codes, _mm512_sub_epi8(bytes, _mm512_set1_epi8(8)));
}
inline CodeSum load_sum(const std::int32_t* p) { return CodeSum(_mm512_loadu_si512(p)); }
inline void store(std::int32_t* p, CodeSum sum) { _mm512_storeu_si512(p, __m512i(sum)); }
#endif

struct NibbleVec {
  ByteVec low, high;
};

inline NibbleVec load_nibbles(const std::uint8_t* codes) {
  const __m512i packed = _mm512_loadu_si512(codes);
  const __m512i low = _mm512_set1_epi8(15);
  return {_mm512_and_si512(packed, low), _mm512_and_si512(_mm512_srli_epi16(packed, 4), low)};
}
#if defined(__AVX512VNNI__)
using GroupSum = CodeSum;
inline GroupSum begin_group(std::int32_t start) { return splat_sum(start); }
inline GroupSum group_dot(GroupSum acc, ByteVec codes, ByteVec values) {
  return byte_dot(acc, codes, values);
}
inline Vec end_group(GroupSum sum, std::int32_t /*start*/) { return _mm512_cvtepi32_ps(__m512i(sum)); }
#else
// Sixteen products of at most 15 * 127 fit 16 bits.
using GroupSum = __v32hi;
inline GroupSum begin_group(std::int32_t /*start*/) { return GroupSum{}; }
inline GroupSum group_dot(GroupSum acc, ByteVec codes, ByteVec values) {
  acc += GroupSum(_mm512_maddubs_epi16(codes, values));
  // Else GCC 12 takes all products of a group, for which there are no registers, before it adds them up.
  asm("" : "+v"(acc));
  return acc;
}
inline Vec end_group(GroupSum sum, std::int32_t start) {
  const __m512i pairs = _mm512_madd_epi16(__m512i(sum), _mm512_set1_epi16(1));
  return _mm512_cvtepi32_ps(_mm512_add_epi32(pairs, _mm512_set1_epi32(start)));
}
#endif

}  // namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE
