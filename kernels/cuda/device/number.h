// Numbers: conversions of the storage types, packed half arithmetic, byte tricks. A packed pair is a
// std::uint32_t whose low half is the even element. Every rounding is to nearest, ties to even, unless said.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/device/platform.h"
#include "kernels/half.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#else
#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#endif

namespace kvfuse::cuda {

#ifdef __CUDACC__

KVFUSE_DEVICE __half2 as_half2(std::uint32_t bits) { return *reinterpret_cast<const __half2*>(&bits); }
KVFUSE_DEVICE std::uint32_t as_bits(__half2 value) { return *reinterpret_cast<const std::uint32_t*>(&value); }

template <class T>
KVFUSE_DEVICE float to_f32(T x) {
  if constexpr (std::is_same_v<T, Float16>) {
    return __half2float(__ushort_as_half(x.bits));
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    return __uint_as_float(std::uint32_t{x.bits} << 16);
  } else {
    static_assert(std::is_same_v<T, float>);
    return x;
  }
}

template <class T>
KVFUSE_DEVICE T from_f32(float x) {
  if constexpr (std::is_same_v<T, Float16>) {
    return {__half_as_ushort(__float2half_rn(x))};
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
  } else {
    static_assert(std::is_same_v<T, float>);
    return x;
  }
}

KVFUSE_DEVICE std::uint32_t half2_fma(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  return as_bits(__hfma2(as_half2(a), as_half2(b), as_half2(c)));
}

// The _rn forms: the compiler must not contract a product and a sum into one rounding.
KVFUSE_DEVICE std::uint32_t half2_mul(std::uint32_t a, std::uint32_t b) {
  return as_bits(__hmul2_rn(as_half2(a), as_half2(b)));
}
KVFUSE_DEVICE std::uint32_t half2_add(std::uint32_t a, std::uint32_t b) {
  return as_bits(__hadd2_rn(as_half2(a), as_half2(b)));
}
KVFUSE_DEVICE std::uint32_t half2_sub(std::uint32_t a, std::uint32_t b) {
  return as_bits(__hsub2_rn(as_half2(a), as_half2(b)));
}

template <class T>
KVFUSE_DEVICE std::uint32_t pack2(float low, float high) {
  if constexpr (std::is_same_v<T, Float16>) {
    return as_bits(__floats2half2_rn(low, high));
  } else {
    static_assert(std::is_same_v<T, BFloat16>);
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const std::uint32_t*>(&pair);
  }
}

// 2^x to about 2 units in the last place; subnormal arguments and results count as zero.
KVFUSE_DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The nearest float with a 10-bit fraction, ties away from zero: what the tensor cores read as tf32.
KVFUSE_DEVICE float round_to_tf32(float x) {
  std::uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits & 0xffffe000U);  // PTX leaves the low bits open
}

// Saturates; NaN gives 0.
KVFUSE_DEVICE int round_to_int(float x) { return __float2int_rn(x); }

// c plus the dot product of the four signed bytes of a and b.
KVFUSE_DEVICE int dp4a(int a, int b, int c) { return __dp4a(a, b, c); }

// PTX prmt: each selector nibble takes one of the eight bytes of (b, a), or with bit 3 set its sign spread
// over the byte.
KVFUSE_DEVICE std::uint32_t byte_permute(std::uint32_t a, std::uint32_t b, std::uint32_t selector) {
  std::uint32_t result;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(selector));
  return result;
}

#else

template <class T>
float to_f32(T x) {
  return to_float(x);
}

template <class T>
T from_f32(float x) {
  return from_float<T>(x);
}

KVFUSE_DEVICE Float16 low_half(std::uint32_t pair) { return {static_cast<std::uint16_t>(pair)}; }
KVFUSE_DEVICE Float16 high_half(std::uint32_t pair) { return {static_cast<std::uint16_t>(pair >> 16)}; }

template <class T>
std::uint32_t pack2(float low, float high) {
  return from_float<T>(low).bits | std::uint32_t{from_float<T>(high).bits} << 16;
}

// As a float; if inexact, the neighbour with the odd fraction: rounding that to half rounds the value only
// once.
KVFUSE_DEVICE float round_to_odd(double x) {
  const float nearest = static_cast<float>(x);
  if (!std::isfinite(nearest) || nearest == x || (std::bit_cast<std::uint32_t>(nearest) & 1) != 0)
    return nearest;
  return std::nextafter(nearest, x > nearest ? HUGE_VALF : -HUGE_VALF);
}

