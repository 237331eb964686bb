#include "csrc/ops/build_info.h"

#include "csrc/ops/cuda_library.h"
#include "kernels/cpu/isa.h"
#include "kernels/head_dims.h"

namespace kvfuse::ops {
namespace {

#ifdef __clang__
constexpr const char* kCompiler = __VERSION__;
#else
constexpr const char* kCompiler = "GCC " __VERSION__;
#endif

template <int... kValues>
std::vector<int> values(IntList<kValues...>) {
  return {kValues...};
}

}  // namespace

BuildInfo build_info() {
  BuildInfo info = {.version = KVFUSE_VERSION,
                    .torch_version = KVFUSE_TORCH_VERSION,
                    .compiler = kCompiler,
                    .cuda = has_cuda_operators(),
                    .cuda_architectures = cuda_architectures(),
                    .cuda_loaded = cuda_operators_loaded(),
                    .available_isas = {},
                    .active_isa = cpu::isa_name(cpu::active_isa()),
                    .supported_head_dims = values(HeadDims{}),
                    .cuda_head_dims = values(CudaHeadDims{})};
  for (const cpu::Isa isa : cpu::available_isas()) info.available_isas.emplace_back(cpu::isa_name(isa));
  return info;
}

}  // namespace kvfuse::ops
