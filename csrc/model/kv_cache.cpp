#include "csrc/model/kv_cache.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <stdexcept>
#include <string>

#include "csrc/ops/ops.h"

namespace kvfuse {
namespace {

void check(bool holds, const std::string& rule, std::int64_t got) {
  if (!holds) throw std::invalid_argument("KvCache: expected " + rule + ", got " + std::to_string(got));
}

}  // namespace

KvCache::KvCache(const ModelConfig& config, const Strategy& strategy, std::int64_t batch,
                 std::int64_t capacity, const at::TensorOptions& model)
    : capacity_(capacity), sharing_group_(strategy.sharing_group) {
  if (!strategy.use_cache)
    throw std::invalid_argument("KvCache: version " + std::string(strategy.name) + " keeps no cache");
  check(batch >= 1, "batch >= 1", batch);
  check(capacity >= 1 && capacity <= config.block_size,
        "1 <= capacity <= block_size " + std::to_string(config.block_size), capacity);
  const bool quantised = strategy.kv_cache_dtype == KvCacheDtype::kInt8;
  const std::vector<std::int64_t> codes = {batch, config.n_head, capacity, config.head_dim()};
  const std::vector<std::int64_t> scales = {batch, config.n_head, capacity};
  const at::TensorOptions stored = quantised ? model.dtype(at::kChar) : model;
  // Zeros rather than empty: the pages exist before the first token is timed.
  for (std::int64_t i = 0; i < owning_layers(config.n_layer, sharing_group_); ++i) {
    KvCacheLayer layer;
    layer.k = at::zeros(codes, stored);
    layer.v = at::zeros(codes, stored);
    if (quantised) {
      layer.k_scale = at::zeros(scales, model.dtype(at::kFloat));
      layer.v_scale = at::zeros(scales, model.dtype(at::kFloat));
    }
    layers_.push_back(std::move(layer));
  }
  cache_seqlens_ = at::zeros({batch}, model.dtype(at::kInt));
  const at::Tensor query = at::empty({batch, config.n_head, 1, config.head_dim()}, model);
  workspace_ = ops::decode_workspace(query, layers_.front().k);
}

void KvCache::advance(std::int64_t tokens) {
  if (length_ + tokens > capacity_)
    throw std::out_of_range("KvCache: expected length " + std::to_string(length_) + " + " +
                            std::to_string(tokens) + " <= capacity " + std::to_string(capacity_));
  set_length(length_ + tokens);
}

void KvCache::crop(std::int64_t length) {
  if (length < 0 || length > length_)
    throw std::out_of_range("KvCache: expected 0 <= length <= " + std::to_string(length_) +
                            " to crop to, got " + std::to_string(length));
  set_length(length);
}

void KvCache::set_length(std::int64_t length) {
  length_ = length;
  cache_seqlens_.fill_(length);
}

std::int64_t KvCache::byte_size() const {
  std::int64_t bytes = 0;
  for (const KvCacheLayer& layer : layers_)
    for (const at::Tensor& tensor :
         {layer.k, layer.v, layer.k_scale.value_or(at::Tensor()), layer.v_scale.value_or(at::Tensor())})
      if (tensor.defined()) bytes += static_cast<std::int64_t>(tensor.nbytes());
  return bytes;
}

}  // namespace kvfuse
