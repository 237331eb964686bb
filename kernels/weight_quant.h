// Weights of linear layers to codes (weight_format.h).
#pragma once

#include <cstdint>
#include <optional>

#include "kernels/weight_format.h"

namespace kvfuse {

// A weight [out_size, in] as codes and scales; all contiguous, kInt4Groups with whole groups in a row.
struct QuantizeWeightParams {
  const float* weight = nullptr;                  // [out_size, in]
  WeightFormat format = WeightFormat::kInt8Rows;  // or kInt4Groups
  void* codes = nullptr;                          // [out_size, weight_row_bytes]
  void* scale = nullptr;                          // [out_size, scale_row_bytes]
  std::int64_t out_size = 0;
  std::int64_t in = 0;
};

namespace cpu {

// kInt8Rows: a row's scale is absmax / 127. kInt4Groups: a group's scale is the best of a few by squared
// error. Zeros have scale 0. The result is the same on every instruction set. Returns the first row that
// codes cannot keep, if there is one: it holds a NaN or an infinity, or needs a scale beyond float16 (a
// weight of 680,000).
std::optional<std::int64_t> quantize_weight(const QuantizeWeightParams& params);

}  // namespace cpu
}  // namespace kvfuse