// The product is exact in double. The sum need not be, but then the product is too small to bring it near a
// tie.
KVFUSE_DEVICE float half_fma(Float16 a, Float16 b, Float16 c) {
  return round_to_odd(double{to_float(a)} * to_float(b) + to_float(c));
}

KVFUSE_DEVICE std::uint32_t half2_fma(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  return pack2<Float16>(half_fma(low_half(a), low_half(b), low_half(c)),
                        half_fma(high_half(a), high_half(b), high_half(c)));
}

// Products and sums of halves in float: 24 bits are enough (2 * 11 + 2) that rounding twice rounds as once.
KVFUSE_DEVICE std::uint32_t half2_mul(std::uint32_t a, std::uint32_t b) {
  return pack2<Float16>(to_float(low_half(a)) * to_float(low_half(b)),
                        to_float(high_half(a)) * to_float(high_half(b)));
}
KVFUSE_DEVICE std::uint32_t half2_add(std::uint32_t a, std::uint32_t b) {
  return pack2<Float16>(to_float(low_half(a)) + to_float(low_half(b)),
                        to_float(high_half(a)) + to_float(high_half(b)));
}
KVFUSE_DEVICE std::uint32_t half2_sub(std::uint32_t a, std::uint32_t b) {
  return pack2<Float16>(to_float(low_half(a)) - to_float(low_half(b)),
                        to_float(high_half(a)) - to_float(high_half(b)));
}

KVFUSE_DEVICE float exp2_approx(float x) {
  const float y = std::exp2(x);
  return y < FLT_MIN ? 0.0F : y;
}

KVFUSE_DEVICE float round_to_tf32(float x) {
  if (!std::isfinite(x)) return x;
  return std::bit_cast<float>((std::bit_cast<std::uint32_t>(x) + 0x1000U) & 0xffffe000U);
}

KVFUSE_DEVICE int round_to_int(float x) {
  if (std::isnan(x)) return 0;
  return static_cast<int>(std::clamp(std::nearbyint(double{x}), -2147483648.0, 2147483647.0));
}

KVFUSE_DEVICE int dp4a(int a, int b, int c) {
  std::uint32_t sum = static_cast<std::uint32_t>(c);  // wraps, as the instruction does
  for (int shift = 0; shift < 32; shift += 8)
    sum += static_cast<std::uint32_t>(static_cast<std::int8_t>(a >> shift) *
                                      static_cast<std::int8_t>(b >> shift));
  return static_cast<int>(sum);
}

KVFUSE_DEVICE std::uint32_t byte_permute(std::uint32_t a, std::uint32_t b, std::uint32_t selector) {
  const std::uint64_t bytes = std::uint64_t{b} << 32 | a;
  std::uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const std::uint32_t nibble = selector >> (4 * i) & 0xf;
    std::uint32_t byte = bytes >> (8 * (nibble & 7)) & 0xff;
    if ((nibble & 8) != 0) byte = (byte & 0x80) != 0 ? 0xff : 0;
    result |= byte << (8 * i);
  }
  return result;
}

#endif

template <class T>
KVFUSE_DEVICE float unpack_low(std::uint32_t pair) {
  return to_f32(T{static_cast<std::uint16_t>(pair)});
}
template <class T>
KVFUSE_DEVICE float unpack_high(std::uint32_t pair) {
  return to_f32(T{static_cast<std::uint16_t>(pair >> 16)});
}

KVFUSE_DEVICE std::uint32_t half2_pack(float low, float high) { return pack2<Float16>(low, high); }
KVFUSE_DEVICE std::uint32_t half2_splat(float x) { return pack2<Float16>(x, x); }
KVFUSE_DEVICE float half2_low(std::uint32_t pair) { return unpack_low<Float16>(pair); }
KVFUSE_DEVICE float half2_high(std::uint32_t pair) { return unpack_high<Float16>(pair); }

// Four int8 codes as two packed pairs (x: codes 0 and 1, y: codes 2 and 3), exact and without int-to-float
// conversions, which run at a quarter of the rate: code + 128 placed below the byte 0x64 is the half
// 1024 + 128 + code, and 1152 is 0x6480.
KVFUSE_DEVICE uint2 codes_to_half2(std::uint32_t four_codes) {
  const std::uint32_t biased = four_codes ^ 0x80808080U;
  const std::uint32_t low = half2_sub(byte_permute(biased, 0x64646464U, 0x4140U), 0x64806480U);
  const std::uint32_t high = half2_sub(byte_permute(biased, 0x64646464U, 0x4342U), 0x64806480U);
  return make_uint2(low, high);
}

}  // namespace kvfuse::cuda
