// The products of a decode step: a few rows times a weight matrix, with what stands before and after fused
// in.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"

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
  const void* x = nullptr;            // [rows, in]: float32 if there is a layernorm, else of `dtype`
  const void* weight = nullptr;       // [out_size, in]
  const void* bias = nullptr;         // [out_size]; null: none
  const void* norm_weight = nullptr;  // [in]; null: no layernorm
  const void* norm_bias = nullptr;    // [in]; null: none
  void* out = nullptr;                // [rows, out_size] of out_dtype; not x
  DType dtype = DType::kFloat32;      // of weight, bias and norm parameters
  DType out_dtype = DType::kFloat32;  // dtype or float32
  Epilogue epilogue = Epilogue::kStore;
  float norm_epsilon = 1e-5F;
  std::int64_t rows = 0;
  std::int64_t in = 0;  // a multiple of 8
  std::int64_t out_size = 0;
};

}  // namespace kvfuse
