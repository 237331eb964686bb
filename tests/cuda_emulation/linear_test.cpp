// The fused linear layer and the embedding, run by the emulator.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/embedding.cu"
#include "kernels/cuda/linear.cu"
#include "kernels/reference/gpt2_step.h"
#include "kernels/reference/reference.h"
#include "tests/cuda_emulation/tensors.h"

namespace kvfuse {
namespace {

using test::kSeeds;
using test::Tensor;

struct LinearCase {
  DType dtype = DType::kFloat16;
  std::int64_t rows = 1;
  std::int64_t in = 64;
  std::int64_t out_size = 19;  // no multiple of what a block computes
  bool norm = false;
  Epilogue epilogue = Epilogue::kStore;
  bool float32_out = false;
  bool biases = true;
  float mean = 0.0F;       // of x
  float deviation = 1.0F;  // of x
};

std::string describe(const LinearCase& c) {
  return std::string(dtype_name(c.dtype)) + " rows " + std::to_string(c.rows) + " in " +
         std::to_string(c.in) + " out " + std::to_string(c.out_size) + (c.norm ? " layernorm" : "") +
         " epilogue " + std::to_string(static_cast<int>(c.epilogue)) + (c.float32_out ? " to float32" : "") +
         (c.biases ? "" : " without biases");
}

// Owns the tensors of one call. `out` starts as random numbers: what kAdd adds to, and what others must
// replace.
struct LinearTensors {
  Tensor x, weight, bias, norm_weight, norm_bias, out;
  LinearParams params;

  explicit LinearTensors(const LinearCase& c) {
    std::mt19937 random(11);
    const auto normal = [&](DType dtype, std::int64_t count, float mean, float deviation) {
      return Tensor::normal(dtype, count, mean, deviation, random);
    };
    const float weight_deviation = 1.0F / std::sqrt(static_cast<float>(c.in));
    const DType out_dtype = c.float32_out || c.epilogue == Epilogue::kAdd ? DType::kFloat32 : c.dtype;
    x = normal(c.norm ? DType::kFloat32 : c.dtype, c.rows * c.in, c.mean, c.deviation);
    weight = normal(c.dtype, c.out_size * c.in, 0.0F, weight_deviation);
    bias = normal(c.dtype, c.out_size, 0.0F, 1.0F);
    norm_weight = normal(c.dtype, c.in, 1.0F, 0.2F);
    norm_bias = normal(c.dtype, c.in, 0.0F, 0.5F);
    out = normal(out_dtype, c.rows * c.out_size, 0.0F, 1.0F);
    params = {.x = x.data(),
              .weight = weight.data(),
              .bias = c.biases ? bias.data() : nullptr,
              .norm_weight = c.norm ? norm_weight.data() : nullptr,
              .norm_bias = c.norm && c.biases ? norm_bias.data() : nullptr,
              .out = out.data(),
              .dtype = c.dtype,
              .out_dtype = out_dtype,
              .epilogue = c.epilogue,
              .rows = c.rows,
              .in = c.in,
              .out_size = c.out_size};
  }
};

constexpr double kFloatStep = 0x1p-24;  // a float32 rounding, relative

// How far one output may be from the truth: its own rounding, and float32 rounding of every sum behind it.
// The sums are of absolute values, so the bound holds without luck.
class Tolerance {
 public:
  explicit Tolerance(const LinearTensors& t) : t_(t), p_(t.params) {}

  double of(std::int64_t row, std::int64_t output, double want) const {
    double magnitude = p_.bias == nullptr ? 0.0 : std::fabs(t_.bias[output]);
    double from_norm = 0.0;
    const Norm norm = norm_of(row);
    for (std::int64_t i = 0; i < p_.in; ++i) {
      const double w = std::fabs(t_.weight[output * p_.in + i]);
      if (p_.norm_weight == nullptr) {
        magnitude += w * std::fabs(t_.x[row * p_.in + i]);
        continue;
      }
      const double scale = std::fabs(t_.norm_weight[i]);
      magnitude += w * (std::fabs(t_.x[row * p_.in + i] - norm.mean) * norm.inverse * scale +
                        (p_.norm_bias == nullptr ? 0.0 : std::fabs(t_.norm_bias[i])));
      // The mean is off by roundings of its own size, which the division by the deviation enlarges.
      from_norm += 16.0 * kFloatStep * w * scale * norm.largest * norm.inverse;
    }
    const double sums = static_cast<double>(p_.in / 32 + 24) * kFloatStep * magnitude;
    const double before_rounding = 1.2 * (sums + from_norm) + 8.0 * kFloatStep * (1.0 + std::fabs(want));
    return before_rounding + test::rounding_of(p_.out_dtype) * (std::fabs(want) + before_rounding) + 0x1p-24;
  }

