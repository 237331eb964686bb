// Single values in the small floating-point formats: to the nearest representable value, ties to the even
// code, as the formats' definitions ask.
#pragma once

#include <cstdint>

namespace kvfuse::roofline {

// IEEE 754 half. Overflow becomes infinity, NaN stays NaN.
std::uint16_t fp16_encode(float value);
float fp16_decode(std::uint16_t code);

// The upper half of a float32, rounded.
std::uint16_t bf16_encode(float value);
float bf16_decode(std::uint16_t code);

// FP8 E4M3 of the OCP specification: 4 exponent bits with bias 7, 3 mantissa bits, no infinity, largest value
// 448; S.1111.111 is NaN. What is larger, infinity included, becomes the largest value (saturation).
inline constexpr float kE4m3Max = 448;
std::uint8_t e4m3_encode(float value);
float e4m3_decode(std::uint8_t code);

// FP4 E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives, in the low four bits. Saturates; NaN, which the
// format lacks, is not allowed.
inline constexpr float kE2m1Max = 6;
std::uint8_t e2m1_encode(float value);
float e2m1_decode(std::uint8_t code);

}  // namespace kvfuse::roofline
