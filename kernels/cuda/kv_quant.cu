// Quantises rows to int8 codes and scales, and back.
#include "kernels/cuda/kv_quant.h"

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/device/launch.h"
#include "kernels/cuda/quantise_row.h"

namespace kvfuse::cuda {
namespace {

constexpr int kThreads = 128;  // a row to each of four warps
constexpr int kWarps = kThreads / 32;
// Blocks beyond the first few waves only queue: from here on a warp takes several rows.
constexpr std::int64_t kMostBlocks = 1 << 16;

KVFUSE_DEVICE std::int64_t first_row() { return std::int64_t{blockIdx.x} * kWarps + warp_id(); }
KVFUSE_DEVICE std::int64_t row_stride() { return std::int64_t{gridDim.x} * kWarps; }

// Grid: any number of blocks. The lanes of a warp take every 32nd element of its row, twice: for the largest
// magnitude, and, out of the cache, for the codes.
KVFUSE_KERNEL void KVFUSE_LAUNCH_BOUNDS(kThreads, 8)
    quantize_kv_kernel(KVFUSE_GRID_CONSTANT QuantizeParams p) {
  with_float_type(p.x_dtype, [&](auto zero) {
    using T = decltype(zero);
    for (std::int64_t row = first_row(); row < p.rows; row += row_stride()) {
      const T* const x = static_cast<const T*>(p.x) + row * p.width;
      int largest = 0;
      for (std::int64_t i = lane_id(); i < p.width; i += 32)
        largest = maximum(largest, magnitude_bits(to_f32(x[i])));
      const float scale = row_scale<32>(largest);
      for (std::int64_t i = lane_id(); i < p.width; i += 32)
        p.codes[row * p.width + i] = static_cast<std::int8_t>(quantise(to_f32(x[i]), scale));
      if (lane_id() == 0) p.scale[row] = scale;
    }
  });
}

// Grid: any number of blocks.
KVFUSE_KERNEL void KVFUSE_LAUNCH_BOUNDS(kThreads, 8)
    dequantize_kv_kernel(KVFUSE_GRID_CONSTANT DequantizeParams p) {
  with_float_type(p.out_dtype, [&](auto zero) {
    using T = decltype(zero);
    for (std::int64_t row = first_row(); row < p.rows; row += row_stride()) {
      const float scale = p.scale[row];
      for (std::int64_t i = lane_id(); i < p.width; i += 32)
        static_cast<T*>(p.out)[row * p.width + i] =
            from_f32<T>(static_cast<float>(p.codes[row * p.width + i]) * scale);
    }
  });
}

LaunchShape shape_of(std::int64_t rows) {
  const std::int64_t blocks = std::min((rows + kWarps - 1) / kWarps, kMostBlocks);
  return {.grid = dim3(static_cast<unsigned>(blocks)), .threads = kThreads, .shared_bytes = 0};
}

}  // namespace

cudaError_t quantize_kv(const QuantizeParams& params, cudaStream_t stream) {
  if (params.x_dtype == DType::kInt8) return cudaErrorInvalidValue;
  if (params.rows == 0) return cudaSuccess;
  return launch(quantize_kv_kernel, shape_of(params.rows), stream, params);
}

cudaError_t dequantize_kv(const DequantizeParams& params, cudaStream_t stream) {
  if (params.out_dtype == DType::kInt8) return cudaErrorInvalidValue;
  if (params.rows == 0) return cudaSuccess;
  return launch(dequantize_kv_kernel, shape_of(params.rows), stream, params);
}

}  // namespace kvfuse::cuda
