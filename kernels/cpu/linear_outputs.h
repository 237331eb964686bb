// What becomes of the sums of products of a linear layer.
#pragma once

#include <cstdint>

#include "kernels/cpu/gelu.h"
#include "kernels/cpu/linear_inputs.h"
#include "kernels/cpu/linear_products.h"
#include "kernels/cpu/rows.h"

namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE {

constexpr std::int64_t kOutputsPerTask = 64;  // at most

inline Vec activated(Vec x, Epilogue epilogue) {
  if (epilogue == Epilogue::kGeluTanh) return gelu_tanh(x);
  if (epilogue == Epilogue::kGeluExact) return gelu_exact(x);
  return x;
}

// `count` outputs from `begin` on of one row: scales, bias, epilogue, store.
inline void finish(const LinearParams& p, const LinearInputs& inputs, std::int64_t row, std::int64_t begin,
                   std::int64_t count, float* sums) {
  if (inputs.scale != nullptr) {
    const float* weight_scale = static_cast<const float*>(p.weight_scale) + begin;
    for (std::int64_t i = 0; i < count; ++i) sums[i] *= weight_scale[i] * inputs.scale[row];
  }
  alignas(64) float bias[kOutputsPerTask];
  if (p.bias != nullptr) {
    read_row(static_cast<const char*>(p.bias) + begin * element_bytes(p.dtype), p.dtype, count, bias);
    for (std::int64_t i = 0; i < count; ++i) sums[i] += bias[i];
  }
  if (p.epilogue == Epilogue::kGeluTanh || p.epilogue == Epilogue::kGeluExact)
    for (std::int64_t i = 0; i < count; i += kLanes) store(sums + i, activated(load(sums + i), p.epilogue));
  char* out = static_cast<char*>(p.out) + (row * p.out_size + begin) * element_bytes(p.out_dtype);
  if (p.epilogue != Epilogue::kAdd) return write_row(sums, p.out_dtype, count, out);
  auto* residual = reinterpret_cast<float*>(out);
  for (std::int64_t i = 0; i < count; ++i) residual[i] += sums[i];
}

// Has the lines of outputs [begin, end) of rows [first, last) fetched, so that storing does not wait for
// them.
[[gnu::always_inline]] inline void expect_outputs(const LinearParams& p, std::int64_t first,
                                                  std::int64_t last, std::int64_t begin, std::int64_t end) {
  const std::int64_t element = element_bytes(p.out_dtype);
  for (std::int64_t row = first; row < last; ++row) {
    const char* out = static_cast<const char*>(p.out) + row * p.out_size * element;
    for (std::int64_t i = begin * element; i < end * element; i += kCacheLine) __builtin_prefetch(out + i, 1);
  }
}

}  // namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE
