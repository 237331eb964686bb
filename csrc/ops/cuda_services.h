// What libkvfuse_ops_cuda.so offers beside the operators, to code that must not link it. Includes nothing of
// torch.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "csrc/ops/export.h"
#include "kernels/decode_step.h"

namespace kvfuse::ops {

struct CudaDevice {
  std::string name;
  std::string architecture;  // such as "9.0"
  std::string cuda_version;  // of the runtime
  std::int64_t total_bytes = 0;
  int multiprocessors = 0;
};

// A captured decode step.
class StepGraph {
 public:
  virtual ~StepGraph() = default;
  // Enqueues one step on the current stream. Throws c10::Error if it cannot be launched.
  virtual void replay() = 0;
};

// From its making to its end the device is profiled: an NVTX range, and what profilers collect if told to
// wait for the program (`ncu --profile-from-start off`, `nsys profile -c cudaProfilerApi`). The device is
// idle at both ends. Made and ended by one thread.
class ProfiledRange {
 public:
  virtual ~ProfiledRange() = default;
};

class CudaServices {
 public:
  virtual CudaDevice device(int index) const = 0;

  // Captures the step that `params` describe, for replay with the same pointers, which must outlive the
  // graph. The graph brings its own logits, workspace and splits. Sequences must have room for a token: a
  // step is run to load the kernels, and tokens, cache_seqlens and steps are put back after it.
  virtual std::unique_ptr<StepGraph> capture_step(const DecodeStepParams& params, int device) const = 0;

  virtual std::unique_ptr<ProfiledRange> profile(const std::string& name, int device) const = 0;

 protected:
  ~CudaServices() = default;
};

// Loads the library if need be. Throws std::runtime_error as load_cuda_operators does.
KVFUSE_OPS_API const CudaServices& cuda_services();

// The name under which the library exports a `const CudaServices& ()`.
inline constexpr char kCudaServicesSymbol[] = "kvfuse_cuda_services";

}  // namespace kvfuse::ops
