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
#include "kernels/reference/gpt2_step.h"
#include "kernels/reference/reference.h"
#include "tests/cuda_emulation/tensors.h"

namespace kvfuse {
namespace {

using test::Tensor;

constexpr std::int64_t kWidth = 128, kHeads = 2, kHeadDim = kWidth / kHeads;
constexpr std::int64_t kLayers = 2, kVocab = 97, kBlockSize = 16;
constexpr int kSteps = 6;

struct StepCase {
  DType dtype = DType::kFloat32;
  DType cache_dtype = DType::kFloat32;
  std::vector<std::size_t> lengths = {0};  // cached tokens at the start, a sequence each
  bool follower = false;                   // the second layer attends to the cache of the first
  bool biases = true;
  bool gelu_tanh = true;
  std::int64_t splits = 1;
};

std::string describe(const StepCase& c) {
  return std::string(dtype_name(c.dtype)) + ", cache " + dtype_name(c.cache_dtype) + ", batch " +
         std::to_string(c.lengths.size()) + (c.follower ? ", follower" : "") +
         (c.biases ? "" : ", no biases") + ", splits " + std::to_string(c.splits);
}

// One set of weights: tensors for the device, doubles for the twin.
class Model {
 public:
  explicit Model(const StepCase& c) : c_(c) {
    twin.n_embd = kWidth;
    twin.n_head = kHeads;
    twin.gelu_tanh = c.gelu_tanh;
    twin.int8_cache = c.cache_dtype == DType::kInt8;
    token_embedding = draw(twin.token_embedding, kVocab * kWidth, 0.0F, 0.3F);
    position_embedding = draw(twin.position_embedding, kBlockSize * kWidth, 0.0F, 1.5F);
    for (std::int64_t i = 0; i < kLayers; ++i) add_layer(c.follower && i % 2 == 1);
    ln_f_weight = draw(twin.ln_f_weight, kWidth, 1.0F, 0.1F);
    ln_f_bias = draw_bias(twin.ln_f_bias, kWidth);
  }

  reference::Gpt2 twin;
  std::vector<Gpt2LayerPointers> layers;
  const void *token_embedding, *position_embedding, *ln_f_weight, *ln_f_bias;

 private:
  const void* draw(std::vector<double>& values, std::int64_t count, float mean, float deviation) {
    const Tensor& tensor = tensors_.emplace_back(Tensor::normal(c_.dtype, count, mean, deviation, random_));
    for (std::int64_t i = 0; i < count; ++i) values.push_back(tensor[i]);
    return tensor.data();
  }

  const void* draw_bias(std::vector<double>& values, std::int64_t count) {
    return c_.biases ? draw(values, count, 0.0F, 0.1F) : nullptr;
  }

  void add_layer(bool follows) {
    constexpr float kDeviation =
        0.15F;  // large enough that the layers, not the token, decide what comes next
    Gpt2LayerPointers& device = layers.emplace_back();
    reference::Gpt2Layer& layer = twin.layers.emplace_back();
    device.ln_1_weight = draw(layer.ln_1_weight, kWidth, 1.0F, 0.1F);
    device.ln_1_bias = draw_bias(layer.ln_1_bias, kWidth);
    device.qkv_weight = draw(layer.qkv_weight, 3 * kWidth * kWidth, 0.0F, kDeviation);
    device.qkv_bias = draw_bias(layer.qkv_bias, 3 * kWidth);
    device.attn_proj_weight = draw(layer.attn_proj_weight, kWidth * kWidth, 0.0F, kDeviation);
    device.attn_proj_bias = draw_bias(layer.attn_proj_bias, kWidth);
    device.ln_2_weight = draw(layer.ln_2_weight, kWidth, 1.0F, 0.1F);
    device.ln_2_bias = draw_bias(layer.ln_2_bias, kWidth);
    device.fc_weight = draw(layer.fc_weight, 4 * kWidth * kWidth, 0.0F, kDeviation);
    device.fc_bias = draw_bias(layer.fc_bias, 4 * kWidth);
    device.mlp_proj_weight = draw(layer.mlp_proj_weight, 4 * kWidth * kWidth, 0.0F, kDeviation);
    device.mlp_proj_bias = draw_bias(layer.mlp_proj_bias, kWidth);
    layer.appends = device.appends = !follows;
    layer.cache_layer = follows ? 0 : layers.size() - 1;
    device.cache_layer = static_cast<std::int64_t>(layer.cache_layer);
  }

