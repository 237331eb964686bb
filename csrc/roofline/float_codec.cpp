#include "csrc/roofline/float_codec.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace kvfuse::roofline {
namespace {

// A format of sign, exponent and mantissa with subnormals, described as IEEE 754 describes its own.
struct Format {
  int exponent_bits;
  int mantissa_bits;
  constexpr int bias() const { return (1 << (exponent_bits - 1)) - 1; }
};

constexpr Format kHalf = {5, 10};
constexpr Format kE4m3 = {4, 3};
constexpr Format kE2m1 = {2, 1};

// The code of a magnitude, rounded to nearest even; it may exceed the format's largest.
std::uint32_t magnitude_code(float magnitude, Format format) {
  if (magnitude == 0) return 0;
  // Values below the smallest normal one share its spacing.
  const int exponent = std::max(std::ilogb(magnitude), 1 - format.bias());
  const double steps = std::ldexp(static_cast<double>(magnitude), format.mantissa_bits - exponent);
  const auto rounded = static_cast<std::uint32_t>(std::nearbyint(steps));
  // A subnormal has no leading one, and carries into the exponent by itself if it rounds up to normal.
  return (static_cast<std::uint32_t>(exponent + format.bias() - 1) << format.mantissa_bits) + rounded;
}

float magnitude_value(std::uint32_t code, Format format) {
  const std::uint32_t mantissa = code & ((1U << format.mantissa_bits) - 1);
  const int exponent = static_cast<int>(code >> format.mantissa_bits);
  const std::uint32_t leading = exponent > 0 ? 1U << format.mantissa_bits : 0;
  return std::ldexp(static_cast<float>(leading + mantissa),
                    std::max(exponent, 1) - format.bias() - format.mantissa_bits);
}

}  // namespace

std::uint16_t fp16_encode(float value) {
  constexpr std::uint32_t kInfinity = 0x7c00;
  constexpr std::uint32_t kNan = 0x7e00;
  const std::uint32_t sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(value)) return static_cast<std::uint16_t>(sign | kNan);
  // From here on everything rounds beyond the largest finite half.
  if (std::fabs(value) >= 65536.0F) return static_cast<std::uint16_t>(sign | kInfinity);
  return static_cast<std::uint16_t>(sign | magnitude_code(std::fabs(value), kHalf));
}

float fp16_decode(std::uint16_t code) {
  const std::uint32_t magnitude = code & 0x7fffU;
  float value = 0;
  if (magnitude < 0x7c00)
    value = magnitude_value(magnitude, kHalf);
  else
    value = magnitude == 0x7c00 ? std::numeric_limits<float>::infinity()
                                : std::numeric_limits<float>::quiet_NaN();
  return (code & 0x8000U) != 0 ? -value : value;
}

std::uint16_t bf16_encode(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if (std::isnan(value)) return static_cast<std::uint16_t>((bits >> 16) | 0x40);  // stays a quiet NaN
  const std::uint32_t odd = (bits >> 16) & 1;
  return static_cast<std::uint16_t>((bits + 0x7fff + odd) >> 16);
}

float bf16_decode(std::uint16_t code) { return std::bit_cast<float>(static_cast<std::uint32_t>(code) << 16); }

std::uint8_t e4m3_encode(float value) {
  const std::uint8_t sign = std::signbit(value) ? 0x80 : 0;
  if (std::isnan(value)) return sign | 0x7f;
  return sign | static_cast<std::uint8_t>(magnitude_code(std::fmin(std::fabs(value), kE4m3Max), kE4m3));
}

float e4m3_decode(std::uint8_t code) {
  const std::uint32_t magnitude = code & 0x7fU;
  const float value =
      magnitude == 0x7f ? std::numeric_limits<float>::quiet_NaN() : magnitude_value(magnitude, kE4m3);
  return (code & 0x80U) != 0 ? -value : value;
}

std::uint8_t e2m1_encode(float value) {
  const std::uint8_t sign = std::signbit(value) ? 0x8 : 0;
  return sign | static_cast<std::uint8_t>(magnitude_code(std::fmin(std::fabs(value), kE2m1Max), kE2m1));
}

float e2m1_decode(std::uint8_t code) {
  const float value = magnitude_value(code & 0x7U, kE2m1);
  return (code & 0x8U) != 0 ? -value : value;
}

}  // namespace kvfuse::roofline
