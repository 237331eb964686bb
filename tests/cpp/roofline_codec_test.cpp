// The number formats against their definitions: every code of the small ones, and rounding by search.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <random>

#include "csrc/roofline/block_codec.h"
#include "csrc/roofline/float_codec.h"
#include "tests/cpp/error_of.h"

namespace kvfuse::roofline {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Code {
  float value;
  int code;
};

TEST(FloatCodec, Fp16) {
  const Code codes[] = {
      {0.0F, 0x0000},     {1.0F, 0x3c00},       {-2.0F, 0xc000},        {0.5F, 0x3800},
      {65504.0F, 0x7bff}, {65519.0F, 0x7bff},   {65520.0F, 0x7c00},     {1e30F, 0x7c00},
      {-1e30F, 0xfc00},   {kInfinity, 0x7c00},  {0x1p-14F, 0x0400},     {0x1p-24F, 0x0001},
      {0x1p-25F, 0x0000}, {0x1.8p-25F, 0x0001}, {1.0F / 3, 0x3555},     {-0.0F, 0x8000},
      {2049.0F, 0x6800},  {2051.0F, 0x6802},    {0x1.ff8p-15F, 0x03ff}, {0x1.ffcp-15F, 0x0400}};
  for (const Code& c : codes) EXPECT_EQ(fp16_encode(c.value), c.code) << c.value;
  EXPECT_TRUE(std::isnan(fp16_decode(fp16_encode(std::nanf("")))));
}

TEST(FloatCodec, Bf16) {
  const Code codes[] = {{1.0F, 0x3f80},      {-1.0F, 0xbf80},         {0x1.01p0F, 0x3f80},
                        {0x1.03p0F, 0x3f82}, {0x1.010002p0F, 0x3f81}, {3.38953139e38F, 0x7f7f},
                        {3.4e38F, 0x7f80},   {kInfinity, 0x7f80}};
  for (const Code& c : codes) EXPECT_EQ(bf16_encode(c.value), c.code) << c.value;
  EXPECT_TRUE(std::isnan(bf16_decode(bf16_encode(std::bit_cast<float>(0x7f800001U)))));
}

TEST(FloatCodec, E4m3) {
  const Code codes[] = {{0.0F, 0x00},    {1.0F, 0x38},      {-1.0F, 0xb8},      {448.0F, 0x7e},
                        {1000.0F, 0x7e}, {kInfinity, 0x7e}, {-kInfinity, 0xfe}, {0x1p-6F, 0x08},
                        {0x1p-9F, 0x01}, {0x1p-10F, 0x00},  {0x1.8p-10F, 0x01}, {0x1.cp-7F, 0x07},
                        {1.0625F, 0x38}, {1.1875F, 0x3a},   {240.0F, 0x77},     {-0.0F, 0x80}};
  for (const Code& c : codes) EXPECT_EQ(e4m3_encode(c.value), c.code) << c.value;
  EXPECT_EQ(e4m3_encode(std::nanf("")) & 0x7f, 0x7f);
  EXPECT_TRUE(std::isnan(e4m3_decode(0x7f)));
}

TEST(FloatCodec, E2m1) {
  const Code codes[] = {{0.0F, 0}, {0.25F, 0}, {0.26F, 1}, {0.5F, 1},  {0.75F, 2},  {1.0F, 2},  {1.25F, 2},
                        {1.5F, 3}, {1.75F, 4}, {2.0F, 4},  {2.5F, 4},  {3.0F, 5},   {3.5F, 6},  {4.0F, 6},
                        {5.0F, 6}, {5.1F, 7},  {6.0F, 7},  {99.0F, 7}, {-3.0F, 13}, {-0.5F, 9}, {-99.0F, 15}};
  for (const Code& c : codes) EXPECT_EQ(e2m1_encode(c.value), c.code) << c.value;
  const float values[] = {0, 0.5F, 1, 1.5F, 2, 3, 4, 6};
  for (int code = 0; code < 8; ++code) {
    EXPECT_EQ(e2m1_decode(static_cast<std::uint8_t>(code)), values[code]);
    EXPECT_EQ(e2m1_decode(static_cast<std::uint8_t>(code + 8)), -values[code]);
  }
}

// The value of a code by the definition of the format, in double.
double by_definition(int code, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int mantissa = code & ((1 << mantissa_bits) - 1);
  const int exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const double sign = code >> (mantissa_bits + exponent_bits) != 0 ? -1 : 1;
  const double fraction = mantissa / std::exp2(mantissa_bits);
  if (exponent == 0) return sign * fraction * std::exp2(1 - bias);
  return sign * (1 + fraction) * std::exp2(exponent - bias);
}

TEST(FloatCodec, EveryCodeHasItsValueAndComesBack) {
  for (int code = 0; code < 0x10000; ++code) {
    if (((code >> 10) & 0x1f) == 0x1f) continue;
    ASSERT_EQ(fp16_decode(static_cast<std::uint16_t>(code)), by_definition(code, 5, 10)) << code;
    ASSERT_EQ(fp16_encode(fp16_decode(static_cast<std::uint16_t>(code))), code);
  }
  for (int code = 0; code < 0x100; ++code) {
    if ((code & 0x7f) == 0x7f) continue;
    EXPECT_EQ(e4m3_decode(static_cast<std::uint8_t>(code)), by_definition(code, 4, 3)) << code;
    EXPECT_EQ(e4m3_encode(e4m3_decode(static_cast<std::uint8_t>(code))), code);
  }
  for (int code = 0; code < 0x10000; ++code) {
    const float value = bf16_decode(static_cast<std::uint16_t>(code));
    if (!std::isfinite(value)) continue;
    ASSERT_EQ(bf16_encode(value), code);
  }
}

// No other code lies nearer, and of two as near the even one is taken.
template <typename Encode, typename Decode>
void expect_nearest(Encode&& encode, Decode&& decode, int codes, float most, int exponent_range) {
  std::mt19937 random(3);
  std::uniform_real_distribution<float> mantissa(-2, 2);
  for (int i = 0; i < 2000; ++i) {
    const float value = std::clamp(
        std::ldexp(mantissa(random), static_cast<int>(random() % exponent_range) - exponent_range / 2), -most,
        most);
    const int got = encode(value);
    const double distance = std::fabs(static_cast<double>(decode(got)) - value);
    for (int code = 0; code < codes; ++code) {
      const double other = decode(code);
      if (std::isnan(other) || std::isinf(other)) continue;
      ASSERT_LE(distance, std::fabs(other - value)) << value << " code " << code;
      if (std::fabs(other - value) != distance || other == decode(got)) continue;
      ASSERT_EQ(got % 2, 0) << value;
    }
  }
}

TEST(FloatCodec, RoundsToTheNearest) {
  expect_nearest([](float x) { return e4m3_encode(x); },
                 [](int code) { return e4m3_decode(static_cast<std::uint8_t>(code)); }, 256, kE4m3Max, 22);
  expect_nearest([](float x) { return e2m1_encode(x); },
                 [](int code) { return e2m1_decode(static_cast<std::uint8_t>(code)); }, 16, kE2m1Max, 6);
}

// --- Matrices ---

std::vector<float> normal_values(std::size_t count) {
  std::mt19937 random(11);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

TEST(BlockCodec, Int8ByHand) {
  const std::vector<float> values = {127, -127, 1.4F, 0.5F, 0, 0, 0, 0};
  const EncodedMatrix matrix = encode(values, 2, 4, Precision::kInt8);
  EXPECT_EQ(matrix.scales, (std::vector<float>{1, 0}));  // a row of zeros has scale 0
  EXPECT_EQ(matrix.codes, (std::vector<std::uint8_t>{127, 129, 1, 0, 0, 0, 0, 0}));
  EXPECT_EQ(decode(matrix), (std::vector<float>{127, -127, 1, 0, 0, 0, 0, 0}));
  EXPECT_EQ(matrix.stored_bytes(), 8 + 2 * 4);
}

TEST(BlockCodec, Int4ByHand) {
  // scale 14 / 7 = 2, exact in half precision; 3 columns are 2 bytes a row
  const EncodedMatrix matrix = encode(std::vector<float>{14, -5, 3, -14, 1, 0}, 2, 3, Precision::kInt4);
  EXPECT_EQ(matrix.scales, (std::vector<float>{2, 2}));
  EXPECT_EQ(decode(matrix), (std::vector<float>{14, -4, 4, -14, 0, 0}));  // -2.5 and 0.5 round to even
  EXPECT_EQ(matrix.codes, (std::vector<std::uint8_t>{0xe7, 0x02, 0x09, 0x00}));
  EXPECT_EQ(matrix.stored_bytes(), 4 + 2 * 2);
}

TEST(BlockCodec, Nvfp4ByHand) {
  // absmax 2688 makes the tensor's scale 1; blocks of 16 with absmax 2688 and 12 have scales 448 and 2
  std::vector<float> values(32, 0.0F);
  values[0] = 2688;
  values[1] = -448;
  values[16] = 12;
  values[17] = 3;
  values[18] = -1;
  const EncodedMatrix matrix = encode(values, 1, 32, Precision::kNvfp4);
  EXPECT_EQ(matrix.tensor_scale, 1);
  EXPECT_EQ(matrix.scales, (std::vector<float>{448, 2}));
  std::vector<float> want(32, 0.0F);
  want[0] = 2688;
  want[1] = -448;
  want[16] = 12;
  want[17] = 3;
  want[18] = -1;
  EXPECT_EQ(decode(matrix), want);
  EXPECT_EQ(matrix.stored_bytes(), 16 + 2);
}

TEST(BlockCodec, Fp8ByHand) {
  const EncodedMatrix matrix = encode(std::vector<float>{896, 2, -1, 2.125F}, 1, 4, Precision::kFp8);
  EXPECT_EQ(matrix.tensor_scale, 2);
  EXPECT_EQ(decode(matrix), (std::vector<float>{896, 2, -1, 2}));  // 1.0625 is as far from 1 as from 1.125
}

TEST(BlockCodec, StoresWhatMatrixBytesSays) {
  const std::vector<float> values = normal_values(6 * 256);
  for (const Precision precision : kAllPrecisions)
    EXPECT_EQ(static_cast<double>(encode(values, 6, 256, precision).stored_bytes()),
              matrix_bytes(precision, 6, 256))
        << precision_name(precision);
}

TEST(BlockCodec, ErrorsStayWithinTheFormatsSteps) {
  const std::vector<float> values = normal_values(64 * 128);
  // Half a step of the coarsest kind, over the root mean square: 1/16 of a value for FP8's 3 bits; absmax/254
  // for INT8; and so on, with room for the absmax of a normal row of 128, about 3.
  const std::pair<Precision, double> bounds[] = {
      {Precision::kFp32, 0},    {Precision::kFp16, 5e-4},  {Precision::kBf16, 4e-3}, {Precision::kFp8, 0.04},
      {Precision::kInt8, 0.01}, {Precision::kNvfp4, 0.13}, {Precision::kInt4, 0.16}};
  for (const auto& [precision, bound] : bounds) {
    const CodecQuality quality = measure_quality(values, 64, 128, precision);
    EXPECT_LE(quality.relative_rms_error, bound) << precision_name(precision);
    if (bound == 0) continue;
    EXPECT_GT(quality.relative_rms_error, bound / 5) << precision_name(precision);
    EXPECT_NEAR(quality.signal_to_noise_db, -20 * std::log10(quality.relative_rms_error), 1e-9);
  }
}

TEST(BlockCodec, EncodingTwiceChangesNothing) {
  const std::vector<float> values = normal_values(8 * 64);
  for (const Precision precision : {Precision::kFp16, Precision::kBf16, Precision::kFp8, Precision::kFp32}) {
    const std::vector<float> once = decode(encode(values, 8, 64, precision));
    EXPECT_EQ(decode(encode(once, 8, 64, precision)), once) << precision_name(precision);
  }
}

TEST(BlockCodec, ExtremesStayFinite) {
  for (const Precision precision : {Precision::kFp8, Precision::kInt8, Precision::kInt4, Precision::kNvfp4})
    for (const float value : {3e38F, 1e-38F, 1e-45F, 70000.0F, 0.0F}) {
      const std::vector<float> values = {value, -value, value / 2, 0};
      for (const float got : decode(encode(values, 1, 4, precision)))
        EXPECT_TRUE(std::isfinite(got)) << precision_name(precision) << " of " << value;
    }
  EXPECT_TRUE(decode(encode({}, 0, 16, Precision::kNvfp4)).empty());
}

TEST(BlockCodec, RefusesWhatItCannotEncode) {
  EXPECT_EQ(error_of([] {
              encode(std::vector<float>{1, 2, 3}, 2, 2, Precision::kInt8);
            }),
            "roofline: encode: expected rows * columns = 4 values, got 3");
  EXPECT_EQ(error_of([] {
              encode(std::vector<float>{1, std::nanf("")}, 1, 2, Precision::kFp16);
            }),
            "roofline: encode: expected finite values, got nan at index 1");
  EXPECT_EQ(error_of([] { encode(std::vector<float>{-kInfinity}, 1, 1, Precision::kNvfp4); }),
            "roofline: encode: expected finite values, got -inf at index 0");
  EXPECT_EQ(error_of([] { encode({}, -1, 1, Precision::kFp8); }),
            "roofline: expected 0 <= rows <= 2147483648, got -1");
}

struct NameCase {
  const char* name;
  Precision precision;
};

TEST(Precisions, Names) {
  const NameCase names[] = {{"fp32", Precision::kFp32},     {"float32", Precision::kFp32},
                            {"FP16", Precision::kFp16},     {"half", Precision::kFp16},
                            {"bfloat16", Precision::kBf16}, {"FP8_E4M3", Precision::kFp8},
                            {"fp8-e4m3", Precision::kFp8},  {"INT8", Precision::kInt8},
                            {"int4", Precision::kInt4},     {"NVFP4", Precision::kNvfp4}};
  for (const NameCase& c : names) EXPECT_EQ(parse_precision(c.name), c.precision) << c.name;
  EXPECT_EQ(
      error_of([] { parse_precision("fp9"); }),
      "roofline: precision: expected one of fp32, fp16, bf16, fp8, int8, int4, nvfp4, got \"fp9\" (did you "
      "mean fp8?)");
}

TEST(Precisions, BytesAnElement) {
  const double bytes[] = {4, 2, 2, 1, 1, 0.515625, 0.5625};
  for (const Precision precision : kAllPrecisions)
    EXPECT_EQ(precision_info(precision).bytes_per_element(), bytes[static_cast<int>(precision)]);
  EXPECT_EQ(matrix_bytes(Precision::kNvfp4, 3, 17), 3 * (17 * 0.5 + 2));  // the last block has one value
  EXPECT_EQ(matrix_bytes(Precision::kInt8, 3, 17), 3 * (17 + 4));
  EXPECT_EQ(matrix_bytes(Precision::kInt4, 2, 129), 2 * (64.5 + 2 * 2));
  EXPECT_EQ(matrix_bytes(Precision::kInt4, 2, 129, Accounting::kPayloadOnly), 129);
}

}  // namespace
}  // namespace kvfuse::roofline
