// What the AVX2 and the AVX-512 vectors share: 256-bit lane sums and integer dot products.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE {

inline float reduce_add(__m256 x) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float reduce_max(__m256 x) {
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

// out[i] = sum of the lanes of rows[i].
inline void sum_rows8(const __m256 (&rows)[8], float* out) {
  const __m256 ab = _mm256_hadd_ps(_mm256_hadd_ps(rows[0], rows[1]), _mm256_hadd_ps(rows[2], rows[3]));
  const __m256 cd = _mm256_hadd_ps(_mm256_hadd_ps(rows[4], rows[5]), _mm256_hadd_ps(rows[6], rows[7]));
  _mm256_storeu_ps(out,
                   _mm256_add_ps(_mm256_permute2f128_ps(ab, cd, 0x20), _mm256_permute2f128_ps(ab, cd, 0x31)));
}

// Integer dot products of 16-bit queries with 8-bit rows, kIntLanes products at a time. 256 bits also on
// AVX-512: head sizes are multiples of 16, and the wider form is no faster where the cache is read from
// memory.
using IntVec = __m256i;
constexpr int kIntLanes = 16;

inline IntVec int_zero() { return _mm256_setzero_si256(); }
inline IntVec int_dot(IntVec acc, const std::int16_t* q, const std::int8_t* row) {
  const __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row)));
  const __m256i query = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(q));
#if defined(__AVX512VNNI__)
  return _mm256_dpwssd_epi32(acc, wide, query);
#else
  return _mm256_add_epi32(acc, _mm256_madd_epi16(wide, query));
#endif
}
inline float reduce_add(IntVec x) {
  const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
  return static_cast<float>(_mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1))));
}
inline void sum_rows8(const IntVec (&rows)[8], float* out) {
  const __m256i ab =
      _mm256_hadd_epi32(_mm256_hadd_epi32(rows[0], rows[1]), _mm256_hadd_epi32(rows[2], rows[3]));
  const __m256i cd =
      _mm256_hadd_epi32(_mm256_hadd_epi32(rows[4], rows[5]), _mm256_hadd_epi32(rows[6], rows[7]));
  _mm256_storeu_ps(out, _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_permute2x128_si256(ab, cd, 0x20),
                                                            _mm256_permute2x128_si256(ab, cd, 0x31))));
}

}  // namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE
