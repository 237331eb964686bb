#include "csrc/model/layer_fit.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/cholesky_solve.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/linalg_cholesky.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "csrc/model/gpt2.h"
#include "csrc/model/layer_sharing.h"

namespace kvfuse {
namespace {

// Of the owner's mean squared channel. Keeps the equations solvable whatever the rank of the owner's rows; on
// trained models more than 1e-4 costs perplexity, and less than 1e-6 gains nothing.
constexpr double kRidge = 1e-6;

// A borrower's row is about its owner's row * map + offset. In float64 on the CPU.
struct HeadMaps {
  at::Tensor map;     // [n_head, head_dim, head_dim]
  at::Tensor offset;  // [n_head, head_dim]
  double error;       // LayerFit says what it means
};

// Sums over pairs of rows, one of the owner and one of the borrower: all that least squares needs of them.
class Moments {
 public:
  Moments(const ModelConfig& config, at::Device device)
      : head_dim_(config.head_dim()),
        sums_(at::zeros({config.n_head, 1, 2 * head_dim_}, at::TensorOptions(at::kDouble).device(device))),
        products_(at::zeros({config.n_head, 2 * head_dim_, 2 * head_dim_}, sums_.options())) {}

  // [n_head, T, head_dim] each.
  void add(const at::Tensor& of_owner, const at::Tensor& of_borrower) {
    const at::Tensor rows = at::cat({of_owner, of_borrower}, 2).to(at::kDouble);
    sums_ = sums_ + rows.sum(1, /*keepdim=*/true);
    products_ = products_ + at::matmul(rows.transpose(1, 2), rows);
    count_ += static_cast<double>(rows.size(1));
  }

  HeadMaps solve(bool with_offset) const {
    const at::Tensor sums = sums_.to(at::kCPU);
    const at::Tensor means = with_offset ? sums / count_ : at::zeros_like(sums);
    const at::Tensor spread = products_.to(at::kCPU) - count_ * at::matmul(means.transpose(1, 2), means);
    if (!at::isfinite(spread).all().item<bool>())
      throw std::invalid_argument(
          "fit_shared_layers: expected finite keys and values on the calibration tokens, got NaN or infinity "
          "(are the weights damaged?)");
    const at::Tensor owner = part(spread, 0, 0);
    const at::Tensor both = part(spread, 0, 1);
    const at::Tensor mean_square = owner.diagonal(0, 1, 2).mean(1).view({-1, 1, 1});
    const at::Tensor ridge = kRidge * at::where(mean_square > 0, mean_square, at::ones_like(mean_square)) *
                             at::eye(head_dim_, at::kDouble);
    HeadMaps maps;
    maps.map = at::cholesky_solve(both, at::linalg_cholesky(owner + ridge));
    maps.offset =
        (means.narrow(2, head_dim_, head_dim_) - at::matmul(means.narrow(2, 0, head_dim_), maps.map))
            .squeeze(1);
    const double total = part(spread, 1, 1).diagonal(0, 1, 2).sum().item<double>();
    const double left = total + (maps.map * (at::matmul(owner, maps.map) - 2 * both)).sum().item<double>();
    maps.error = total > 0 ? std::sqrt(std::max(left, 0.0) / total) : 0;
    return maps;
  }

 private:
  at::Tensor part(const at::Tensor& products, std::int64_t row, std::int64_t column) const {
    return products.narrow(1, row * head_dim_, head_dim_).narrow(2, column * head_dim_, head_dim_);
  }

