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
#include "tests/cpp/linear_fixture.h"

namespace kvfuse {
namespace {

using test::describe;
using test::kSeeds;
using test::LinearCase;
using test::LinearTensors;
using test::Tensor;
using test::Tolerance;

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
  EXPECT_TRUE(refused([](LinearParams& p) { p.weight_format = WeightFormat::kInt8Rows; }));
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
