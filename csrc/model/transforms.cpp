#include "csrc/model/transforms.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linalg_qr.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

namespace kvfuse {
namespace {

constexpr std::uint64_t kRotationSeed = 20240607;  // any: a rotation is as good as another

// A linear's rows by head, in float64 on the CPU.
struct Rows {
  at::Tensor weight;  // [n_head, head_dim, n_embd]
  at::Tensor bias;    // [n_head, head_dim]
};

// The attention of one layer, unfolded. A borrower has queries and output alone.
struct Attention {
  Rows q, k, v;
  at::Tensor out_weight;  // [n_embd, n_head, head_dim]
  at::Tensor out_bias;    // [n_embd]
};

class Folding {
 public:
  Folding(Gpt2Weights weights, const Transforms& transforms)
      : weights_(std::move(weights)),
        transforms_(transforms),
        generator_(at::detail::createCPUGenerator(kRotationSeed)) {}

  Gpt2Weights run() {
    const auto group = static_cast<std::size_t>(weights_.sharing_group);
    for (std::size_t first = 0; first < weights_.layers.size(); first += group) {
      const std::size_t end = std::min(first + group, weights_.layers.size());
      std::vector<Attention> layers;
      for (std::size_t i = first; i < end; ++i) layers.push_back(unfold(weights_.layers[i], i == first));
      transform(layers, weights_.layers[first]);
      for (std::size_t i = first; i < end; ++i) fold(layers[i - first], i == first, weights_.layers[i]);
    }
    return std::move(weights_);
  }

 private:
  // Without biases the model has no offsets to remove, and zeros stand in for them.
  bool has_bias() const { return weights_.ln_f_bias.defined(); }

  static at::Tensor wide(const at::Tensor& tensor) { return tensor.to(at::kCPU, at::kDouble); }

  Rows rows_of(const LayerWeights& layer, std::int64_t part) const {
    const ModelConfig& c = weights_.config;
    const at::Tensor weight = wide(layer.qkv_weight.narrow(0, part * c.n_embd, c.n_embd));
    return {weight.view({c.n_head, c.head_dim(), c.n_embd}),
            has_bias() ? wide(layer.qkv_bias.narrow(0, part * c.n_embd, c.n_embd)).view({c.n_head, -1})
                       : at::zeros({c.n_head, c.head_dim()}, at::kDouble)};
  }

  Attention unfold(const LayerWeights& layer, bool owns) const {
    const ModelConfig& c = weights_.config;
    return {.q = rows_of(layer, 0),
            .k = owns ? rows_of(layer, 1) : Rows{},
            .v = owns ? rows_of(layer, 2) : Rows{},
            .out_weight = wide(layer.attn_proj_weight).view({c.n_embd, c.n_head, c.head_dim()}),
            .out_bias = has_bias() ? wide(layer.attn_proj_bias) : at::zeros({c.n_embd}, at::kDouble)};
  }

  // `layers` share the keys and values of the first.
  void transform(std::vector<Attention>& layers, const LayerWeights& owner) {
    Attention& own = layers.front();
    // The projections read gain * x + shift, x being normalised: the shift gives the same in every token.
    const at::Tensor gain = wide(owner.ln_1_weight);
    const at::Tensor shift = has_bias() ? wide(owner.ln_1_bias) : at::zeros_like(gain);
    if (transforms_.k_bias) own.k.bias = -at::matmul(own.k.weight, shift);
    if (transforms_.v_bias) {
      const at::Tensor constant = at::matmul(own.v.weight, shift);
      for (Attention& layer : layers)
        layer.out_bias = layer.out_bias + (layer.out_weight * (constant + own.v.bias)).sum({1, 2});
      own.v.bias = -constant;
    }
    if (transforms_.qk_balance) {
      const at::Tensor offset = at::matmul(own.k.weight, shift) + own.k.bias;
      const at::Tensor size = ((own.k.weight * gain).square().sum(2) + offset.square()).sqrt();
      const at::Tensor factor = at::where(size > 0, size, at::ones_like(size)).unsqueeze(2);
      own.k = {own.k.weight / factor, own.k.bias / factor.squeeze(2)};
      for (Attention& layer : layers) layer.q = {layer.q.weight * factor, layer.q.bias * factor.squeeze(2)};
    }
    if (transforms_.rotation) rotate(layers);
  }

  void rotate(std::vector<Attention>& layers) {
    const auto turned = [](const at::Tensor& turn, const Rows& rows) {
      return Rows{at::matmul(turn, rows.weight), at::matmul(turn, rows.bias.unsqueeze(2)).squeeze(2)};
    };
    const at::Tensor of_keys = random_rotations();
    const at::Tensor of_values = random_rotations();
    Attention& own = layers.front();
    own.k = turned(of_keys, own.k);
    own.v = turned(of_values, own.v);
    for (Attention& layer : layers) {
      layer.q = turned(of_keys, layer.q);
      // The output reads what the rotation's transpose turns back.
      layer.out_weight =
          at::matmul(layer.out_weight.permute({1, 0, 2}), of_values.transpose(1, 2)).permute({1, 0, 2});
    }
  }

  // Orthogonal [n_head, head_dim, head_dim]: from the QR factors of normal matrices.
  at::Tensor random_rotations() {
    const ModelConfig& c = weights_.config;
    const at::Tensor normal =
        at::empty({c.n_head, c.head_dim(), c.head_dim()}, at::kDouble).normal_(0.0, 1.0, generator_);
    return std::get<0>(at::linalg_qr(normal));
  }

  void fold(const Attention& attention, bool owns, LayerWeights& layer) const {
    const ModelConfig& c = weights_.config;
    const at::TensorOptions stored = layer.qkv_weight.options();
    std::vector<at::Tensor> weights = {attention.q.weight};
    std::vector<at::Tensor> biases = {attention.q.bias};
    if (owns) {
      weights.insert(weights.end(), {attention.k.weight, attention.v.weight});
      biases.insert(biases.end(), {attention.k.bias, attention.v.bias});
    }
    layer.qkv_weight = at::cat(weights).reshape({-1, c.n_embd}).to(stored);
    layer.attn_proj_weight = attention.out_weight.reshape({c.n_embd, c.n_embd}).to(stored);
    if (!has_bias()) return;
    layer.qkv_bias = at::cat(biases).reshape({-1}).to(stored);
    layer.attn_proj_bias = attention.out_bias.to(stored);
  }

  Gpt2Weights weights_;
  const Transforms transforms_;
  at::Generator generator_;
};

}  // namespace

Gpt2Weights fold_transforms(Gpt2Weights weights, const Transforms& transforms) {
  return transforms.any() ? Folding(std::move(weights), transforms).run() : weights;
}

}  // namespace kvfuse
