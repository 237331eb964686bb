#include "csrc/records/machine.h"

#include <ATen/Parallel.h>

#include <fstream>
#include <string>
#include <thread>

#include "csrc/ops/build_info.h"
#include "csrc/ops/cuda_services.h"
#include "csrc/records/cpu_state.h"

namespace kvfuse {
namespace {

std::string cpu_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "unknown";
}

}  // namespace

json machine_context(c10::Device device) {
  const ops::BuildInfo build = ops::build_info();
  json gpu = {{"gpu_name", nullptr},
              {"gpu_total_vram", nullptr},
              {"gpu_architecture", nullptr},
              {"gpu_multiprocessors", nullptr},
              {"cuda_version", nullptr}};
  if (device.is_cuda()) {
    const ops::CudaDevice cuda = ops::cuda_services().device(device.index());
    gpu = {{"gpu_name", cuda.name},
           {"gpu_total_vram", cuda.total_bytes},
           {"gpu_architecture", cuda.architecture},
           {"gpu_multiprocessors", cuda.multiprocessors},
           {"cuda_version", cuda.cuda_version}};
  }
  json context = {{"device", c10::DeviceTypeName(device.type(), /*lower_case=*/true)},
                  {"cpu", cpu_name()},
                  {"cores", std::thread::hardware_concurrency()},
                  {"isa", build.active_isa},
                  {"num_threads", at::get_num_threads()},
                  {"kvfuse_version", build.version},
                  {"torch", build.torch_version},
                  {"compiler", build.compiler}};
  context.update(cpu_state_json(read_cpu_state()));
  context.update(gpu);
  return context;
}

}  // namespace kvfuse
