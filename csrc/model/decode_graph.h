// Generation on a CUDA device as replays of one captured graph: a whole decode step, from the last token to
// the next, without the host.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "csrc/model/gpt2.h"
#include "csrc/model/sampler.h"
#include "csrc/ops/cuda_services.h"

namespace kvfuse {

class DecodeGraph {
 public:
  // For `model` with `cache`, both on one CUDA device, and at most `most_tokens` from one start to the next.
  // `model` and the tensors of `cache` must outlive the graph; the cache is emptied. `overlap_kernels`: a
  // kernel fetches its weights before the one before it has ended.
  DecodeGraph(const Gpt2& model, KvCache& cache, std::int64_t most_tokens, const SamplerOptions& sampler,
              bool overlap_kernels, const ops::CudaServices& services);

  // Starts behind the tokens that the cache holds: `tokens` (int64 [batch]) are the newest, not yet in it.
  void start(const at::Tensor& tokens);
  // Enqueues one step: appends the newest tokens to the cache, each at the length of its own sequence, and
  // chooses the next. Between two steps the content of the cache may be exchanged.
  void step() { graph_->replay(); }
  // The first `count` tokens chosen since start: int64 [batch, count] on the device.
  at::Tensor chosen(std::int64_t count) const { return out_tokens_.narrow(1, 0, count); }

 private:
  std::vector<Gpt2LayerPointers> layers_;
  std::vector<CacheView> caches_;
  at::Tensor tokens_;      // int64 [batch]
  at::Tensor steps_;       // int32 [batch]
  at::Tensor out_tokens_;  // int64 [batch, most_tokens]
  std::unique_ptr<ops::StepGraph> graph_;
};

}  // namespace kvfuse
