// From the tensors of a call to the parameters of a kernel, the same for every backend.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "csrc/ops/check.h"
#include "csrc/ops/export.h"
#include "kernels/attention.h"

namespace kvfuse::ops {

// `tensor`, or a copy of it if its last dimension is strided or a row of it starts at an address that is no
// multiple of `alignment` bytes.
KVFUSE_OPS_API at::Tensor with_aligned_rows(const at::Tensor& tensor, std::int64_t alignment);

KVFUSE_OPS_API ConstTokenView token_view(const at::Tensor& tensor);

// Everything but k_new and v_new.
KVFUSE_OPS_API AttentionParams attention_params(const at::Tensor& q, const at::Tensor& out,
                                                const CacheTensors& cache,
                                                std::optional<double> softmax_scale);

KVFUSE_OPS_API AppendParams append_params(const at::Tensor& k, const at::Tensor& v,
                                          const CacheTensors& cache);

}  // namespace kvfuse::ops
