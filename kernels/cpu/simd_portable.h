// Plain C++ in place of vectors: for any machine, and the check that the kernels do not lean on an
// instruction set. Included through simd.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "kernels/half.h"

namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE {

constexpr int kLanes = 8;

template <typename T>
struct Lanes {
  T lane[kLanes];
};
using Vec = Lanes<float>;

template <typename F>
inline Vec map_lanes(F f) {
  Vec out;
  for (int i = 0; i < kLanes; ++i) out.lane[i] = f(i);
  return out;
}

inline Vec splat(float x) {
  return map_lanes([=](int) { return x; });
}
inline Vec zero() { return splat(0.0F); }
template <typename T>
inline Vec load(const T* p) {
  return map_lanes([=](int i) { return to_float(p[i]); });
}
inline Vec load(const std::int8_t* p) {
  return map_lanes([=](int i) { return static_cast<float>(p[i]); });
}
inline void store(float* p, const Vec& x) {
  for (int i = 0; i < kLanes; ++i) p[i] = x.lane[i];
}

inline Vec add(const Vec& a, const Vec& b) {
  return map_lanes([&](int i) { return a.lane[i] + b.lane[i]; });
}
inline Vec sub(const Vec& a, const Vec& b) {
  return map_lanes([&](int i) { return a.lane[i] - b.lane[i]; });
}
inline Vec mul(const Vec& a, const Vec& b) {
  return map_lanes([&](int i) { return a.lane[i] * b.lane[i]; });
}
inline Vec div(const Vec& a, const Vec& b) {
  return map_lanes([&](int i) { return a.lane[i] / b.lane[i]; });
}
inline Vec fma(const Vec& a, const Vec& b, const Vec& c) {
  return map_lanes([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
}
inline Vec max(const Vec& a, const Vec& b) {
  return map_lanes([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline Vec absolute(const Vec& x) {
  return map_lanes([&](int i) { return std::fabs(x.lane[i]); });
}
inline void transpose(Vec (&rows)[kLanes]) {
  for (int i = 0; i < kLanes; ++i)
    for (int j = 0; j < i; ++j) std::swap(rows[i].lane[j], rows[j].lane[i]);
}
inline float reduce_add(const Vec& x) {
  float sum = 0.0F;
  for (const float value : x.lane) sum += value;
  return sum;
}
inline float reduce_max(const Vec& x) {
  float most = x.lane[0];
  for (const float value : x.lane) most = value > most ? value : most;
  return most;
}

inline Vec round_to_even(const Vec& x) {
  return map_lanes([&](int i) { return std::nearbyint(x.lane[i]); });
}
inline Vec exp2_scale(const Vec& x, const Vec& n) {
  return map_lanes([&](int i) {
    if (!(n.lane[i] >= -126.0F)) return x.lane[i] * n.lane[i];  // out of use or NaN, which stays
    return x.lane[i] *
           std::bit_cast<float>(static_cast<std::uint32_t>(static_cast<int>(n.lane[i]) + 127) << 23);
  });
}
inline Vec keep_if_not_less(const Vec& x, const Vec& a, const Vec& b) {
  return map_lanes([&](int i) { return a.lane[i] < b.lane[i] ? 0.0F : x.lane[i]; });
}

// out[i] = reduce_add(rows[i]), to the bit.
inline void sum_rows8(const Vec (&rows)[8], float* out) {
  for (int i = 0; i < 8; ++i) out[i] = reduce_add(rows[i]);
}

inline void quantize(const Vec& x, std::int8_t* codes) {
  for (int i = 0; i < kLanes; ++i) {
    const float rounded = std::nearbyint(x.lane[i]);
    const float clamped = rounded > 127.0F ? 127.0F : (rounded >= -127.0F ? rounded : -127.0F);
    codes[i] = static_cast<std::int8_t>(clamped);
  }
}
inline void quantize(const Vec& x, std::int16_t* codes) {
  for (int i = 0; i < kLanes; ++i) {
    const float rounded = std::nearbyint(x.lane[i]);
    codes[i] = static_cast<std::int16_t>(rounded >= -32767.0F && rounded <= 32767.0F ? rounded : 0.0F);
  }
}

// Integer dot products of 16-bit queries with 8-bit rows, kIntLanes products at a time.
struct IntVec {
  std::int32_t lane[8];
};
constexpr int kIntLanes = 8;

inline IntVec int_zero() { return {}; }
inline IntVec int_dot(IntVec acc, const std::int16_t* q, const std::int8_t* row) {
  for (int i = 0; i < kIntLanes; ++i) acc.lane[i] += std::int32_t{q[i]} * row[i];
  return acc;
}
inline float reduce_add(const IntVec& x) {
  std::int32_t sum = 0;
  for (const std::int32_t value : x.lane) sum += value;
  return static_cast<float>(sum);
}
inline void sum_rows8(const IntVec (&rows)[8], float* out) {
  for (int i = 0; i < 8; ++i) out[i] = reduce_add(rows[i]);
}

// The same with the codes in a register for several rows of 16-bit values, and sums that stay integers.
using CodeSum = IntVec;
struct CodeVec {
  const std::int8_t* codes;
};
constexpr int kCodeLanes = kIntLanes;

inline CodeSum code_zero() { return {}; }
inline CodeVec load_codes(const std::int8_t* codes) { return {codes}; }
inline CodeSum code_dot(const CodeSum& acc, CodeVec codes, const std::int16_t* x) {
  return int_dot(acc, x, codes.codes);
}
inline CodeSum add(CodeSum a, const CodeSum& b) {
  for (int i = 0; i < kIntLanes; ++i) a.lane[i] += b.lane[i];
  return a;
}

// Bytes: four for each lane, or four values again and again.
struct ByteVec {
  std::int8_t byte[4 * kLanes];
};
inline ByteVec load_bytes(const std::uint8_t* codes) {
  ByteVec out;
  std::memcpy(out.byte, codes, sizeof(out.byte));
  return out;
}
// The first `count` (4 * kLanes at most), then zeros.
inline ByteVec load_bytes(const std::uint8_t* codes, std::int64_t count) {
  ByteVec out = {};
  std::copy_n(codes, std::min<std::int64_t>(count, sizeof(out.byte)), out.byte);
  return out;
}
inline void store(std::uint8_t* codes, const ByteVec& bytes) {
  std::memcpy(codes, bytes.byte, sizeof(bytes.byte));
}
// rows[i] becomes bytes 4 i to 4 i + 3 of each of the rows.
inline void transpose_quads(ByteVec (&rows)[kLanes]) {
  for (int i = 0; i < kLanes; ++i)
    for (int j = 0; j < i; ++j)
      std::swap_ranges(rows[i].byte + 4 * j, rows[i].byte + 4 * j + 4, rows[j].byte + 4 * i);
}

struct NibbleVec {
  ByteVec low, high;
};

inline NibbleVec load_nibbles(const std::uint8_t* codes) {
  NibbleVec out;
  for (int i = 0; i < 4 * kLanes; ++i) {
    out.low.byte[i] = static_cast<std::int8_t>(codes[i] & 15);
    out.high.byte[i] = static_cast<std::int8_t>(codes[i] >> 4);
  }
  return out;
}
inline ByteVec load_quad(const std::int8_t* values) {
  ByteVec out;
  for (int i = 0; i < 4 * kLanes; ++i) out.byte[i] = values[i % 4];
  return out;
}
using GroupSum = IntVec;
inline GroupSum begin_group(std::int32_t start) {
  GroupSum sum;
  for (std::int32_t& lane : sum.lane) lane = start;
  return sum;
}
inline GroupSum group_dot(GroupSum acc, const ByteVec& codes, const ByteVec& values) {
  for (int i = 0; i < 4 * kLanes; ++i) acc.lane[i / 4] += codes.byte[i] * values.byte[i];
  return acc;
}
inline Vec end_group(const GroupSum& sum, std::int32_t /*start*/) {
  return map_lanes([&](int i) { return static_cast<float>(sum.lane[i]); });
}

// Weighted sums of 8-bit rows: acc[j] holds kPairChannels channels; weights are 16-bit pairs, one of each
// row.
constexpr int kPairChannels = 8;

inline IntVec pair_weights(std::int16_t first, std::int16_t second) { return {{first, second}}; }
template <int kChannels>
inline void add_row_pair(const std::int8_t* first, const std::int8_t* second, const IntVec& weights,
                         IntVec* acc) {
  for (int d = 0; d < kChannels; ++d)
    acc[d / kPairChannels].lane[d % kPairChannels] +=
        weights.lane[0] * first[d] + weights.lane[1] * second[d];
}
// out[0 .. kPairChannels) = acc * scale.
inline void store_scaled(float* out, const IntVec& acc, float scale) {
  for (int i = 0; i < kPairChannels; ++i) out[i] = static_cast<float>(acc.lane[i]) * scale;
}

}  // namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE
