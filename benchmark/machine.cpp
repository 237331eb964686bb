#include "benchmark/machine.h"

#include <ATen/Parallel.h>

#include <fstream>
#include <string>
#include <thread>

#include "benchmark/cpu_state.h"
#include "csrc/ops/build_info.h"
#include "csrc/ops/cuda_services.h"

namespace kvfuse::bench {
namespace {

using json = nlohmann::ordered_json;

std::string cpu_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "unknown";
}

bool is_int8(const Strategy& strategy) { return strategy.kv_cache_dtype == KvCacheDtype::kInt8; }

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

json model_config_json(const ModelConfig& config, const Strategy& strategy) {
  return {{"n_layer", config.n_layer},
          {"n_head", config.n_head},
          {"n_embd", config.n_embd},
          {"block_size", config.block_size},
          {"vocab_size", config.vocab_size},
          {"dropout", config.dropout},
          {"bias", config.bias},
          {"kv_cache_quant", is_int8(strategy)},
          {"cross_layer_sharing", strategy.sharing_group > 1}};
}

json strategy_json(const Strategy& strategy) {
  return {{"version", std::string(strategy.name)},
          {"version_description", std::string(strategy.description)},
          {"use_cache", strategy.use_cache},
          {"kv_cache_quant", is_int8(strategy)},
          {"cross_layer_sharing", strategy.sharing_group > 1},
          {"q_alignment", strategy.q_alignment != QAlignment::kNone},
          {"q_alignment_method", q_alignment_name(strategy.q_alignment)},
          {"kv_cache_dtype", is_int8(strategy) ? "int8" : "model"},
          {"sharing_group", strategy.sharing_group}};
}

}  // namespace kvfuse::bench
