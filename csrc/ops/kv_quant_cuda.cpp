// The quantisation operators on CUDA.
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "csrc/ops/cuda_launch.h"
#include "csrc/ops/kv_quant_ops.h"
#include "kernels/cuda/kv_quant.h"

namespace kvfuse::ops {
namespace {

struct CudaQuantBackend {
  using Guard = c10::cuda::CUDAGuard;

  static void quantize(const QuantizeParams& params) {
    check_launch(kQuantizeKv, cuda::quantize_kv(params, c10::cuda::getCurrentCUDAStream()));
  }

  static void dequantize(const DequantizeParams& params) {
    check_launch(kDequantizeKv, cuda::dequantize_kv(params, c10::cuda::getCurrentCUDAStream()));
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(kvfuse, CUDA, m) { QuantOps<CudaQuantBackend>::register_in(m); }

}  // namespace kvfuse::ops
