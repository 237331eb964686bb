// A tiny GPT-2 that generates tokens from a state in memory, beside its double-precision twin.
#pragma once

#include <cmath>
#include <cstdint>
#include <deque>
#include <random>
#include <string>
#include <vector>

#include "kernels/decode_step.h"
#include "kernels/reference/gpt2_step.h"
#include "kernels/reference/reference.h"
#include "kernels/weight_pack.h"
#include "kernels/weight_quant.h"
#include "tests/cpp/tensors.h"

namespace kvfuse::test {

inline constexpr std::int64_t kWidth = 128, kHeads = 2, kHeadDim = kWidth / kHeads;
inline constexpr std::int64_t kLayers = 2, kVocab = 97, kBlockSize = 16;
inline constexpr int kSteps = 6;

struct StepCase {
  DType dtype = DType::kFloat32;
  DType cache_dtype = DType::kFloat32;
  std::vector<std::size_t> lengths = {0};  // cached tokens at the start, a sequence each
  bool follower = false;                   // the second layer attends to the cache of the first
  bool biases = true;
  bool gelu_tanh = true;
  std::int64_t splits = 1;
  WeightFormat weights = WeightFormat::kFloat;  // of the linears; with codes, the token embedding is int8
};

inline std::string describe(const StepCase& c) {
  return std::string(dtype_name(c.dtype)) + ", cache " + dtype_name(c.cache_dtype) + ", batch " +
         std::to_string(c.lengths.size()) + (c.follower ? ", follower" : "") +
         (c.biases ? "" : ", no biases") + ", splits " + std::to_string(c.splits) +
         (has_int8_codes(c.weights)   ? ", int8 weights"
          : has_int4_codes(c.weights) ? ", int4 weights"
                                      : "") +
         (lies_in_panels(c.weights) ? ", packed" : "");
}

// One set of weights: tensors for the device, doubles for the twin.
class Model {
 public:
  explicit Model(const StepCase& c) : c_(c) {
    twin.n_embd = kWidth;
    twin.n_head = kHeads;
    twin.gelu_tanh = c.gelu_tanh;
    twin.dtype = c.dtype;
    twin.int8_cache = c.cache_dtype == DType::kInt8;
    twin.int8_layers = has_int8_codes(c.weights);
    twin.int8_head = has_codes(c.weights);
    token_format = c.weights;
    if (has_int4_codes(c.weights))
      token_format = lies_in_panels(c.weights) ? WeightFormat::kInt8Panels : WeightFormat::kInt8Rows;
    token_embedding =
        draw_matrix(twin.token_embedding, kVocab, kWidth, 0.3F, token_format, token_embedding_scale);
    position_embedding = draw(twin.position_embedding, kBlockSize * kWidth, 0.0F, 1.5F);
    for (std::int64_t i = 0; i < kLayers; ++i) add_layer(c.follower && i % 2 == 1);
    ln_f_weight = draw(twin.ln_f_weight, kWidth, 1.0F, 0.1F);
    ln_f_bias = draw_bias(twin.ln_f_bias, kWidth);
  }

  reference::Gpt2 twin;
  std::vector<Gpt2LayerPointers> layers;
  const void *token_embedding, *position_embedding, *ln_f_weight, *ln_f_bias;
  const void* token_embedding_scale = nullptr;
  WeightFormat token_format = WeightFormat::kFloat;

 private:
  const void* draw(std::vector<double>& values, std::int64_t count, float mean, float deviation) {
    const Tensor& tensor = tensors_.emplace_back(Tensor::normal(c_.dtype, count, mean, deviation, random_));
    for (std::int64_t i = 0; i < count; ++i) values.push_back(tensor[i]);
    return tensor.data();
  }

  const void* draw_bias(std::vector<double>& values, std::int64_t count) {
    return c_.biases ? draw(values, count, 0.0F, 0.1F) : nullptr;
  }

  // A weight of `format`; its codes, if that has some.
  const void* draw_matrix(std::vector<double>& values, std::int64_t out, std::int64_t in, float deviation,
                          WeightFormat format, const void*& scale) {
    const void* weight = draw(values, out * in, 0.0F, deviation);
    if (has_codes(format)) return rounded(values, in, format, scale);
    if (format == WeightFormat::kFloatPanels)
      cpu::pack_weight(tensors_.back().data(), {.dtype = c_.dtype, .out_size = out, .in = in});
    return weight;
  }

