#include "benchmark/device.h"

#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <unistd.h>

#include <filesystem>
#include <stdexcept>

#include "benchmark/errors.h"
#include "csrc/ops/cuda_library.h"
#include "csrc/ops/cuda_services.h"

namespace kvfuse::bench {
namespace {

// Whether it is worth loading PyTorch's CUDA libraries, which takes a second.
bool has_cuda_driver() { return std::filesystem::exists("/dev/nvidiactl"); }

const c10::CachingDeviceAllocator::Stat& held_bytes(const c10::CachingDeviceAllocator::DeviceStats& stats) {
  return stats.allocated_bytes[static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE)];
}

}  // namespace

c10::Device choose_device(const BenchConfig& config) {
  const c10::Device cpu(c10::kCPU);
  const c10::Device cuda(c10::kCUDA, 0);
  if (config.device == Device::kCpu || (config.device == Device::kAuto && !has_cuda_driver())) return cpu;
  std::string problem = "no CUDA driver (there is no /dev/nvidiactl)";
  if (has_cuda_driver()) try {
      ops::load_cuda_operators();
      if (c10::impl::VirtualGuardImpl(c10::kCUDA).deviceCount() > 0) return cuda;
      problem = "no CUDA device";
    } catch (const std::runtime_error& error) {
      problem = error.what();
    }
  if (config.device == Device::kAuto) return cpu;
  throw ConfigError({"device: expected one that works here, got cuda: " + problem});
}

void synchronize(c10::Device device) {
  if (!device.is_cpu()) c10::impl::VirtualGuardImpl(device.type()).synchronizeDevice(device.index());
}

std::unique_ptr<ops::ProfiledRange> profile(c10::Device device, const std::string& name) {
  return device.is_cuda() ? ops::cuda_services().profile(name, device.index()) : nullptr;
}

void release_memory(c10::Device device) {
  if (!device.is_cpu()) c10::getDeviceAllocator(device.type())->emptyCache();
}

std::int64_t memory_limit(const BenchConfig& config, c10::Device device) {
  if (config.memory_budget) return *config.memory_budget;
  if (device.is_cuda()) return ops::cuda_services().device(device.index()).total_bytes;
  return std::int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE);
}

MemoryFigures memory_figures(c10::Device device) {
  if (device.is_cpu()) return memory_figures();
  const auto stats = c10::getDeviceAllocator(device.type())->getDeviceStats(device.index());
  return {held_bytes(stats).current, held_bytes(stats).peak};
}

void reset_peak_memory(c10::Device device) {
  if (device.is_cpu()) return reset_peak_memory();
  c10::getDeviceAllocator(device.type())->resetPeakStats(device.index());
}

}  // namespace kvfuse::bench
