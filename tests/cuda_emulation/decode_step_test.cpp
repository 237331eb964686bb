// A tiny GPT-2 that generates tokens on the emulated device, judged by its double-precision twin.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <functional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "kernels/cuda/device/platform.h"

namespace kvfuse::emulation {

int launches = 0;

inline cudaError_t counted_run_grid(dim3 grid, unsigned threads, std::size_t shared_bytes,
                                    const std::function<void()>& thread) {
  ++launches;
  return run_grid(grid, threads, shared_bytes, thread);
}

}  // namespace kvfuse::emulation

#define run_grid counted_run_grid  // for the one header that starts kernels
#include "kernels/cuda/device/launch.h"
#undef run_grid

#include "kernels/cuda/decode_attention.cu"
#include "kernels/cuda/decode_step.cu"
#include "kernels/cuda/embedding.cu"
#include "kernels/cuda/linear.cu"
#include "kernels/cuda/sampling.cu"
#include "tests/cpp/step_fixture.h"

namespace kvfuse {
namespace {

using test::describe;
using test::kBlockSize;
using test::kHeads;
using test::kLayers;
using test::kSteps;
using test::kVocab;
using test::kWidth;
using test::StepCase;
using test::Tensor;

struct Generation : test::Generation {
  explicit Generation(const StepCase& c) : test::Generation(c) {
    give_workspace(cuda::decode_step_workspace_bytes(params));
  }
};

// How far logits of a few units may be from the twin's. The int8 kernel weighs the values in halves, which
// puts 3e-4 on what attention gives and, with the codes that this tips over in the next layer, 0.03 on a
// logit.
double tolerance(const StepCase& c) {
  const double of_dtype = c.dtype == DType::kFloat32 ? 2e-5 : c.dtype == DType::kFloat16 ? 0.04 : 0.15;
  return c.cache_dtype == DType::kInt8 ? 2.0 * of_dtype + 0.05 : of_dtype;
}

// Logits within the tolerance, and a token that is the most likely one as far as they can tell.
void expect_choice(const float* logits, std::int64_t token, const std::vector<double>& want, double allowed) {
  for (std::size_t i = 0; i < want.size(); ++i)
    EXPECT_TRUE(std::fabs(logits[i] - want[i]) <= allowed)
        << "logit " << i << ": " << logits[i] << ", not " << want[i];
  ASSERT_TRUE(token >= 0 && token < kVocab) << token;
  EXPECT_GE(want[static_cast<std::size_t>(token)],
            *std::max_element(want.begin(), want.end()) - 2.0 * allowed)
      << "token " << token;
}

void check(const StepCase& c, std::uint64_t schedule) {
  SCOPED_TRACE(describe(c));
  emulation::set_options({schedule});
  Generation g(c);
  const std::size_t batch = c.lengths.size();
  for (int step = 0; step < kSteps; ++step) {
    SCOPED_TRACE("step " + std::to_string(step));
    const std::vector<std::int64_t> before = g.tokens;
    emulation::launches = 0;
    ASSERT_EQ(cuda::enqueue_decode_step(g.params, nullptr), cudaSuccess) << emulation::last_error();
    EXPECT_EQ(emulation::launches, 5 * kLayers + 3);
    for (std::size_t b = 0; b < batch; ++b) {
      SCOPED_TRACE("sequence " + std::to_string(b));
      const std::vector<double> want = g.model.twin.step(before[b], g.twin_caches[b]);
      expect_choice(&g.logits[b * kVocab], g.tokens[b], want, tolerance(c));
      EXPECT_EQ(g.out_tokens[b * kSteps + static_cast<std::size_t>(step)], g.tokens[b]);
      EXPECT_EQ(g.cache_seqlens[b], static_cast<std::int32_t>(c.lengths[b]) + step + 1);
    }
  }
  EXPECT_GE(std::set<std::int64_t>(g.out_tokens.begin(), g.out_tokens.end()).size(), 3U);
}

using Parameters = std::tuple<DType, bool, bool>;

class DecodeStepTest : public testing::TestWithParam<Parameters> {};

std::string name_of(const testing::TestParamInfo<Parameters>& info) {
  const auto [dtype, int8, follower] = info.param;
  return std::string(dtype_name(dtype)) + (int8 ? "_int8" : "") + (follower ? "_follower" : "");
}

INSTANTIATE_TEST_SUITE_P(Cases, DecodeStepTest,
                         testing::Combine(testing::Values(DType::kFloat32, DType::kFloat16),
                                          testing::Values(false, true),   // int8 cache
                                          testing::Values(false, true)),  // follower
                         name_of);

TEST_P(DecodeStepTest, GeneratesTheTwinsTokens) {
  const auto [dtype, int8, follower] = GetParam();
  StepCase c{.dtype = dtype, .cache_dtype = int8 ? DType::kInt8 : dtype, .follower = follower};
  check(c, 1);
  c.lengths = {0, 9, 3};
  c.splits = 2;
  check(c, 2);
}

TEST(DecodeStepCaseTest, OtherModels) {
  check({.lengths = {4}, .biases = false, .gelu_tanh = false}, 3);
  check({.dtype = DType::kBFloat16, .cache_dtype = DType::kBFloat16, .lengths = {1}}, 4);
}

// The settings of the draw arrive: the step's tokens are those of sample() on its logits.
TEST(DecodeStepCaseTest, Draws) {
  Generation g({.lengths = {0, 2, 1}});
  g.params.temperature = 30.0F;  // near uniform: the same token by chance is unlikely
  g.params.top_k = 60;
  g.params.top_p = 0.9;
  g.params.seed = 1234;
  std::vector<std::int64_t> tokens(3);
  std::vector<std::int32_t> steps(3);
  for (int step = 0; step < 2; ++step) {
    ASSERT_EQ(cuda::enqueue_decode_step(g.params, nullptr), cudaSuccess) << emulation::last_error();
    const SamplingParams params{.logits = g.logits.data(),
                                .tokens = tokens.data(),
                                .steps = steps.data(),
                                .batch = 3,
                                .vocab_size = kVocab,
                                .temperature = 30.0F,
                                .top_k = 60,
                                .top_p = 0.9,
                                .seed = 1234};
    ASSERT_EQ(cuda::sample(params, false, nullptr), cudaSuccess) << emulation::last_error();
    EXPECT_EQ(g.tokens, tokens);
    EXPECT_EQ(g.steps, steps);
  }
}

// One sequence is full; the others go on as if it were not there.
TEST(DecodeStepCaseTest, OutgrownSequence) {
  Generation g({.lengths = {3, 2}});
  Generation alone({.lengths = {3}});
  g.cache_seqlens[1] = kBlockSize;
  for (int step = 0; step < 2; ++step) {
    ASSERT_EQ(cuda::enqueue_decode_step(g.params, nullptr), cudaSuccess) << emulation::last_error();
    ASSERT_EQ(cuda::enqueue_decode_step(alone.params, nullptr), cudaSuccess) << emulation::last_error();
    EXPECT_EQ(g.tokens, (std::vector<std::int64_t>{alone.tokens[0], 0}));
    for (std::int64_t i = 0; i < kVocab; ++i) {
      EXPECT_NEAR(g.logits[static_cast<std::size_t>(i)], alone.logits[static_cast<std::size_t>(i)], 1e-4)
          << i;
      EXPECT_TRUE(std::isnan(g.logits[static_cast<std::size_t>(kVocab + i)])) << i;
    }
  }
}

TEST(DecodeStepCaseTest, RefusesWhatItCannotDo) {
  const auto refused = [](auto&& change) {
    Generation g({.lengths = {1, 0}});
    change(g);
    return cuda::enqueue_decode_step(g.params, nullptr) == cudaErrorInvalidValue;
  };
  EXPECT_FALSE(refused([](Generation&) {}));
  EXPECT_TRUE(refused([](Generation& g) { g.params.workspace = nullptr; }));
  EXPECT_TRUE(refused([](Generation& g) { g.params.logits = nullptr; }));
  EXPECT_TRUE(refused([](Generation& g) { g.params.batch = 1; }));
  EXPECT_TRUE(refused([](Generation& g) { g.params.n_head = 4; }));
  EXPECT_TRUE(refused([](Generation& g) { g.params.n_head = 0; }));
  EXPECT_TRUE(refused([](Generation& g) { g.params.top_p = 0.0; }));
  EXPECT_TRUE(refused([](Generation& g) { g.params.dtype = DType::kInt8; }));
  EXPECT_TRUE(refused([](Generation& g) { g.model.layers[1].cache_layer = 2; }));
  EXPECT_TRUE(refused([](Generation& g) { g.model.layers[1].cache_layer = -1; }));
  EXPECT_EQ(cuda::decode_step_workspace_bytes({}), 0);
}

}  // namespace
}  // namespace kvfuse