  const void* draw_linear(std::vector<double>& values, std::int64_t out, std::int64_t in, float deviation,
                          const void*& scale) {
    return draw_matrix(values, out, in, deviation, c_.weights, scale);
  }

  // Replaces the values [.., in] by those that codes and scales stand for. Quantising has tests of its own.
  const void* rounded(std::vector<double>& values, std::int64_t in, WeightFormat format, const void*& scale) {
    const std::vector<float> weight(values.begin(), values.end());
    const auto out = static_cast<std::int64_t>(values.size()) / in;
    std::vector<char>& codes =
        codes_.emplace_back(static_cast<std::size_t>(out * weight_row_bytes(format, DType::kInt8, in)));
    std::vector<char>& scales =
        codes_.emplace_back(static_cast<std::size_t>(out * scale_row_bytes(format, in)));
    cpu::quantize_weight(
        {.weight = weight.data(),
         .format = has_int4_codes(format) ? WeightFormat::kInt4Groups : WeightFormat::kInt8Rows,
         .codes = codes.data(),
         .scale = scales.data(),
         .out_size = out,
         .in = in});
    if (lies_in_panels(format)) {
      cpu::pack_weight(codes.data(), {.panels = format, .out_size = out, .in = in});
      if (has_int4_codes(format))
        cpu::pack_weight(scales.data(), {.dtype = DType::kFloat16, .out_size = out, .in = in / kInt4Group});
    }
    values = reference::weight_values({.weight = codes.data(),
                                       .weight_scale = scales.data(),
                                       .weight_format = format,
                                       .in = in,
                                       .out_size = out});
    scale = scales.data();
    return codes.data();
  }

  void add_layer(bool follows) {
    constexpr float kDeviation =
        0.15F;  // large enough that the layers, not the token, decide what comes next
    Gpt2LayerPointers& device = layers.emplace_back();
    reference::Gpt2Layer& layer = twin.layers.emplace_back();
    device.ln_1_weight = draw(layer.ln_1_weight, kWidth, 1.0F, 0.1F);
    device.ln_1_bias = draw_bias(layer.ln_1_bias, kWidth);
    device.qkv_weight =
        draw_linear(layer.qkv_weight, 3 * kWidth, kWidth, kDeviation, device.qkv_weight_scale);
    device.qkv_bias = draw_bias(layer.qkv_bias, 3 * kWidth);
    device.attn_proj_weight =
        draw_linear(layer.attn_proj_weight, kWidth, kWidth, kDeviation, device.attn_proj_weight_scale);
    device.attn_proj_bias = draw_bias(layer.attn_proj_bias, kWidth);
    device.ln_2_weight = draw(layer.ln_2_weight, kWidth, 1.0F, 0.1F);
    device.ln_2_bias = draw_bias(layer.ln_2_bias, kWidth);
    device.fc_weight = draw_linear(layer.fc_weight, 4 * kWidth, kWidth, kDeviation, device.fc_weight_scale);
    device.fc_bias = draw_bias(layer.fc_bias, 4 * kWidth);
    device.mlp_proj_weight =
        draw_linear(layer.mlp_proj_weight, kWidth, 4 * kWidth, kDeviation, device.mlp_proj_weight_scale);
    device.mlp_proj_bias = draw_bias(layer.mlp_proj_bias, kWidth);
    layer.appends = device.appends = !follows;
    layer.cache_layer = follows ? 0 : layers.size() - 1;
    device.cache_layer = static_cast<std::int64_t>(layer.cache_layer);
  }

  StepCase c_;
  std::mt19937 random_{17};
  std::deque<Tensor> tensors_;
  std::deque<std::vector<char>> codes_;  // and scales
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
  std::vector<std::uint64_t> workspace;
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
              .token_embedding_scale = static_cast<const float*>(model.token_embedding_scale),
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
              .layer_format = c.weights,
              .token_format = model.token_format,
              .gelu_tanh = c.gelu_tanh,
              .batch = static_cast<std::int64_t>(batch),
              .n_embd = kWidth,
              .n_head = kHeads,
              .vocab_size = kVocab,
              .block_size = kBlockSize,
              .splits = c.splits,
              .overlap_previous = true};
  }

  void give_workspace(std::int64_t bytes) {
    workspace.assign(static_cast<std::size_t>(bytes + 7) / 8, 0);
    params.workspace = workspace.data();
  }
};

}  // namespace kvfuse::test
