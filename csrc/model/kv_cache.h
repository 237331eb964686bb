// The keys and values of the tokens seen so far, one tensor of each per owning layer, written in place by the
// operators.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/TensorOptions.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "csrc/model/config.h"

namespace kvfuse {

// What one owning layer keeps.
struct KvCacheLayer {
  at::Tensor k, v;                             // [batch, n_head, capacity, head_dim]
  std::optional<at::Tensor> k_scale, v_scale;  // float32 [batch, n_head, capacity]; only with int8 codes
};

class KvCache {
 public:
  // Holds `capacity` tokens of `batch` sequences; `model` gives the model's dtype and device. Throws
  // std::invalid_argument if batch or capacity is below 1, if capacity exceeds block_size, or if the strategy
  // keeps no cache.
  KvCache(const ModelConfig& config, const Strategy& strategy, std::int64_t batch, std::int64_t capacity,
          const at::TensorOptions& model);

  // That which layer `index` of the model attends to: its own, or its owner's.
  const KvCacheLayer& layer(std::int64_t index) const {
    return layers_[static_cast<std::size_t>(index / sharing_group_)];
  }
  std::int64_t owners() const { return static_cast<std::int64_t>(layers_.size()); }
  std::int64_t sharing_group() const { return sharing_group_; }
  const at::Tensor& cache_seqlens() const { return cache_seqlens_; }  // int32 [batch]
  const at::Tensor& workspace() const { return workspace_; }          // for ops::decode_attention
  std::int64_t batch() const { return cache_seqlens_.numel(); }
  std::int64_t capacity() const { return capacity_; }
  // Tokens held, by sequence: known on the host too, so that nothing has to wait for the device.
  const std::vector<std::int64_t>& lengths() const { return lengths_; }
  std::int64_t length() const;  // of the longest sequence
  bool uniform() const;         // all sequences are of that length

  // Counts tokens that every layer has appended: the same number of each sequence, or `tokens` [batch].
  // Throws std::out_of_range past the capacity.
  void advance(std::int64_t tokens);
  void advance(const std::vector<std::int64_t>& tokens);
  // Takes note of tokens of each sequence that a captured step has appended and counted on the device.
  void note_appended(std::int64_t tokens);
  // Forgets all but the first `length` tokens. Throws std::out_of_range if a sequence has fewer.
  void crop(std::int64_t length);
  void reset() { crop(0); }

  // Forgets `count` tokens from `first` on of each of `sequences`; those behind them move up, with the
  // positions that they were computed for. Throws std::out_of_range if a sequence has fewer.
  void drop(const std::vector<std::int64_t>& sequences, std::int64_t first, std::int64_t count);
  // Takes what `part` holds as the new content of `sequences`: one of its own after the other.
  void replace(const std::vector<std::int64_t>& sequences, const KvCache& part);
  // An empty cache for the same layers.
  KvCache make_empty(std::int64_t batch, std::int64_t capacity) const;

  std::int64_t byte_size() const;

 private:
  // What depends on the layers' tensors and on their sizes alone.
  void begin(std::int64_t batch, std::int64_t capacity);
  void count(const std::vector<std::int64_t>& tokens);
  void set_lengths(std::vector<std::int64_t> lengths);

  std::vector<KvCacheLayer> layers_;
  at::Tensor cache_seqlens_;
  at::Tensor workspace_;
  std::int64_t capacity_ = 0;
  std::int64_t sharing_group_;
  std::vector<std::int64_t> lengths_;
};

}  // namespace kvfuse
