// Host code: the kernels of a GPT-2 decode step in order.
#include "kernels/cuda/decode_step.h"

#include "kernels/cuda/attention.h"
#include "kernels/cuda/embedding.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/sampling.h"
#include "kernels/decode_step_sequence.h"

namespace kvfuse::cuda {
namespace {

// Enqueues the kernels of a step; each returns the launch's error.
struct Backend {
  using Status = cudaError_t;

  const DecodeStepParams& p;
  void* attention_workspace;
  cudaStream_t stream;

  static void begins(Phase) {}  // a graph has no host beside it
  static bool done(cudaError_t error) { return error == cudaSuccess; }
  cudaError_t embed(const EmbeddingParams& params) const {
    return cuda::embed(params, p.overlap_previous, stream);
  }
  cudaError_t linear(const LinearParams& params) const {
    return fused_linear(params, p.overlap_previous, stream);
  }
  cudaError_t attend(const AttentionParams& params) const {
    DecodeOptions options;
    options.workspace = attention_workspace;
    options.splits = p.splits;
    options.overlap_previous = p.overlap_previous;
    return decode_attention(params, options, stream);
  }
};

std::int64_t attention_workspace_bytes(const DecodeStepParams& p) {
  return decode_workspace_bytes(p.batch, p.n_head, /*query_rows=*/1, p.n_embd / p.n_head, p.splits);
}

bool has_sizes(const DecodeStepParams& p) { return step_has_sizes(p) && p.splits > 0; }

cudaError_t choose(const DecodeStepParams& p, cudaStream_t stream) {
  return sample({.logits = p.logits,
                 .tokens = p.tokens,
                 .out_tokens = p.out_tokens,
                 .steps = p.steps,
                 .cache_seqlens = p.cache_seqlens,
                 .batch = p.batch,
                 .vocab_size = p.vocab_size,
                 .out_capacity = p.out_capacity,
                 .temperature = p.temperature,
                 .top_k = p.top_k,
                 .top_p = p.top_p,
                 .seed = p.seed},
                p.overlap_previous, stream);
}

}  // namespace

std::int64_t decode_step_workspace_bytes(const DecodeStepParams& p) {
  return has_sizes(p) ? StepBuffers(p, nullptr, attention_workspace_bytes(p)).bytes : 0;
}

cudaError_t enqueue_decode_step(const DecodeStepParams& p, cudaStream_t stream) {
  if (!has_sizes(p) || !step_is_valid(p)) return cudaErrorInvalidValue;
  const StepBuffers buffers(p, p.workspace, attention_workspace_bytes(p));
  const cudaError_t error = StepSequence(p, buffers, Backend{p, buffers.attention_workspace, stream}).run();
  return error == cudaSuccess ? choose(p, stream) : error;
}

}  // namespace kvfuse::cuda
