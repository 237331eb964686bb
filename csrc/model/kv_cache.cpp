#include "csrc/model/kv_cache.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "csrc/ops/ops.h"

namespace kvfuse {
namespace {

void check(bool holds, const std::string& rule, std::int64_t got) {
  if (!holds) throw std::invalid_argument("KvCache: expected " + rule + ", got " + std::to_string(got));
}

std::vector<at::Tensor> tensors_of(const KvCacheLayer& layer) {
  std::vector<at::Tensor> tensors = {layer.k, layer.v};
  if (layer.k_scale) tensors.insert(tensors.end(), {*layer.k_scale, *layer.v_scale});
  return tensors;
}

// `count` layers that lie one behind the other in memory, which together are large enough for 2 MiB pages.
// Zeros rather than empty: the pages exist before the first token is timed.
std::vector<KvCacheLayer> make_layers(std::int64_t count, at::IntArrayRef rows, std::int64_t head_dim,
                                      const at::TensorOptions& stored) {
  std::vector<std::int64_t> scales = {count, 2};
  scales.insert(scales.end(), rows.begin(), rows.end());
  std::vector<std::int64_t> codes = scales;
  codes.push_back(head_dim);
  const at::Tensor all = at::zeros(codes, stored);
  const bool quantised = stored.dtype() == at::kChar;
  const at::Tensor all_scales = quantised ? at::zeros(scales, stored.dtype(at::kFloat)) : at::Tensor();
  std::vector<KvCacheLayer> layers(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) {
    KvCacheLayer& layer = layers[static_cast<std::size_t>(i)];
    layer.k = all[i][0];
    layer.v = all[i][1];
    if (!quantised) continue;
    layer.k_scale = all_scales[i][0];
    layer.v_scale = all_scales[i][1];
  }
  return layers;
}

}  // namespace

KvCache::KvCache(const ModelConfig& config, const Strategy& strategy, std::int64_t batch,
                 std::int64_t capacity, const at::TensorOptions& model)
    : sharing_group_(strategy.sharing_group) {
  if (!strategy.use_cache)
    throw std::invalid_argument("KvCache: version " + std::string(strategy.name) + " keeps no cache");
  check(batch >= 1, "batch >= 1", batch);
  check(capacity >= 1 && capacity <= config.block_size,
        "1 <= capacity <= block_size " + std::to_string(config.block_size), capacity);
  const bool quantised = strategy.kv_cache_dtype == KvCacheDtype::kInt8;
  layers_ = make_layers(owning_layers(config.n_layer, sharing_group_), {batch, config.n_head, capacity},
                        config.head_dim(), quantised ? model.dtype(at::kChar) : model);
  begin(batch, capacity);
}

std::int64_t KvCache::length() const { return *std::max_element(lengths_.begin(), lengths_.end()); }
bool KvCache::uniform() const { return *std::min_element(lengths_.begin(), lengths_.end()) == length(); }

void KvCache::advance(std::int64_t tokens) {
  note_appended(tokens);
  cache_seqlens_.add_(tokens);
}

void KvCache::advance(const std::vector<std::int64_t>& tokens) {
  if (std::equal(tokens.begin() + 1, tokens.end(), tokens.begin())) return advance(tokens.front());
  count(tokens);
  set_lengths(lengths_);
}

void KvCache::note_appended(std::int64_t tokens) {
  count(std::vector<std::int64_t>(lengths_.size(), tokens));
}

void KvCache::count(const std::vector<std::int64_t>& tokens) {
  std::vector<std::int64_t> lengths = lengths_;
  for (std::size_t b = 0; b < lengths.size(); ++b) {
    lengths[b] += tokens[b];
    if (lengths[b] > capacity_)
      throw std::out_of_range("KvCache: expected length " + std::to_string(lengths_[b]) + " + " +
                              std::to_string(tokens[b]) + " <= capacity " + std::to_string(capacity_));
  }
  lengths_ = std::move(lengths);
}

void KvCache::crop(std::int64_t length) {
  const std::int64_t shortest = *std::min_element(lengths_.begin(), lengths_.end());
  if (length < 0 || length > shortest)
    throw std::out_of_range("KvCache: expected 0 <= length <= " + std::to_string(shortest) +
                            " to crop to, got " + std::to_string(length));
  set_lengths(std::vector<std::int64_t>(lengths_.size(), length));
}

void KvCache::set_lengths(std::vector<std::int64_t> lengths) {
  lengths_ = std::move(lengths);
  if (uniform()) {
    cache_seqlens_.fill_(lengths_.front());
    return;
  }
  at::Tensor host = at::empty(cache_seqlens_.sizes(), at::TensorOptions().dtype(at::kInt));
  std::copy(lengths_.begin(), lengths_.end(), host.mutable_data_ptr<std::int32_t>());
  cache_seqlens_.copy_(host);
}

void KvCache::drop(const std::vector<std::int64_t>& sequences, std::int64_t first, std::int64_t count) {
  std::vector<std::int64_t> lengths = lengths_;
  for (const std::int64_t b : sequences) {
    std::int64_t& length = lengths[static_cast<std::size_t>(b)];
    if (first < 0 || count < 0 || first + count > length)
      throw std::out_of_range("KvCache: expected tokens within the length " + std::to_string(length) +
                              " to drop, got " + std::to_string(count) + " from " + std::to_string(first) +
                              " on");
    const std::int64_t behind = length - first - count;
    for (const KvCacheLayer& layer : layers_)
      for (const at::Tensor& rows : tensors_of(layer)) {
        const at::Tensor sequence = rows.select(0, b);
        // A copy first: what moves up may overlap where it goes.
        sequence.narrow(1, first, behind).copy_(sequence.narrow(1, first + count, behind).clone());
      }
    length -= count;
  }
  set_lengths(std::move(lengths));
}

void KvCache::replace(const std::vector<std::int64_t>& sequences, const KvCache& part) {
  const std::int64_t most = std::min(capacity_, part.capacity_);
  std::vector<std::int64_t> lengths = lengths_;
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
      const std::vector<at::Tensor> from = tensors_of(part.layers_[layer]);
      const std::vector<at::Tensor> to = tensors_of(layers_[layer]);
      for (std::size_t k = 0; k < to.size(); ++k)
        to[k]
            .select(0, sequences[i])
            .narrow(1, 0, most)
            .copy_(from[k].select(0, static_cast<std::int64_t>(i)).narrow(1, 0, most));
    }
    lengths[static_cast<std::size_t>(sequences[i])] = part.lengths_[i];
  }
  set_lengths(std::move(lengths));
}

