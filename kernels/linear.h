// Linear layers: rows times a weight matrix, with what stands before and after fused in. Parameters shared by
// every backend, and the CPU entry point.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>

#include "kernels/dtype.h"
#include "kernels/weight_format.h"

namespace kvfuse {

enum class Epilogue : std::uint8_t {
  kStore,
  kGeluTanh,   // GELU by its tanh form
  kGeluExact,  // GELU by erf
  kAdd,        // added to what `out` holds: the residual stream
};

// out = epilogue(norm(x) * weight^T + bias). All tensors are contiguous; x, weight and the norm parameters
// start at 16-byte addresses.
struct LinearParams {
  const void* x = nullptr;             // [rows, in]: float32 if there is a layernorm, else of `dtype`
  const void* weight = nullptr;        // [out_size, in] of weight_format
  const void* weight_scale = nullptr;  // of weight_format; null: kFloat
  const void* bias = nullptr;          // [out_size]; null: none
  const void* norm_weight = nullptr;   // [in]; null: no layernorm
  const void* norm_bias = nullptr;     // [in]; null: none
  void* out = nullptr;                 // [rows, out_size] of out_dtype; not x
  DType dtype = DType::kFloat32;       // of x, weight (kFloat), bias and norm parameters
  DType out_dtype = DType::kFloat32;   // dtype or float32
  WeightFormat weight_format = WeightFormat::kFloat;
  Epilogue epilogue = Epilogue::kStore;
  bool fine_activations = false;  // beside int8 codes: no blocks, all bits of activation_levels
  float norm_epsilon = 1e-5F;
  std::int64_t rows = 0;
  std::int64_t in = 0;  // a multiple of 8, of 4-bit codes of kInt4Group
  std::int64_t out_size = 0;
};

// Beside int8 codes a row of x is rounded to integers of this size at most, for its largest element: 127
// times a power of two, as fine as the sum of `in` products with 127 fits 32 bits.
constexpr std::int64_t activation_levels(std::int64_t in) {
  const std::int64_t most =
      std::min<std::int64_t>(32767, std::numeric_limits<std::int32_t>::max() / (127 * in));
  return most < 127 ? most
                    : 127 * static_cast<std::int64_t>(std::bit_floor(static_cast<std::uint64_t>(most / 127)));
}
// The power of two of that.
constexpr std::int32_t activation_shift(std::int64_t levels) {
  return levels < 127 ? 0 : std::bit_width(static_cast<std::uint64_t>(levels / 127)) - 1;
}
inline constexpr std::int32_t kMostActivationShift = activation_shift(activation_levels(1));
// So many inputs of a row are a block, which keeps eight bits of them: multiples of 2^shift that are 127 of
// these at most. In many rows the products of eight bits take half the instructions of sixteen.
inline constexpr std::int64_t kActivationBlock = 64;
// A block whose shift is that much above the lower median of its row's keeps all bits: there an outlier would
// coarsen 63 others until theirs were most of the row's errors.
inline constexpr std::int32_t kWholeBlockShift = 2;
// Beside 4-bit codes each group of inputs is rounded to integers of this size at most, for its own largest: a
// step is a thirtieth of that of the weights, and eight bits take half the instructions of sixteen.
inline constexpr int kInt4ActivationLevels = 127;

namespace cpu {

// Any `in` but beside 4-bit codes and kInt8Panels (weight_format.h); int8 codes need at least one activation
// level: in <= 16909320.
void linear(const LinearParams& params);

}  // namespace cpu
}  // namespace kvfuse
