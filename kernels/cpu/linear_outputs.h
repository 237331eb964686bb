// What becomes of the sums of products of a linear layer.
#pragma once

#include <algorithm>
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

// A task's outputs [begin, begin + count) of all rows; what these share is read once.
class TaskOutputs {
 public:
  TaskOutputs(const LinearParams& p, const LinearInputs& inputs, std::int64_t begin, std::int64_t count)
      : p_(p), x_scale_(inputs.scale), begin_(begin), count_(count) {
    if (x_scale_ != nullptr) {
      std::fill_n(weight_scale_, kOutputsPerTask, 0.0F);
      std::copy_n(static_cast<const float*>(p.weight_scale) + begin, count, weight_scale_);
    }
    std::fill_n(bias_, kOutputsPerTask, 0.0F);
    if (p.bias != nullptr)
      read_row(static_cast<const char*>(p.bias) + begin * element_bytes(p.dtype), p.dtype, count, bias_);
  }

  // Scales, bias, epilogue, store. `sums` goes on to the end of its last vector.
  template <typename Sum>
  void finish(std::int64_t row, const Sum* sums) const {
    alignas(64) float values[kOutputsPerTask];
    for (std::int64_t i = 0; i < count_; i += kLanes) {
      Vec value = load(sums + i);
      if (x_scale_ != nullptr) value = mul(value, mul(load(weight_scale_ + i), splat(x_scale_[row])));
      if (p_.bias != nullptr) value = add(value, load(bias_ + i));
      store(values + i, activated(value, p_.epilogue));
    }
    char* out = static_cast<char*>(p_.out) + (row * p_.out_size + begin_) * element_bytes(p_.out_dtype);
    if (p_.epilogue != Epilogue::kAdd) return write_row(values, p_.out_dtype, count_, out);
    auto* residual = reinterpret_cast<float*>(out);
    for (std::int64_t i = 0; i < count_; ++i) residual[i] += values[i];
  }

 private:
  const LinearParams& p_;
  const float* x_scale_;  // null: sums are not of codes
  std::int64_t begin_, count_;
  alignas(64) float weight_scale_[kOutputsPerTask];
  alignas(64) float bias_[kOutputsPerTask];
};

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
