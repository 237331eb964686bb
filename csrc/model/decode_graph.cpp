#include "csrc/model/decode_graph.h"

#include <ATen/ops/zeros.h>

#include <stdexcept>

#include "csrc/model/step_pointers.h"

namespace kvfuse {

DecodeGraph::DecodeGraph(const Gpt2& model, KvCache& cache, std::int64_t most_tokens,
                         const SamplerOptions& sampler, bool overlap_kernels,
                         const ops::CudaServices& services) {
  const Gpt2Weights& weights = model.weights();
  if (cache.sharing_group() != weights.sharing_group)
    throw std::invalid_argument("DecodeGraph: expected a cache for groups of " +
                                std::to_string(weights.sharing_group) + " layers, got " +
                                std::to_string(cache.sharing_group()));
  layers_ = layer_pointers(weights);
  caches_ = cache_views(cache, weights);
  cache.reset();
  const at::TensorOptions on_device = cache.cache_seqlens().options();
  tokens_ = at::zeros({cache.batch()}, on_device.dtype(at::kLong));
  steps_ = at::zeros({cache.batch()}, on_device.dtype(at::kInt));
  out_tokens_ = at::zeros({cache.batch(), most_tokens}, on_device.dtype(at::kLong));
  DecodeStepParams params = step_params(weights, cache, layers_, caches_);
  params.tokens = tokens_.mutable_data_ptr<std::int64_t>();
  params.steps = steps_.mutable_data_ptr<std::int32_t>();
  params.out_tokens = out_tokens_.mutable_data_ptr<std::int64_t>();
  params.out_capacity = most_tokens;
  params.overlap_previous = overlap_kernels;
  params.temperature = static_cast<float>(sampler.temperature);
  params.top_k = sampler.top_k;
  params.top_p = sampler.top_p;
  params.seed = sampler.seed;
  graph_ = services.capture_step(params, on_device.device().index());
}

void DecodeGraph::start(const at::Tensor& tokens) {
  tokens_.copy_(tokens);
  steps_.zero_();
}

}  // namespace kvfuse
