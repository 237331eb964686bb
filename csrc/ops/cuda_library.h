// libkvfuse_ops_cuda.so: the CUDA implementations of the operators. It lies beside libkvfuse_ops.so if it was
// built, and is loaded only where there is a GPU, since it brings PyTorch's CUDA libraries. Includes nothing
// of torch.
#pragma once

#include <string>

#include "csrc/ops/export.h"

namespace kvfuse::ops {

inline constexpr char kCudaLibrary[] = "libkvfuse_ops_cuda.so";

// What it is compiled for, such as "80, 86, 89, 90+PTX"; empty if it was not built.
KVFUSE_OPS_API std::string cuda_architectures();

// Built, and there beside libkvfuse_ops.so.
KVFUSE_OPS_API bool has_cuda_operators();

KVFUSE_OPS_API bool cuda_operators_loaded();

// Registers the CUDA implementations; does nothing the second time. No driver is needed. A C++ program that
// does not link libtorch_cuda.so calls this before anything asks PyTorch for CUDA: PyTorch remembers the
// answer. Throws std::runtime_error, one sentence, if the library was not built, is missing or does not load.
KVFUSE_OPS_API void load_cuda_operators();

}  // namespace kvfuse::ops