  StepCase c_;
  std::mt19937 random_{17};
  std::deque<Tensor> tensors_;
};

// The caches of the device. Rows not written hold NaN.
class DeviceCaches {
 public:
  explicit DeviceCaches(const StepCase& c) : batch_(static_cast<std::int64_t>(c.lengths.size())) {
    const std::int64_t rows = batch_ * kHeads * kBlockSize;
    for (std::int64_t i = 0; i < (c.follower ? 1 : kLayers); ++i) {
      CacheView& view = views.emplace_back();
      const auto storage = [&]() -> void* {
        Tensor& tensor = tensors_.emplace_back();
        tensor.dtype = c.cache_dtype;
        tensor.bytes.assign(static_cast<std::size_t>(rows * kHeadDim * element_bytes(c.cache_dtype)), '\xff');
        return tensor.data();
      };
      const auto scale = [&]() -> float* {
        if (c.cache_dtype != DType::kInt8) return nullptr;
        return scales_.emplace_back(static_cast<std::size_t>(rows), std::nanf("")).data();
      };
      view = {storage(), storage(), scale(), scale(), c.cache_dtype, batch_, kHeads, kBlockSize, kHeadDim};
    }
  }

  // Copies what the twin holds of sequence b.
  void set(std::int64_t b, const reference::Gpt2::Caches& twin) {
    for (std::size_t i = 0; i < views.size(); ++i) {
      const CacheView& view = views[i];
      set_side(2 * i, view.k_scale, b, twin[i].k);
      set_side(2 * i + 1, view.v_scale, b, twin[i].v);
    }
  }

  std::vector<CacheView> views;

 private:
  void set_side(std::size_t tensor, float* scale, std::int64_t b,
                const std::vector<std::vector<double>>& tokens) {
    for (std::size_t t = 0; t < tokens.size(); ++t)
      for (std::int64_t h = 0; h < kHeads; ++h) {
        const std::int64_t row = (b * kHeads + h) * kBlockSize + static_cast<std::int64_t>(t);
        const auto first = tokens[t].begin() + h * kHeadDim;
        const reference::QuantizedRow quantized = reference::quantize_row({first, first + kHeadDim});
        if (scale != nullptr) scale[row] = static_cast<float>(quantized.scale);
        for (std::int64_t d = 0; d < kHeadDim; ++d) {
          const std::int64_t at = row * kHeadDim + d;
          if (scale == nullptr)
            tensors_[tensor].set(at, static_cast<float>(first[d]));
          else
            tensors_[tensor].bytes[static_cast<std::size_t>(at)] =
                static_cast<char>(std::lround(quantized.codes[static_cast<std::size_t>(d)]));
        }
      }
  }

  std::int64_t batch_;
  std::deque<Tensor> tensors_;
  std::deque<std::vector<float>> scales_;
};

// A batch of sequences on the device, with the twin's caches of each.
struct Generation {
  Model model;
  DeviceCaches device_caches;
  std::vector<reference::Gpt2::Caches> twin_caches;
  std::vector<std::int64_t> tokens, out_tokens;
  std::vector<std::int32_t> cache_seqlens, steps;
  std::vector<float> logits;
  std::vector<uint4> workspace;
  DecodeStepParams params;

  explicit Generation(const StepCase& c) : model(c), device_caches(c) {
    const std::size_t batch = c.lengths.size();
    for (std::size_t b = 0; b < batch; ++b) {
      reference::Gpt2::Caches& caches = twin_caches.emplace_back(device_caches.views.size());
      for (std::size_t i = 0; i < c.lengths[b]; ++i)
        model.twin.step(static_cast<std::int64_t>((31 * b + 7 * i) % kVocab), caches);
      device_caches.set(static_cast<std::int64_t>(b), caches);
      tokens.push_back(static_cast<std::int64_t>(5 + 40 * b));
      cache_seqlens.push_back(static_cast<std::int32_t>(c.lengths[b]));
    }
    out_tokens.assign(batch * kSteps, -1);
    steps.assign(batch, 0);
    logits.assign(batch * kVocab, 0.0F);
    params = {.token_embedding = model.token_embedding,
              .position_embedding = model.position_embedding,
              .layers = model.layers,
              .ln_f_weight = model.ln_f_weight,
              .ln_f_bias = model.ln_f_bias,
              .caches = device_caches.views,
              .tokens = tokens.data(),
              .cache_seqlens = cache_seqlens.data(),
              .steps = steps.data(),
              .out_tokens = out_tokens.data(),
              .out_capacity = kSteps,
              .logits = logits.data(),
              .workspace = nullptr,
              .dtype = c.dtype,
              .gelu_tanh = c.gelu_tanh,
              .batch = static_cast<std::int64_t>(batch),
              .n_embd = kWidth,
              .n_head = kHeads,
              .vocab_size = kVocab,
              .block_size = kBlockSize,
              .splits = c.splits,
              .overlap_previous = true};
    const auto bytes = static_cast<std::size_t>(cuda::decode_step_workspace_bytes(params));
    workspace.resize((bytes + sizeof(uint4) - 1) / sizeof(uint4));
    params.workspace = workspace.data();
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