 private:
  struct Norm {
    double mean = 0.0, inverse = 1.0, largest = 0.0;
  };

  Norm norm_of(std::int64_t row) const {
    Norm norm;
    if (p_.norm_weight == nullptr) return norm;
    double variance = 0.0;
    const double count = static_cast<double>(p_.in);
    for (std::int64_t i = 0; i < p_.in; ++i) norm.mean += t_.x[row * p_.in + i] / count;
    for (std::int64_t i = 0; i < p_.in; ++i) {
      const double deviation = t_.x[row * p_.in + i] - norm.mean;
      variance += deviation * deviation / count;
      norm.largest = std::max(norm.largest, std::fabs(t_.x[row * p_.in + i]));
    }
    norm.inverse = 1.0 / std::sqrt(variance + double{p_.norm_epsilon});
    return norm;
  }

  const LinearTensors& t_;
  const LinearParams& p_;
};

// Agrees with the double twin, with the same bits under every schedule.
void check(const LinearCase& c) {
  SCOPED_TRACE(describe(c));
  std::vector<char> first;
  for (const std::uint64_t seed : kSeeds) {
    LinearTensors t(c);
    const std::vector<double> want = reference::linear(t.params);
    emulation::set_options({seed});
    ASSERT_EQ(cuda::fused_linear(t.params, /*overlap_previous=*/true, nullptr), cudaSuccess)
        << emulation::last_error();
    if (first.empty()) {
      first = t.out.bytes;
      const Tolerance tolerance(t);
      for (std::int64_t i = 0; i < c.rows * c.out_size; ++i) {
        const double truth = want[static_cast<std::size_t>(i)];
        const double allowed = tolerance.of(i / c.out_size, i % c.out_size, truth);
        ASSERT_TRUE(std::fabs(t.out[i] - truth) <= allowed)
            << "element " << i << ": got " << t.out[i] << ", expected " << truth << " to " << allowed;
      }
    }
    ASSERT_EQ(first, t.out.bytes) << "the schedule changed the result, seed " << seed;
  }
}

class LinearDtypeTest : public testing::TestWithParam<DType> {};

INSTANTIATE_TEST_SUITE_P(Dtypes, LinearDtypeTest,
                         testing::Values(DType::kFloat32, DType::kFloat16, DType::kBFloat16),
                         [](const auto& info) { return std::string(dtype_name(info.param)); });

TEST_P(LinearDtypeTest, RowsAndSizes) {
  for (const std::int64_t rows : {1, 2, 3, 8, 9})
    for (const std::int64_t in : {64, 80, 768})
      for (const bool norm : {false, true})
        check({.dtype = GetParam(), .rows = rows, .in = in, .norm = norm});
}

TEST_P(LinearDtypeTest, EpiloguesAndPrologues) {
  for (const Epilogue epilogue :
       {Epilogue::kStore, Epilogue::kGeluTanh, Epilogue::kGeluExact, Epilogue::kAdd})
    for (const bool norm : {false, true})
      for (const bool biases : {false, true})
        for (const bool float32_out : {false, true})
          check({.dtype = GetParam(),
                 .rows = 3,
                 .in = 72,
                 .out_size = 9,
                 .norm = norm,
                 .epilogue = epilogue,
                 .float32_out = float32_out,
                 .biases = biases});
}

TEST_P(LinearDtypeTest, LongRows) {
  check({.dtype = GetParam(), .rows = 1, .in = 4096, .out_size = 9});
  check(
      {.dtype = GetParam(), .rows = 8, .in = 6400, .out_size = 3});  // more than shared memory holds at once
  check({.dtype = GetParam(), .rows = 8, .in = 1600, .out_size = 17, .norm = true});
}

TEST_P(LinearDtypeTest, AddsInTheOutputsOwnType) {
  LinearTensors t({.dtype = GetParam(), .rows = 2, .in = 64});
  t.params.epilogue = Epilogue::kAdd;
  const std::vector<double> want = reference::linear(t.params);
  ASSERT_EQ(cuda::fused_linear(t.params, false, nullptr), cudaSuccess) << emulation::last_error();
  for (std::int64_t i = 0; i < t.out.size(); ++i)
    EXPECT_TRUE(std::fabs(t.out[i] - want[static_cast<std::size_t>(i)]) <=
                2e-5 + 3.0 * test::rounding_of(GetParam()))
        << i;
}

TEST(LinearTest, LayernormOfALargeMean) {
  for (const std::int64_t rows : {1, 8})
    check({.dtype = DType::kFloat32, .rows = rows, .in = 768, .norm = true, .mean = 1000.0F});
}

// Nothing but epsilon is left of the variance: the rows become the norm's bias.
TEST(LinearTest, LayernormOfConstantRows) {
  for (const std::int64_t rows : {1, 4}) {
    LinearTensors t(
        {.dtype = DType::kFloat32, .rows = rows, .in = 128, .norm = true, .mean = 3.0F, .deviation = 0.0F});
    ASSERT_EQ(cuda::fused_linear(t.params, false, nullptr), cudaSuccess) << emulation::last_error();
    const std::vector<double> want = reference::linear(t.params);
    for (std::int64_t i = 0; i < t.out.size(); ++i)
      EXPECT_TRUE(std::fabs(t.out[i] - want[static_cast<std::size_t>(i)]) <= 1e-5) << i;
  }
}

// Without a layernorm a row's bits do not depend on what it shares the call with.
TEST(LinearTest, RowAloneOrInABatch) {
  LinearTensors all({.dtype = DType::kFloat16, .rows = 9, .in = 768, .float32_out = true});
  ASSERT_EQ(cuda::fused_linear(all.params, false, nullptr), cudaSuccess) << emulation::last_error();
  for (const std::int64_t row : {0, 5, 8}) {
    LinearTensors alone({.dtype = DType::kFloat16, .rows = 1, .in = 768, .float32_out = true});
    alone.params.x = static_cast<const Float16*>(all.params.x) + row * 768;
    alone.params.weight = all.params.weight;
    alone.params.bias = all.params.bias;
    ASSERT_EQ(cuda::fused_linear(alone.params, false, nullptr), cudaSuccess) << emulation::last_error();
    for (std::int64_t i = 0; i < 19; ++i) EXPECT_EQ(alone.out[i], all.out[row * 19 + i]) << row << " " << i;
  }
}

TEST(LinearTest, OneDamagedRowSpoilsNoOther) {
  LinearTensors t({.dtype = DType::kFloat32, .rows = 3, .in = 64, .norm = true});
  t.x.set(64 + 5, std::numeric_limits<float>::quiet_NaN());
  ASSERT_EQ(cuda::fused_linear(t.params, false, nullptr), cudaSuccess) << emulation::last_error();
  for (std::int64_t i = 0; i < t.out.size(); ++i) EXPECT_EQ(std::isnan(t.out[i]), i / 19 == 1) << i;
}

// A warp reads 512 contiguous bytes of weights at a time, and every byte once.
TEST(LinearTest, WeightLoads) {
  for (const std::int64_t rows : {1, 8}) {
    SCOPED_TRACE(rows);
    LinearTensors t({.dtype = DType::kFloat16, .rows = rows, .in = 2560, .out_size = 17, .norm = true});
    emulation::reset_load_counts();
    ASSERT_EQ(cuda::fused_linear(t.params, false, nullptr), cudaSuccess) << emulation::last_error();
    const auto first = reinterpret_cast<std::uintptr_t>(t.weight.data());
    std::int64_t loads = 0;
    for (const emulation::WarpLoad& load : emulation::load_counts().loads) {
      if (load.first < first || load.first >= first + t.weight.bytes.size()) continue;
      ++loads;
      EXPECT_EQ(load.contiguous_bytes, 512);
      EXPECT_EQ(load.lanes, 32);
    }
    EXPECT_EQ(loads * 512, static_cast<std::int64_t>(t.weight.bytes.size()));
  }
  emulation::reset_load_counts(false);
}

TEST(LinearTest, RefusesWhatItCannotDo) {
  const auto refused = [](auto&& change) {
    LinearTensors t({.dtype = DType::kFloat16, .rows = 2, .in = 64});
    change(t.params);
    return cuda::fused_linear(t.params, false, nullptr) == cudaErrorInvalidValue;
  };
  EXPECT_FALSE(refused([](LinearParams&) {}));
  EXPECT_TRUE(refused([](LinearParams& p) { p.in = 60; }));
  EXPECT_TRUE(refused([](LinearParams& p) { p.in = 0; }));
  EXPECT_TRUE(refused([](LinearParams& p) { p.in = 1 << 20; }));
  EXPECT_TRUE(refused([](LinearParams& p) { p.rows = 0; }));
  EXPECT_TRUE(refused([](LinearParams& p) { p.out_size = 0; }));
  EXPECT_TRUE(refused([](LinearParams& p) { p.weight = nullptr; }));
  EXPECT_TRUE(refused([](LinearParams& p) { p.weight = static_cast<const char*>(p.weight) + 2; }));
  EXPECT_TRUE(refused([](LinearParams& p) { p.x = static_cast<const char*>(p.x) + 8; }));
  EXPECT_TRUE(refused([](LinearParams& p) { p.dtype = p.out_dtype = DType::kInt8; }));
  EXPECT_TRUE(refused([](LinearParams& p) { p.out_dtype = DType::kBFloat16; }));
}

TEST_P(LinearDtypeTest, Embedding) {
  constexpr std::int64_t kWidth = 1048, kVocab = 7, kPositions = 5;
  std::mt19937 random(3);
  const Tensor tokens_table = Tensor::normal(GetParam(), kVocab * kWidth, 0.0F, 1.0F, random);
  const Tensor positions_table = Tensor::normal(GetParam(), kPositions * kWidth, 0.0F, 1.0F, random);
  const std::vector<std::int64_t> tokens = {6, 0, 7, -1, 3, 3};
  const std::vector<std::int32_t> lengths = {0, 4, 1, 1, 5, -1};  // the last four are outside
  std::vector<std::int32_t> visible(tokens.size());
  std::vector<float> x(tokens.size() * kWidth);
  const EmbeddingParams params{.token_embedding = tokens_table.data(),
                               .position_embedding = positions_table.data(),
                               .tokens = tokens.data(),
                               .cache_seqlens = lengths.data(),
                               .x = x.data(),
                               .visible_seqlens = visible.data(),
                               .dtype = GetParam(),
                               .batch = static_cast<std::int64_t>(tokens.size()),
                               .width = kWidth,
                               .vocab_size = kVocab,
                               .positions = kPositions};
  ASSERT_EQ(cuda::embed(params, false, nullptr), cudaSuccess) << emulation::last_error();
  for (std::size_t b = 0; b < tokens.size(); ++b) {
    EXPECT_EQ(visible[b], lengths[b] + 1);
    for (std::int64_t i = 0; i < kWidth; ++i) {
      const float got = x[b * kWidth + static_cast<std::size_t>(i)];
      if (b >= 2)
        ASSERT_TRUE(std::isnan(got)) << b << " " << i;
      else
        ASSERT_TRUE(got == static_cast<float>(tokens_table[tokens[b] * kWidth + i]) +
                               static_cast<float>(positions_table[lengths[b] * kWidth + i]))
            << b << " " << i;
    }
  }
  EmbeddingParams odd = params;
  odd.width = 12;
  EXPECT_EQ(cuda::embed(odd, false, nullptr), cudaErrorInvalidValue);
}

}  // namespace
}  // namespace kvfuse
