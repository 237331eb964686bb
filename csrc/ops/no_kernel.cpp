// What the operators answer on a backend that has no implementation of them: which one it is, and the remedy.
#include <torch/library.h>

#include "csrc/ops/cuda_library.h"

namespace kvfuse::ops {
namespace {

std::string cuda_remedy() {
  if (cuda_architectures().empty())
    return " (kvfuse was built without CUDA operators: configure with KVFUSE_CUDA=on)";
  return std::string(" (") + kCudaLibrary +
         " is not loaded: importing kvfuse does that where there is a GPU, a C++ program calls "
         "load_cuda_operators())";
}

void refuse_backend(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack*) {
  const c10::DispatchKey key = keys.highestPriorityTypeId();
  TORCH_CHECK_TYPE(key != c10::DispatchKey::Undefined, op.schema().name(), ": expected ",
                   op.schema().arguments().at(0).name(), " to be a tensor, got None");
  TORCH_CHECK_NOT_IMPLEMENTED(false, op.schema().name(),
                              ": expected tensors of a backend that it has a kernel for, got ", key,
                              key == c10::DispatchKey::CUDA ? cuda_remedy() : "");
}

}  // namespace

// CompositeExplicitAutograd: every backend that registers nothing itself.
TORCH_LIBRARY_IMPL(kvfuse, CompositeExplicitAutograd, m) {
  for (const char* name :
       {"decode_workspace", "kv_append", "decode_attention", "append_decode_attention", "prefill_attention",
        "quantize_kv", "dequantize_kv", "linear", "pack_weight", "quantize_weight"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&refuse_backend>());
}

}  // namespace kvfuse::ops
