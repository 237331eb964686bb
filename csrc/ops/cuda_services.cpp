// What libkvfuse_ops_cuda.so offers beside the operators: the device, the decode step as a CUDA graph, and
// marks for profilers.
#include "csrc/ops/cuda_services.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_profiler_api.h>
#include <nvtx3/nvToolsExt.h>

#include <algorithm>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/decode_step.h"

namespace kvfuse::ops {
namespace {

cudaDeviceProp properties_of(int device) {
  cudaDeviceProp properties{};
  C10_CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
  return properties;
}

// The length of the shortest cache: what the splits are laid out for.
std::int64_t capacity_of(const DecodeStepParams& params) {
  std::int64_t capacity = params.block_size;
  for (const CacheView& cache : params.caches) capacity = std::min(capacity, cache.capacity);
  return capacity;
}

// Where the sequences stand, kept over the step that loads the kernels.
class SavedState {
 public:
  explicit SavedState(const DecodeStepParams& params) : params_(params) { copy(/*restore=*/false); }
  void restore() { copy(/*restore=*/true); }

 private:
  template <typename T>
  void copy_one(std::vector<T>& saved, T* device, bool restore) {
    saved.resize(static_cast<std::size_t>(params_.batch));
    const std::size_t bytes = saved.size() * sizeof(T);
    C10_CUDA_CHECK(restore ? cudaMemcpy(device, saved.data(), bytes, cudaMemcpyHostToDevice)
                           : cudaMemcpy(saved.data(), device, bytes, cudaMemcpyDeviceToHost));
  }
  void copy(bool restore) {
    copy_one(tokens_, params_.tokens, restore);
    copy_one(cache_seqlens_, params_.cache_seqlens, restore);
    copy_one(steps_, params_.steps, restore);
  }

  const DecodeStepParams& params_;
  std::vector<std::int64_t> tokens_;
  std::vector<std::int32_t> cache_seqlens_;
  std::vector<std::int32_t> steps_;
};

class CapturedStep final : public StepGraph {
 public:
  CapturedStep(const DecodeStepParams& params, int device) : params_(params) {
    const c10::cuda::CUDAGuard guard(static_cast<c10::DeviceIndex>(device));
    const at::TensorOptions on_device =
        at::TensorOptions().device(at::kCUDA, static_cast<c10::DeviceIndex>(device));
    params_.splits = cuda::decode_splits(params.batch, params.n_head, 1, capacity_of(params),
                                         properties_of(device).multiProcessorCount);
    logits_ = at::empty({params.batch, params.vocab_size}, on_device.dtype(at::kFloat));
    workspace_ = at::zeros({cuda::decode_step_workspace_bytes(params_)}, on_device.dtype(at::kByte));
    params_.logits = logits_.mutable_data_ptr<float>();
    params_.workspace = workspace_.mutable_data_ptr();
    const c10::cuda::CUDAStream stream = c10::cuda::getStreamFromPool(/*isHighPriority=*/false);
    C10_CUDA_CHECK(cudaDeviceSynchronize());
    load_kernels(stream);
    capture(stream);
  }
  ~CapturedStep() override {
    if (executable_ != nullptr) (void)cudaGraphExecDestroy(executable_);
  }
  CapturedStep(const CapturedStep&) = delete;
  CapturedStep& operator=(const CapturedStep&) = delete;

  void replay() override { C10_CUDA_CHECK(cudaGraphLaunch(executable_, c10::cuda::getCurrentCUDAStream())); }

 private:
  // A kernel is loaded when it first runs, which a capture must not have to wait for.
  void load_kernels(cudaStream_t stream) {
    SavedState state(params_);
    C10_CUDA_CHECK(cuda::enqueue_decode_step(params_, stream));
    C10_CUDA_CHECK(cudaStreamSynchronize(stream));
    state.restore();
  }

  void capture(cudaStream_t stream) {
    C10_CUDA_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    const cudaError_t enqueued = cuda::enqueue_decode_step(params_, stream);
    cudaGraph_t graph = nullptr;
    const cudaError_t ended = cudaStreamEndCapture(stream, &graph);
    C10_CUDA_CHECK(enqueued);
    C10_CUDA_CHECK(ended);
    const cudaError_t instantiated = cudaGraphInstantiate(&executable_, graph, 0);
    (void)cudaGraphDestroy(graph);
    C10_CUDA_CHECK(instantiated);
  }

  DecodeStepParams params_;
  at::Tensor logits_;
  at::Tensor workspace_;
  cudaGraphExec_t executable_ = nullptr;
};

class MarkedRange final : public ProfiledRange {
 public:
  MarkedRange(const std::string& name, int device) : guard_(static_cast<c10::DeviceIndex>(device)) {
    C10_CUDA_CHECK(cudaDeviceSynchronize());
    C10_CUDA_CHECK(cudaProfilerStart());
    nvtxRangePushA(name.c_str());
  }
  // An error of what ran inside comes back from the next call that is checked.
  ~MarkedRange() override {
    (void)cudaDeviceSynchronize();
    nvtxRangePop();
    (void)cudaProfilerStop();
  }
  MarkedRange(const MarkedRange&) = delete;
  MarkedRange& operator=(const MarkedRange&) = delete;

 private:
  const c10::cuda::CUDAGuard guard_;
};

class Services final : public CudaServices {
 public:
  CudaDevice device(int index) const override {
    const cudaDeviceProp properties = properties_of(index);
    int runtime = 0;
    C10_CUDA_CHECK(cudaRuntimeGetVersion(&runtime));
    return {.name = properties.name,
            .architecture = std::to_string(properties.major) + "." + std::to_string(properties.minor),
            .cuda_version = std::to_string(runtime / 1000) + "." + std::to_string(runtime % 1000 / 10),
            .total_bytes = static_cast<std::int64_t>(properties.totalGlobalMem),
            .multiprocessors = properties.multiProcessorCount};
  }

  std::unique_ptr<StepGraph> capture_step(const DecodeStepParams& params, int device) const override {
    return std::make_unique<CapturedStep>(params, device);
  }

  std::unique_ptr<ProfiledRange> profile(const std::string& name, int device) const override {
    return std::make_unique<MarkedRange>(name, device);
  }
};

}  // namespace

extern "C" KVFUSE_OPS_API const CudaServices& kvfuse_cuda_services() {
  static const Services services;
  return services;
}

}  // namespace kvfuse::ops
