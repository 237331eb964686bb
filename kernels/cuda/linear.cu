// A few rows times a weight matrix: the weights are read once from DRAM, everything else hides behind that.
#include "kernels/cuda/linear.h"

#include <cmath>

#include "kernels/cuda/device/block.h"
#include "kernels/cuda/device/grid.h"
#include "kernels/cuda/device/launch.h"
#include "kernels/cuda/device/memory.h"
#include "kernels/cuda/device/warp.h"
#include "kernels/cuda/linear_rows.h"
#include "kernels/cuda/vectors.h"
#include "kernels/head_dims.h"

namespace kvfuse::cuda {
namespace {

constexpr int kWeightLoads = 8;         // 16-byte weight loads of a lane: 4 KiB a warp, 32 KiB a block
constexpr int kSharedLimit = 96 << 10;  // what sm_86 and sm_89 give a block is 99 KiB
constexpr int kCacheLine = 128;

// With many rows a warp computes two outputs, so that each element of x read from shared memory serves twice:
// with 8 rows, shared memory would otherwise be slower than DRAM.
template <int kRows>
constexpr int kOutputs = kRows >= 4 ? 2 : 1;

// Blocks that share a multiprocessor, which bounds the registers. One row: the three blocks that the products
// of GPT-2 medium come to on 132 multiprocessors run at once.
template <int kRows>
constexpr int kBlocks = kRows <= 2 ? 3 : 2;

// The weights of a warp's outputs, a lane every 32nd vector. A register is refilled as soon as it is
// consumed, so the loads in flight never run dry within a row.
template <typename T, int kOutputs>
struct WeightStream {
  static constexpr int kSlots = kWeightLoads / kOutputs;
  static constexpr int kStride = 32 * kSlots;

  const T* rows[kOutputs];  // null beyond the last output
  int vectors;
  uint4 loaded[kSlots][kOutputs];

  KVFUSE_DEVICE void load(int slot, int vector) {
    KVFUSE_UNROLL
    for (int o = 0; o < kOutputs; ++o)
      loaded[slot][o] =
          rows[o] != nullptr && vector < vectors
              ? load16_readonly(rows[o] + static_cast<std::int64_t>(vector) * kVectorElements<T>)
              : make_uint4(0, 0, 0, 0);
  }

  // Fills the registers and asks L2 for the rest of the rows.
  KVFUSE_DEVICE void start() {
    KVFUSE_UNROLL
    for (int slot = 0; slot < kSlots; ++slot) load(slot, lane_id() + 32 * slot);
    const int row_bytes = vectors * 16;
    KVFUSE_UNROLL
    for (int o = 0; o < kOutputs; ++o)
      for (int byte = kStride * 16 + lane_id() * kCacheLine; rows[o] != nullptr && byte < row_bytes;
           byte += 32 * kCacheLine)
        prefetch_l2(reinterpret_cast<const char*>(rows[o]) + byte);
  }
};

template <typename T, int kRows, bool kNormalize>
KVFUSE_DEVICE void multiply(WeightStream<T, kOutputs<kRows>>& weights,
                            const StagedRows<T, kNormalize>& staged, float (&sums)[kOutputs<kRows>][kRows]) {
  constexpr int kElements = kVectorElements<T>;
  constexpr int kStride = WeightStream<T, kOutputs<kRows>>::kStride;
  for (int first = lane_id(); first < weights.vectors; first += kStride) {
    KVFUSE_UNROLL
    for (int slot = 0; slot < WeightStream<T, kOutputs<kRows>>::kSlots; ++slot) {
      const int vector = first + 32 * slot;
      float w[kOutputs<kRows>][kElements];
      KVFUSE_UNROLL
      for (int o = 0; o < kOutputs<kRows>; ++o) unpack<T>(weights.loaded[slot][o], w[o]);
      weights.load(slot, vector + kStride);
      if (vector >= weights.vectors) continue;
      KVFUSE_UNROLL
      for (int row = 0; row < kRows; ++row) {
        float x[kElements];
        staged.read(row, vector, x);
        KVFUSE_UNROLL
        for (int o = 0; o < kOutputs<kRows>; ++o) {
          KVFUSE_UNROLL
          for (int i = 0; i < kElements; ++i) sums[o][row] += w[o][i] * x[i];
        }
      }
    }
  }
}

KVFUSE_DEVICE float apply(Epilogue epilogue, float y, float before) {
  constexpr float kSqrt2OverPi = 0.7978845608F;
  constexpr float kSqrtHalf = 0.7071067812F;
  switch (epilogue) {
    case Epilogue::kStore:
      return y;
    case Epilogue::kGeluTanh:
      return 0.5F * y * (1.0F + std::tanh(kSqrt2OverPi * (y + 0.044715F * y * y * y)));
    case Epilogue::kGeluExact:
      return 0.5F * y * (1.0F + std::erf(kSqrtHalf * y));
    case Epilogue::kAdd:
      return before + y;
  }
  return y;
}

// One element of the result: what it holds, and where it goes.
template <typename T>
struct OutElement {
  void* out = nullptr;  // null: this lane has none
  bool is_float32 = false;