  std::int64_t head_dim_;
  at::Tensor sums_;      // [n_head, 1, 2 * head_dim]: owner, borrower
  at::Tensor products_;  // [n_head, 2 * head_dim, 2 * head_dim]
  double count_ = 0;
};

struct Borrower {
  LayerFit fit;
  Moments keys, values;
};

std::vector<Borrower> borrowers_of(const Gpt2Weights& weights, std::int64_t group) {
  const at::Device device = weights.device();
  std::vector<Borrower> borrowers;
  for (std::int64_t i = 0; i < weights.config.n_layer; ++i)
    if (i % group != 0)
      borrowers.push_back({{.layer = i, .owner = i - i % group},
                           Moments(weights.config, device),
                           Moments(weights.config, device)});
  return borrowers;
}

void collect(const Gpt2Weights& weights, const at::Tensor& tokens, std::vector<Borrower>& borrowers) {
  const c10::InferenceMode inference;
  const Gpt2 model(weights);
  const std::int64_t window = std::min(weights.config.block_size, tokens.numel());
  const Strategy every_layer{.name = "calibration", .description = "", .use_cache = true};
  KvCache cache(weights.config, every_layer, 1, window, weights.options());
  for (std::int64_t first = 0; first < tokens.numel(); first += window) {
    const std::int64_t length = std::min(window, tokens.numel() - first);
    cache.reset();
    model.forward(tokens.narrow(0, first, length).unsqueeze(0), &cache, LogitsOf::kLastToken);
    const auto rows = [&](const at::Tensor& cached) { return cached.select(0, 0).narrow(1, 0, length); };
    for (Borrower& borrower : borrowers) {
      const KvCacheLayer& owner = cache.layer(borrower.fit.owner);
      const KvCacheLayer& own = cache.layer(borrower.fit.layer);
      borrower.keys.add(rows(owner.k), rows(own.k));
      borrower.values.add(rows(owner.v), rows(own.v));
    }
  }
}

// q * (k * map) = (q * map^T) * k, and what attention makes of v * map + offset is that of v, * map + offset:
// its weights sum to 1. The offset of the keys adds the same to every score, which softmax does not see.
void fold(const HeadMaps& keys, const HeadMaps& values, const ModelConfig& c, LayerWeights& layer) {
  const at::TensorOptions stored = layer.qkv_weight.options();
  const auto wide = [](const at::Tensor& tensor) { return tensor.to(at::kCPU, at::kDouble); };
  const at::Tensor queries = wide(layer.qkv_weight).view({c.n_head, c.head_dim(), c.n_embd});
  const at::Tensor output =
      wide(layer.attn_proj_weight).view({c.n_embd, c.n_head, c.head_dim()}).permute({1, 0, 2});
  layer.qkv_weight = at::matmul(keys.map, queries).reshape({c.n_embd, c.n_embd}).to(stored);
  layer.attn_proj_weight = at::matmul(output, values.map.transpose(1, 2))
                               .permute({1, 0, 2})
                               .reshape({c.n_embd, c.n_embd})
                               .to(stored);
  if (!layer.qkv_bias.defined()) return;
  const at::Tensor query_bias = wide(layer.qkv_bias).view({c.n_head, c.head_dim(), 1});
  layer.qkv_bias = at::matmul(keys.map, query_bias).reshape({c.n_embd}).to(stored);
  layer.attn_proj_bias =
      (wide(layer.attn_proj_bias) + at::matmul(output, values.offset.unsqueeze(2)).sum(0).squeeze(1))
          .to(stored);
}

}  // namespace

FittedLayers fit_shared_layers(const Gpt2Weights& weights, const Strategy& strategy,
                               const at::Tensor& tokens) {
  if (tokens.numel() == 0) throw std::invalid_argument("fit_shared_layers: expected tokens, got none");
  Strategy unaligned = strategy;
  unaligned.q_alignment = QAlignment::kNone;
  FittedLayers fitted{.weights = with_shared_layers(weights, unaligned), .fits = {}};
  std::vector<Borrower> borrowers = borrowers_of(weights, strategy.sharing_group);
  collect(weights, tokens, borrowers);
  // Without biases there is no place for what the values have in common.
  const bool has_bias = weights.ln_f_bias.defined();
  for (Borrower& borrower : borrowers) {
    const HeadMaps keys = borrower.keys.solve(/*with_offset=*/true);
    const HeadMaps values = borrower.values.solve(has_bias);
    fold(keys, values, weights.config, fitted.weights.layers[static_cast<std::size_t>(borrower.fit.layer)]);
    borrower.fit.k_error = keys.error;
    borrower.fit.v_error = values.error;
    fitted.fits.push_back(borrower.fit);
  }
  return fitted;
}

}  // namespace kvfuse
