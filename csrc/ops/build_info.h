// What the operator libraries were built from, and which of the kernels run. Includes nothing of torch.
#pragma once

#include <string>
#include <vector>

#include "csrc/ops/export.h"

namespace kvfuse::ops {

struct BuildInfo {
  std::string version;
  std::string torch_version;  // built against
  std::string compiler;
  bool cuda = false;               // libkvfuse_ops_cuda.so was built and is there
  std::string cuda_architectures;  // that it is compiled for; empty if it was not built
  bool cuda_loaded = false;
  std::vector<std::string> available_isas;  // that this machine runs, worst first
  std::string active_isa;
  std::vector<int> supported_head_dims;  // of the CPU
  std::vector<int> cuda_head_dims;
};

// Throws std::runtime_error if KVFUSE_ISA names an instruction set that is unknown or missing here.
KVFUSE_OPS_API BuildInfo build_info();

}  // namespace kvfuse::ops
