// The rules of one argument that the operators' checks are made of, each an error of one sentence.
#pragma once

#include <ATen/core/Tensor.h>

#include <span>
#include <string>

#include "csrc/ops/check.h"
#include "csrc/ops/dtype.h"

namespace kvfuse::ops {

inline bool is_true(const c10::SymBool& rule) { return rule.expect_true(__FILE__, __LINE__); }

inline std::string name_of(at::ScalarType dtype) { return c10::getDtypeNames(dtype).first; }

// PyTorch passes Python's None as an undefined tensor.
inline void check_given(const char* op, const NamedTensor& arg) {
  TORCH_CHECK_TYPE(arg.tensor.defined(), op, ": expected ", arg.name, " to be a tensor, got None");
}

inline void check_dim(const char* op, const NamedTensor& arg, std::int64_t dim, const char* shape) {
  TORCH_CHECK_VALUE(arg.tensor.dim() == dim, op, ": expected ", arg.name, " of shape ", shape, ", got ",
                    arg.tensor.sym_sizes());
}

inline void check_shape(const char* op, const NamedTensor& arg, std::span<const c10::SymInt> want,
                        const char* shape) {
  const c10::SymIntArrayRef got = arg.tensor.sym_sizes();
  bool same = got.size() == want.size();
  for (std::size_t i = 0; same && i < want.size(); ++i) same = is_true(got[i].sym_eq(want[i]));
  TORCH_CHECK_VALUE(same, op, ": expected ", arg.name, " of shape ",
                    c10::SymIntArrayRef(want.data(), want.size()), " (", shape, "), got ", got);
}

inline void check_dtype(const char* op, const NamedTensor& arg, at::ScalarType want, const char* reason) {
  TORCH_CHECK_TYPE(arg.tensor.scalar_type() == want, op, ": expected ", arg.name, " of dtype ", name_of(want),
                   reason, ", got ", name_of(arg.tensor.scalar_type()));
}

inline void check_float_dtype(const char* op, const char* name, at::ScalarType dtype) {
  const std::optional<DType> known = to_dtype(dtype);
  TORCH_CHECK_TYPE(known && *known != DType::kInt8, op, ": expected ", name,
                   " of dtype float32, bfloat16 or float16, got ", name_of(dtype));
}

inline void check_device(const char* op, const NamedTensor& first, const NamedTensor& arg) {
  check_given(op, arg);
  TORCH_CHECK_VALUE(arg.tensor.device() == first.tensor.device(), op, ": expected ", arg.name,
                    " on the device of ", first.name, " (", first.tensor.device(), "), got ",
                    arg.tensor.device());
}

inline void check_contiguous(const char* op, const NamedTensor& arg) {
  TORCH_CHECK_VALUE(arg.tensor.is_contiguous(), op, ": expected a contiguous ", arg.name, ", got strides ",
                    arg.tensor.sym_strides());
}

}  // namespace kvfuse::ops
