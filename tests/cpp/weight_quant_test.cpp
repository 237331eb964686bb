// Weights to codes on every instruction set of this machine.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "kernels/reference/gpt2_step.h"
#include "kernels/weight_quant.h"
#include "tests/cpp/isa_fixture.h"
#include "tests/cpp/tensors.h"

namespace kvfuse {
namespace {

constexpr WeightFormat kFormats[] = {WeightFormat::kInt8Rows, WeightFormat::kInt4Groups};

struct Quantized {
  std::vector<char> codes, scale;
  std::optional<std::int64_t> bad_row;

  Quantized(const std::vector<float>& weight, std::int64_t in, WeightFormat format)
      : in_(in), format_(format) {
    out_size_ = static_cast<std::int64_t>(weight.size()) / in;
    codes.resize(static_cast<std::size_t>(out_size_ * weight_row_bytes(format, DType::kFloat32, in)));
    scale.resize(static_cast<std::size_t>(out_size_ * scale_row_bytes(format, in)));
    bad_row = cpu::quantize_weight({.weight = weight.data(),
                                    .format = format,
                                    .codes = codes.data(),
                                    .scale = scale.data(),
                                    .out_size = out_size_,
                                    .in = in});
  }

  // By the double twin.
  std::vector<double> values() const {
    return reference::weight_values({.weight = codes.data(),
                                     .weight_scale = scale.data(),
                                     .weight_format = format_,
                                     .in = in_,
                                     .out_size = out_size_});
  }

 private:
  std::int64_t in_, out_size_;
  WeightFormat format_;
};

std::vector<float> normal(std::int64_t count, float deviation = 1.0F) {
  std::mt19937 random(5);
  std::normal_distribution<float> distribution(0.0F, deviation);
  std::vector<float> values;
  for (std::int64_t i = 0; i < count; ++i) values.push_back(distribution(random));
  return values;
}

class WeightQuant : public test::OnIsa {};

TEST_P(WeightQuant, Int8RowsAreOffByHalfAStepAtMost) {
  for (const std::int64_t in : {1, 7, 64, 100, 768}) {
    const std::vector<float> weight = normal(37 * in, 0.02F);
    const Quantized q(weight, in, WeightFormat::kInt8Rows);
    EXPECT_FALSE(q.bad_row.has_value());
    const std::vector<double> values = q.values();
    for (std::int64_t row = 0; row < 37; ++row) {
      double absmax = 0.0;
      for (std::int64_t i = 0; i < in; ++i)
        absmax = std::max(absmax, std::fabs(double{weight[static_cast<std::size_t>(row * in + i)]}));
      for (std::int64_t i = row * in; i < (row + 1) * in; ++i)
        ASSERT_TRUE(std::fabs(values[static_cast<std::size_t>(i)] - weight[static_cast<std::size_t>(i)]) <=
                    absmax / 127.0 * (0.5 + 1e-4))
            << i;
    }
  }
}

// The error of a group, squared, with the scale that its largest element alone asks for.
double absmax_error(const float* x) {
  double absmax = 0.0, error = 0.0;
  for (int i = 0; i < kInt4Group; ++i) absmax = std::max(absmax, std::fabs(double{x[i]}));
  const double scale = absmax / 7.0;
  for (int i = 0; i < kInt4Group; ++i) error += std::pow(x[i] - std::nearbyint(x[i] / scale) * scale, 2);
  return error;
}

TEST_P(WeightQuant, Int4GroupsAreNearerThanByTheirLargestElement) {
  const std::int64_t in = 768;
  const std::vector<float> weight = normal(64 * in, 0.05F);
  const Quantized q(weight, in, WeightFormat::kInt4Groups);
  const std::vector<double> values = q.values();
  double error = 0.0, plain = 0.0;
  for (std::size_t g = 0; g < weight.size(); g += kInt4Group) {
    double group_error = 0.0;
    for (std::size_t i = g; i < g + kInt4Group; ++i) group_error += std::pow(values[i] - weight[i], 2);
    ASSERT_TRUE(group_error <= 1.3 * absmax_error(&weight[g])) << g;
    error += group_error;
    plain += absmax_error(&weight[g]);
  }
  EXPECT_TRUE(error <= 0.73 * plain) << error / plain;
}

TEST_P(WeightQuant, GroupsOfFewValuesAreKeptExactly) {
  std::vector<float> weight;
  for (int i = 0; i < 64; ++i) weight.push_back(0.25F * static_cast<float>(i % 16 - 8));
  for (int i = 0; i < 64; ++i) weight.push_back(-0.5F * static_cast<float>(i % 16 - 8));
  const Quantized q(weight, 64, WeightFormat::kInt4Groups);
  for (std::size_t i = 0; i < weight.size(); ++i) EXPECT_EQ(q.values()[i], weight[i]) << i;
}

TEST_P(WeightQuant, ZerosHaveScaleZero) {
  for (const WeightFormat format : kFormats) {
    std::vector<float> weight = normal(3 * 64);
    std::fill(weight.begin() + 64, weight.begin() + 128, 0.0F);
    const Quantized q(weight, 64, format);
    EXPECT_FALSE(q.bad_row.has_value());
    const std::size_t row = q.scale.size() / 3;
    EXPECT_TRUE(std::all_of(q.scale.data() + row, q.scale.data() + 2 * row, [](char c) { return c == 0; }));
    for (std::size_t i = 64; i < 128; ++i) EXPECT_EQ(q.values()[i], 0.0);
  }
}

TEST_P(WeightQuant, TellsTheFirstRowThatCodesCannotKeep) {
  for (const WeightFormat format : kFormats)
    for (const float damage :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
          -std::numeric_limits<float>::infinity()})
      for (const std::int64_t at : {0, 33, 95}) {
        std::vector<float> weight = normal(100 * 96);
        weight[static_cast<std::size_t>(96 * 41 + at)] = damage;
        weight[static_cast<std::size_t>(96 * 80)] = damage;
        EXPECT_EQ(Quantized(weight, 96, format).bad_row, 41) << damage << " " << at;
      }
}

TEST_P(WeightQuant, SizesThatScalesHoldAndDoNot) {
  std::vector<float> weight = normal(64);
  weight[40] = 6.0e5F;
  EXPECT_FALSE(Quantized(weight, 64, WeightFormat::kInt4Groups).bad_row.has_value());
  weight[40] = -1e6F;
  EXPECT_EQ(Quantized(weight, 64, WeightFormat::kInt4Groups).bad_row, 0);
  EXPECT_FALSE(Quantized(weight, 64, WeightFormat::kInt8Rows).bad_row.has_value());
  for (const float tiny : {1e-7F, 1e-20F, 1e-42F})
    for (const WeightFormat format : kFormats) {
      const Quantized q(normal(64, tiny), 64, format);
      EXPECT_FALSE(q.bad_row.has_value());
      for (const double value : q.values()) EXPECT_TRUE(std::fabs(value) <= 8.0 * tiny);
    }
}

TEST_P(WeightQuant, TheSameOnEveryInstructionSet) {
  const std::vector<float> weight = normal(40 * 768, 0.03F);
  for (const WeightFormat format : kFormats) {
    const Quantized q(weight, 768, format);
    cpu::set_active_isa(cpu::Isa::kPortable);
    const Quantized portable(weight, 768, format);
    cpu::set_active_isa(GetParam());
    EXPECT_EQ(q.codes, portable.codes);
    EXPECT_EQ(q.scale, portable.scale);
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, WeightQuant, test::every_isa(), test::isa_of);

}  // namespace
}  // namespace kvfuse