  KVFUSE_DEVICE float load() const {
    return is_float32 ? *static_cast<float*>(out) : to_f32(*static_cast<T*>(out));
  }
  KVFUSE_DEVICE void store(float y) const {
    if (is_float32)
      *static_cast<float*>(out) = y;
    else
      *static_cast<T*>(out) = from_f32<T>(y);
  }
};

// Grid: (outputs / (warps * kOutputs), rows / kRows). A warp computes kOutputs columns of kRows rows of the
// result. All that depends on no earlier kernel (weights, bias, norm parameters) is asked for before the
// wait. The order of the sums depends on `in`, for a layernorm's on kRows as well.
template <typename T, int kRows, bool kNormalize>
KVFUSE_KERNEL void KVFUSE_LAUNCH_BOUNDS(kLinearThreads, kBlocks<kRows>)
    fused_linear_kernel(KVFUSE_GRID_CONSTANT LinearParams p) {
  constexpr int kWarpOutputs = kOutputs<kRows>;
  LinearShared& shared = block_shared<LinearShared>();
  const StagedRows<T, kNormalize> staged{reinterpret_cast<uint4*>(&shared + 1),
                                         static_cast<int>(p.in) / kVectorElements<T>};
  const std::int64_t first_output =
      (static_cast<std::int64_t>(blockIdx.x) * kLinearWarps + warp_id()) * kWarpOutputs;
  const std::int64_t first_row = static_cast<std::int64_t>(blockIdx.y) * kRows;
  const int rows = static_cast<int>(p.rows - first_row < kRows ? p.rows - first_row : kRows);

  WeightStream<T, kWarpOutputs> weights;
  weights.vectors = staged.vectors;
  KVFUSE_UNROLL
  for (int o = 0; o < kWarpOutputs; ++o)
    weights.rows[o] =
        first_output + o < p.out_size ? static_cast<const T*>(p.weight) + (first_output + o) * p.in : nullptr;
  weights.start();
  const NormParameters<T> norm{&staged.at(kRows, 0, 0), staged.vectors};
  if constexpr (kNormalize) norm.fetch(p);
  // After the sum over the lanes, lane o * kRows + row finishes that element.
  const int own_row = lane_id() % kRows;
  const std::int64_t own_output = first_output + lane_id() / kRows;
  const bool owns = lane_id() < kWarpOutputs * kRows && own_row < rows && own_output < p.out_size;
  const float bias = owns && p.bias != nullptr ? to_f32(static_cast<const T*>(p.bias)[own_output]) : 0.0F;
  allow_next_kernel();
  wait_for_previous_kernel();

  OutElement<T> element{nullptr, p.out_dtype == DType::kFloat32};
  if (owns)
    element.out = static_cast<char*>(p.out) +
                  ((first_row + own_row) * p.out_size + own_output) * (element.is_float32 ? 4 : sizeof(T));
  const float before = owns && p.epilogue == Epilogue::kAdd ? element.load() : 0.0F;
  if constexpr (kNormalize)
    normalize_rows<T, kRows>(p, first_row, rows, shared, staged, norm);
  else
    copy_rows<T, kRows>(p, first_row, rows, staged);

  float sums[kWarpOutputs][kRows] = {};
  multiply<T, kRows, kNormalize>(weights, staged, sums);
  float own_sum = 0.0F;
  KVFUSE_UNROLL
  for (int o = 0; o < kWarpOutputs; ++o) {
    KVFUSE_UNROLL
    for (int row = 0; row < kRows; ++row) {
      const float sum = warp_sum(sums[o][row]);
      if (lane_id() == o * kRows + row) own_sum = sum;
    }
  }
  if (owns) element.store(apply(p.epilogue, own_sum + bias, before));
}

std::int64_t shared_bytes(const LinearParams& p, std::int64_t rows) {
  const std::int64_t element = element_bytes(p.dtype);
  const std::int64_t of_elements = p.norm_weight != nullptr ? rows * 4 + 2 * element : rows * element;
  return static_cast<std::int64_t>(sizeof(LinearShared)) + p.in * of_elements;
}

// The smallest tile that takes all rows, if shared memory takes it; else the rows go in several tiles, and
// the weights come from L2 for all but the first.
std::int64_t rows_of_tile(const LinearParams& p) {
  std::int64_t tile = 1;
  while (tile < 8 && tile < p.rows && shared_bytes(p, 2 * tile) <= kSharedLimit) tile *= 2;
  return tile;
}

bool is_valid(const LinearParams& p) {
  return p.rows > 0 && p.in > 0 && p.out_size > 0 && p.in % 8 == 0 && shared_bytes(p, 1) <= kSharedLimit &&
         p.x != nullptr && p.weight != nullptr && p.out != nullptr && is_aligned16(p.x) &&
         is_aligned16(p.weight) && is_aligned16(p.norm_weight) && is_aligned16(p.norm_bias) &&
         (p.out_dtype == p.dtype || p.out_dtype == DType::kFloat32) &&
         p.weight_format == WeightFormat::kFloat;
}

}  // namespace

cudaError_t fused_linear(const LinearParams& p, bool overlap_previous, cudaStream_t stream) {
  if (!is_valid(p)) return cudaErrorInvalidValue;
  const std::int64_t tile = rows_of_tile(p);
  return with_storage_type(p.dtype, [&](auto tag) {
    using T = decltype(tag);
    cudaError_t error = cudaErrorInvalidValue;
    with_int(tile, IntList<1, 2, 4, 8>{}, [&](auto rows) {
      const std::int64_t outputs = kLinearWarps * kOutputs<rows>;
      const LaunchShape shape{dim3(static_cast<unsigned>((p.out_size + outputs - 1) / outputs),
                                   static_cast<unsigned>((p.rows + rows - 1) / rows)),
                              kLinearThreads, static_cast<std::size_t>(shared_bytes(p, rows)),
                              overlap_previous};
      error = p.norm_weight != nullptr ? launch(fused_linear_kernel<T, rows, true>, shape, stream, p)
                                       : launch(fused_linear_kernel<T, rows, false>, shape, stream, p);
    });
    return error;
  });
}

}  // namespace kvfuse::cuda
