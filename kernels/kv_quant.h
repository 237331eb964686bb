// Symmetric int8 quantisation of rows: one scale per row, scale = absmax / 127, codes in [-127, 127].
#pragma once

#include <cstdint>

#include "kernels/dtype.h"

namespace kvfuse {

// Rows are contiguous. An all-zero row has scale 0 and decodes to zeros.
struct QuantizeParams {
  const void* x = nullptr;  // [rows, width]
  DType x_dtype = DType::kFloat32;
  std::int8_t* codes = nullptr;  // [rows, width]
  float* scale = nullptr;        // [rows]
  std::int64_t rows = 0;
  std::int64_t width = 0;
};

struct DequantizeParams {
  const std::int8_t* codes = nullptr;  // [rows, width]
  const float* scale = nullptr;        // [rows]
  void* out = nullptr;                 // [rows, width]
  DType out_dtype = DType::kFloat32;
  std::int64_t rows = 0;
  std::int64_t width = 0;
};

namespace cpu {

void quantize_kv(const QuantizeParams& params);
void dequantize_kv(const DequantizeParams& params);

}  // namespace cpu
}  // namespace kvfuse
