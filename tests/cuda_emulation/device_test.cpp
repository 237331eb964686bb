// The twins of the warp and number intrinsics, each against a plain reading of the PTX ISA.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "emulation_check.h"
#include "kernels/cuda/device/block.h"
#include "kernels/cuda/device/number.h"
#include "kernels/cuda/device/warp.h"

namespace kvfuse::cuda {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

void run_warp(const emulation::Body& body) { emulation::expect_runs(1, 32, 0, body); }

// ---- Warp.

template <class T>
struct Shuffles : testing::Test {};
using ShuffleTypes = testing::Types<float, int, unsigned>;
TYPED_TEST_SUITE(Shuffles, ShuffleTypes);

TYPED_TEST(Shuffles, TakeTheValueOfTheirSource) {
  using T = TypeParam;
  const auto value = [](int lane) { return static_cast<T>(lane * 37 + 5); };
  std::vector<std::array<T, 4>> got(32 * 32);
  run_warp([&] {
    const int lane = lane_id();
    for (int i = 0; i < 32; ++i)
      got[static_cast<std::size_t>(i * 32 + lane)] = {shuffle(value(lane), i + lane * 3),
                                                      shuffle_xor(value(lane), i), shuffle_up(value(lane), i),
                                                      shuffle_down(value(lane), i)};
  });
  for (int i = 0; i < 32; ++i) {
    for (int lane = 0; lane < 32; ++lane) {
      const std::array<T, 4> want = {value((i + lane * 3) % 32), value(lane ^ i),
                                     value(lane < i ? lane : lane - i),
                                     value(lane + i > 31 ? lane : lane + i)};
      EXPECT_EQ(got[static_cast<std::size_t>(i * 32 + lane)], want) << i << " " << lane;
    }
  }
}

TEST(Warp, BallotCollectsOneBitALane) {
  std::vector<unsigned> got;
  run_warp([&] { got.push_back(ballot(lane_id() % 5 == 1)); });
  unsigned want = 0;
  for (unsigned lane = 1; lane < 32; lane += 5) want |= 1U << lane;
  EXPECT_EQ(got, std::vector<unsigned>(32, want));
}

template <int kWidth>
void check_groups() {
  std::array<int, 32> sums{};
  std::array<int, 32> maxima{};
  std::array<float, 32> float_sums{};
  const auto value = [](int lane) { return (lane * 29 + 3) % 31 - 15; };
  run_warp([&] {
    const auto lane = static_cast<std::size_t>(lane_id());
    sums[lane] = group_sum<kWidth>(value(lane_id()));
    maxima[lane] = group_max<kWidth>(value(lane_id()));
    float_sums[lane] = group_sum<kWidth>(0.1F * static_cast<float>(value(lane_id())));
  });
  for (int first = 0; first < 32; first += kWidth) {
    int sum = 0;
    int maximum = -100;
    for (int lane = first; lane < first + kWidth; ++lane) {
      sum += value(lane);
      maximum = std::max(maximum, value(lane));
    }
    for (int lane = first; lane < first + kWidth; ++lane) {
      const auto i = static_cast<std::size_t>(lane);
      EXPECT_EQ(sums[i], sum);
      EXPECT_EQ(maxima[i], maximum);
      EXPECT_NEAR(float_sums[i], 0.1 * sum, 1e-4);
      EXPECT_EQ(float_sums[i], float_sums[static_cast<std::size_t>(first)]);  // the same bits in every lane
    }
  }
}

TEST(Warp, GroupsReduceApart) {
  check_groups<1>();
  check_groups<2>();
  check_groups<4>();
  check_groups<8>();
  check_groups<16>();
  check_groups<32>();
}

TEST(Warp, ReducesFloats) {
  std::vector<float> sums;
  std::vector<float> maxima;
  run_warp([&] {
    sums.push_back(warp_sum(static_cast<float>(lane_id())));
    maxima.push_back(warp_max(lane_id() == 9 ? kNaN : -static_cast<float>(lane_id() + 1)));
  });
  EXPECT_EQ(sums, std::vector<float>(32, 496.0F));
  EXPECT_EQ(maxima, std::vector<float>(32, -1.0F));  // fmaxf takes the number beside a NaN
}

// ---- Numbers.

TEST(Number, DotProductOfFourBytes) {
  std::mt19937 random(1);
  for (int i = 0; i < 10000; ++i) {
    const auto a = static_cast<int>(i == 0 ? 0x80808080U : random());
    const auto b = static_cast<int>(i == 0 ? 0x80808080U : random());
    const auto c = static_cast<int>(random());
    std::array<std::int8_t, 4> x;
    std::array<std::int8_t, 4> y;
    std::memcpy(x.data(), &a, 4);
    std::memcpy(y.data(), &b, 4);
    std::int64_t want = c;
    for (std::size_t j = 0; j < 4; ++j) want += x[j] * y[j];
    EXPECT_EQ(dp4a(a, b, c), static_cast<int>(want));
  }
}

TEST(Number, BytePermuteFollowsItsSelector) {
  std::mt19937 random(2);
  for (int i = 0; i < 10000; ++i) {
    const auto a = static_cast<std::uint32_t>(random());
    const auto b = static_cast<std::uint32_t>(random());
    const auto selector = static_cast<std::uint32_t>(random());  // its upper half does not matter
    std::array<std::uint8_t, 8> source;
    std::memcpy(source.data(), &a, 4);
    std::memcpy(source.data() + 4, &b, 4);
    std::array<std::uint8_t, 4> want;
    for (unsigned j = 0; j < 4; ++j) {
      const std::uint8_t byte = source[selector >> (4 * j) & 7];
      const bool spread_sign = (selector >> (4 * j) & 8) != 0;
      want[j] = spread_sign ? (byte >= 128 ? 255 : 0) : byte;
    }
    std::uint32_t want_bits;
    std::memcpy(&want_bits, want.data(), 4);
    EXPECT_EQ(byte_permute(a, b, selector), want_bits);
  }
  EXPECT_EQ(byte_permute(0x44332211U, 0x88776655U, 0x7410U), 0x88552211U);
  EXPECT_EQ(byte_permute(0x44332211U, 0x88776655U, 0xfc80U), 0xff000011U);  // signs of 0x88, 0x55 and 0x11
}

TEST(Number, RoundsToInt) {
  EXPECT_EQ(round_to_int(0.5F), 0);
  EXPECT_EQ(round_to_int(1.5F), 2);
  EXPECT_EQ(round_to_int(-2.5F), -2);
  EXPECT_EQ(round_to_int(126.50001F), 127);
  EXPECT_EQ(round_to_int(-3.7F), -4);
  EXPECT_EQ(round_to_int(3e9F), std::numeric_limits<int>::max());
  EXPECT_EQ(round_to_int(-kInfinity), std::numeric_limits<int>::min());
  EXPECT_EQ(round_to_int(kNaN), 0);
}

TEST(Number, RoundsToTf32TiesAway) {
  std::mt19937 random(3);
  for (int i = 0; i < 100000; ++i) {
    auto bits = static_cast<std::uint32_t>(random());
    if (i % 4 == 0) bits = (bits & 0xffffe000U) | 0x1000U;  // a tie
    const float x = std::bit_cast<float>(bits);
    if (!std::isnormal(x) || std::fabs(x) > 3e38F) continue;
    int exponent = 0;
    const double fraction = std::frexp(double{x}, &exponent);
    const double want = std::ldexp(std::round(std::ldexp(fraction, 11)), exponent - 11);
    EXPECT_EQ(round_to_tf32(x), want);
  }
  EXPECT_TRUE(std::isnan(round_to_tf32(std::bit_cast<float>(0x7f800001U))));
  EXPECT_EQ(round_to_tf32(-kInfinity), -kInfinity);
  EXPECT_EQ(round_to_tf32(0.0F), 0.0F);
}

TEST(Number, Exp2FlushesSubnormals) {
  for (float x = -125.75F; x < 128; x += 0.37F)
    EXPECT_NEAR(exp2_approx(x) / std::exp2(double{x}), 1.0, 1e-6) << x;
  EXPECT_EQ(exp2_approx(0.0F), 1.0F);
  EXPECT_EQ(exp2_approx(-126.0F), 0x1p-126F);
  EXPECT_EQ(exp2_approx(-126.5F), 0.0F);
  EXPECT_EQ(exp2_approx(-kInfinity), 0.0F);
  EXPECT_EQ(exp2_approx(200.0F), kInfinity);
  EXPECT_TRUE(std::isnan(exp2_approx(kNaN)));
}

// ---- Packed halves: the compiler's own half type, rounding once from 113 bits, is the judge.

using Half = _Float16;
using Wide = __float128;  // products and sums of halves are exact in it

Half half_of(std::uint32_t pair, int element) {
  return std::bit_cast<Half>(static_cast<std::uint16_t>(pair >> (16 * element)));
}

template <class Exact>
void expect_pair(std::uint32_t got, const Exact& exact) {
  for (int element = 0; element < 2; ++element) {
    const Half have = half_of(got, element);
    const Half want = static_cast<Half>(exact(element));
    if (want != want) {
      EXPECT_TRUE(have != have);
    } else {
      EXPECT_EQ(std::bit_cast<std::uint16_t>(have), std::bit_cast<std::uint16_t>(want));
    }
  }
}

void check_half2(std::uint32_t a, std::uint32_t b, std::uint32_t c) {
  const auto wide = [](std::uint32_t pair, int element) { return static_cast<Wide>(half_of(pair, element)); };
  expect_pair(half2_add(a, b), [&](int i) { return wide(a, i) + wide(b, i); });
  expect_pair(half2_sub(a, b), [&](int i) { return wide(a, i) - wide(b, i); });
  expect_pair(half2_mul(a, b), [&](int i) { return wide(a, i) * wide(b, i); });
  expect_pair(half2_fma(a, b, c), [&](int i) { return wide(a, i) * wide(b, i) + wide(c, i); });
}

TEST(Half2, RoundsOnce) {
  std::mt19937 random(4);
  for (int i = 0; i < 200000; ++i)
    check_half2(static_cast<std::uint32_t>(random()), static_cast<std::uint32_t>(random()),
                static_cast<std::uint32_t>(random()));
}

TEST(Half2, FmaRoundsOnceNearTies) {
  // 1 + k * 2^-10, plus and minus a product of about half a unit of its last place.
  for (std::uint32_t k = 0; k < 4; ++k)
    for (std::uint32_t i = 0; i < 16; ++i)
      for (std::uint32_t j = 0; j < 16; ++j) {
        const std::uint32_t factor = 0x23f8U + j;
        check_half2((0x2400U + i) * 0x10001U | 0x80000000U, factor * 0x10001U, (0x3c00U + k) * 0x10001U);
      }
}

TEST(Half2, PacksAndUnpacks) {
  const std::uint32_t pair = half2_pack(1.5F, -2.0F);
  EXPECT_EQ(pair, 0xc0003e00U);
  EXPECT_EQ(half2_low(pair), 1.5F);
  EXPECT_EQ(half2_high(pair), -2.0F);
  EXPECT_EQ(half2_splat(1.0F), 0x3c003c00U);
  const std::uint32_t brain = pack2<BFloat16>(1.0F, -3.0F);
  EXPECT_EQ(brain, 0xc0403f80U);
  EXPECT_EQ(unpack_low<BFloat16>(brain), 1.0F);
  EXPECT_EQ(unpack_high<BFloat16>(brain), -3.0F);
  EXPECT_EQ(to_f32(from_f32<Float16>(1.0F + 0x1p-11F)), 1.0F);  // tie to even
  EXPECT_EQ(to_f32(from_f32<BFloat16>(1.0F + 3 * 0x1p-8F)), 1.0F + 0x1p-6F);
  EXPECT_EQ(to_f32(from_f32<float>(0.1F)), 0.1F);
}

TEST(Half2, HoldsEveryCode) {
  for (int code = -128; code < 128; ++code) {
    for (int place = 0; place < 4; ++place) {
      std::array<std::int8_t, 4> codes = {1, -1, 127, -127};
      codes[static_cast<std::size_t>(place)] = static_cast<std::int8_t>(code);
      std::uint32_t bits;
      std::memcpy(&bits, codes.data(), 4);
      const uint2 pairs = codes_to_half2(bits);
      EXPECT_EQ(half2_low(pairs.x), codes[0]);
      EXPECT_EQ(half2_high(pairs.x), codes[1]);
      EXPECT_EQ(half2_low(pairs.y), codes[2]);
      EXPECT_EQ(half2_high(pairs.y), codes[3]);
    }
  }
}

}  // namespace
}  // namespace kvfuse::cuda