KvCache KvCache::make_empty(std::int64_t batch, std::int64_t capacity) const {
  KvCache cache = *this;
  const at::Tensor& k = layers_.front().k;
  cache.layers_ = make_layers(static_cast<std::int64_t>(layers_.size()), {batch, k.size(1), capacity},
                              k.size(3), k.options());
  cache.begin(batch, capacity);
  return cache;
}

void KvCache::begin(std::int64_t batch, std::int64_t capacity) {
  capacity_ = capacity;
  lengths_.assign(static_cast<std::size_t>(batch), 0);
  const at::Tensor& k = layers_.front().k;
  cache_seqlens_ = at::zeros({batch}, k.options().dtype(at::kInt));
  // The size is the same for every dtype of the queries.
  const at::ScalarType dtype = k.scalar_type() == at::kChar ? at::kFloat : k.scalar_type();
  workspace_ =
      ops::decode_workspace(at::empty({batch, k.size(1), 1, k.size(3)}, k.options().dtype(dtype)), k);
}

std::int64_t KvCache::byte_size() const {
  std::int64_t bytes = 0;
  for (const KvCacheLayer& layer : layers_)
    for (const at::Tensor& tensor : tensors_of(layer)) bytes += static_cast<std::int64_t>(tensor.nbytes());
  return bytes;
}

}  // namespace kvfuse
