// quantize_kv and dequantize_kv as CUDA kernels, run by the emulator, against the double-precision twin.
#include "kernels/cuda/kv_quant.cu"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "tests/cpp/tensors.h"

namespace kvfuse::cuda {
namespace {

using test::kSeeds;
using test::Tensor;

struct Quantised {
  std::vector<std::int8_t> codes;
  std::vector<float> scale;
};

Quantised quantise_rows(const Tensor& x, std::int64_t rows, std::int64_t width, std::uint64_t seed) {
  Quantised result{std::vector<std::int8_t>(static_cast<std::size_t>(rows * width), 99),
                   std::vector<float>(static_cast<std::size_t>(rows), -1.0F)};
  emulation::set_options({.seed = seed});
  const QuantizeParams params{.x = x.data(),
                              .x_dtype = x.dtype,
                              .codes = result.codes.data(),
                              .scale = result.scale.data(),
                              .rows = rows,
                              .width = width};
  EXPECT_EQ(quantize_kv(params, nullptr), cudaSuccess) << emulation::last_error();
  return result;
}

class KvQuant : public testing::TestWithParam<DType> {};

TEST_P(KvQuant, CodesAndScalesAreTheTwins) {
  std::mt19937 random(7);
  for (const std::int64_t width : {1, 31, 64, 80, 200})
    for (const std::int64_t rows : {1, 5, 130}) {
      SCOPED_TRACE(std::to_string(rows) + " rows of " + std::to_string(width));
      const Tensor x = Tensor::normal(GetParam(), rows * width, 0.3F, 2.0F, random);
      const Quantised got = quantise_rows(x, rows, width, kSeeds[0]);
      for (std::int64_t row = 0; row < rows; ++row) {
        std::vector<double> values;
        for (std::int64_t i = 0; i < width; ++i) values.push_back(x[row * width + i]);
        const reference::QuantizedRow want = reference::quantize_row(values);
        const double scale = got.scale[static_cast<std::size_t>(row)];
        ASSERT_TRUE(std::fabs(scale - want.scale) <= 1e-7 * want.scale) << "row " << row;
        for (std::int64_t i = 0; i < width; ++i) {
          const int code = got.codes[static_cast<std::size_t>(row * width + i)];
          // float32 division may move what lies at a tie
          ASSERT_TRUE(std::fabs(code - want.codes[static_cast<std::size_t>(i)]) <= 0.5 + 1e-4)
              << "row " << row << ", element " << i;
        }
      }
      for (const std::uint64_t seed : kSeeds) {
        const Quantised again = quantise_rows(x, rows, width, seed);
        ASSERT_TRUE(again.codes == got.codes && again.scale == got.scale) << "seed " << seed;
      }
    }
}

TEST_P(KvQuant, DequantisesToTheNearestValue) {
  const std::int64_t rows = 9, width = 80;
  std::mt19937 random(11);
  const Quantised cached =
      quantise_rows(Tensor::normal(GetParam(), rows * width, 0.0F, 3.0F, random), rows, width, kSeeds[1]);
  Tensor out = Tensor::normal(GetParam(), rows * width, NAN, 0.0F, random);
  const DequantizeParams params{.codes = cached.codes.data(),
                                .scale = cached.scale.data(),
                                .out = out.data(),
                                .out_dtype = GetParam(),
                                .rows = rows,
                                .width = width};
  ASSERT_EQ(dequantize_kv(params, nullptr), cudaSuccess) << emulation::last_error();
  for (std::int64_t i = 0; i < rows * width; ++i) {
    const double want =
        double{cached.scale[static_cast<std::size_t>(i / width)]} * cached.codes[static_cast<std::size_t>(i)];
    // rounded to float32, then to the dtype
    const double allowed = std::fabs(want) * (test::rounding_of(GetParam()) + 0x1p-24);
    ASSERT_TRUE(std::fabs(out[i] - want) <= allowed) << "element " << i;
  }
}

TEST_P(KvQuant, RowsOfZerosAndSpoiltRows) {
  const std::int64_t width = 64;
  std::mt19937 random(13);
  Tensor x = Tensor::normal(GetParam(), 4 * width, 0.0F, 1.0F, random);
  for (std::int64_t i = 0; i < width; ++i) x.set(i, i % 2 == 0 ? 0.0F : -0.0F);
  x.set(width + 63, NAN);
  x.set(2 * width + 33, -std::numeric_limits<float>::infinity());
  const Quantised got = quantise_rows(x, 4, width, kSeeds[2]);
  EXPECT_EQ(got.scale[0], 0.0F);
  EXPECT_TRUE(std::isnan(got.scale[1]));
  EXPECT_TRUE(std::isnan(got.scale[2]));
  EXPECT_TRUE(got.scale[3] > 0.0F);
  for (std::size_t i = 0; i < 3 * 64; ++i) ASSERT_EQ(got.codes[i], 0) << "element " << i;
}

INSTANTIATE_TEST_SUITE_P(Emulated, KvQuant,
                         testing::Values(DType::kFloat32, DType::kFloat16, DType::kBFloat16),
                         [](const auto& info) { return std::string(dtype_name(info.param)); });

TEST(KvQuantErrors, RefusesInt8AndSkipsNothing) {
  EXPECT_EQ(quantize_kv({.x_dtype = DType::kInt8, .rows = 1, .width = 1}, nullptr), cudaErrorInvalidValue);
  EXPECT_EQ(dequantize_kv({.out_dtype = DType::kInt8, .rows = 1, .width = 1}, nullptr),
            cudaErrorInvalidValue);
  EXPECT_EQ(quantize_kv({.rows = 0, .width = 8}, nullptr), cudaSuccess);
  EXPECT_EQ(dequantize_kv({.rows = 0, .width = 8}, nullptr), cudaSuccess);
}

}  // namespace
}  // namespace kvfuse::cuda
