// What the AVX2 and the AVX-512 vectors share: 256-bit lane sums and integer dot products.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

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

// out[i] = reduce_add(rows[i]), to the bit.
inline void sum_rows8(const __m256 (&rows)[8], float* out) {
  __m256 four[4];  // of rows i and i + 4
  for (int i = 0; i < 4; ++i)
    four[i] = _mm256_add_ps(_mm256_permute2f128_ps(rows[i], rows[i + 4], 0x20),
                            _mm256_permute2f128_ps(rows[i], rows[i + 4], 0x31));
  __m256 two[2];  // of rows 2i, 2i + 1, 2i + 4 and 2i + 5
  for (int i = 0; i < 2; ++i)
    two[i] = _mm256_add_ps(_mm256_shuffle_ps(four[2 * i], four[2 * i + 1], 0x44),
                           _mm256_shuffle_ps(four[2 * i], four[2 * i + 1], 0xEE));
  _mm256_storeu_ps(
      out, _mm256_add_ps(_mm256_shuffle_ps(two[0], two[1], 0x88), _mm256_shuffle_ps(two[0], two[1], 0xDD)));
}

// Integer dot products of 16-bit queries with 8-bit rows, kIntLanes products at a time. 256 bits also on
// AVX-512, for head sizes that no wider vector divides: they are multiples of 16.
// By its elements, not as __m256i: GCC 12 copies a sum at each multiply_pairs if its type changes there.
using IntVec = __v8si;
constexpr int kIntLanes = 16;

inline IntVec int_zero() { return IntVec{}; }

// acc + the sums of neighbouring 16-bit products.
inline IntVec multiply_pairs(IntVec acc, __m256i a, __m256i b) {
#if defined(__AVX512VNNI__)
  return IntVec(_mm256_dpwssd_epi32(__m256i(acc), a, b));
#elif defined(__AVXVNNI__)
  return IntVec(_mm256_dpwssd_avx_epi32(__m256i(acc), a, b));
#else
  return acc + IntVec(_mm256_madd_epi16(a, b));
#endif
}

inline IntVec int_dot(IntVec acc, const std::int16_t* q, const std::int8_t* row) {
  const __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row)));
  return multiply_pairs(acc, wide, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(q)));
}
inline float reduce_add(IntVec x) {
  const __m128i four =
      _mm_add_epi32(_mm256_castsi256_si128(__m256i(x)), _mm256_extracti128_si256(__m256i(x), 1));
  const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
  return static_cast<float>(_mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1))));
}
inline void sum_rows8(const IntVec (&rows)[8], float* out) {
  const auto add_neighbours = [&](int i) {
    return _mm256_hadd_epi32(__m256i(rows[i]), __m256i(rows[i + 1]));
  };
  const __m256i ab = _mm256_hadd_epi32(add_neighbours(0), add_neighbours(2));
  const __m256i cd = _mm256_hadd_epi32(add_neighbours(4), add_neighbours(6));
  _mm256_storeu_ps(out, _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_permute2x128_si256(ab, cd, 0x20),
                                                            _mm256_permute2x128_si256(ab, cd, 0x31))));
}

// Four bytes.
template <typename Byte>
std::int32_t bits_of_quad(const Byte* values) {
  std::int32_t four;
  std::memcpy(&four, values, sizeof(four));
  return four;
}

// Weighted sums of 8-bit rows: acc[j] holds kPairChannels channels; weights are 16-bit pairs, one of each
// row.
constexpr int kPairChannels = 8;

inline IntVec pair_weights(std::int16_t first, std::int16_t second) {
  return IntVec(
      _mm256_set1_epi32(static_cast<int>((static_cast<unsigned>(static_cast<std::uint16_t>(second)) << 16) |
                                         static_cast<std::uint16_t>(first))));
}
template <int kChannels>
inline void add_row_pair(const std::int8_t* first, const std::int8_t* second, IntVec weights, IntVec* acc) {
  for (int d = 0; d < kChannels; d += 2 * kPairChannels) {
    const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(first + d));
    const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(second + d));
    IntVec* out = acc + d / kPairChannels;
    out[0] = multiply_pairs(out[0], _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(a, b)), __m256i(weights));
    out[1] = multiply_pairs(out[1], _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(a, b)), __m256i(weights));
  }
}
// out[0 .. kPairChannels) = acc * scale.
inline void store_scaled(float* out, IntVec acc, float scale) {
  _mm256_storeu_ps(out, _mm256_mul_ps(_mm256_cvtepi32_ps(__m256i(acc)), _mm256_set1_ps(scale)));
}

}  // namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE
