// Where a run computes, and what only a device other than the CPU needs: waiting for it, marks for
// profilers, and its memory.
#pragma once

#include <c10/core/Device.h>

#include <memory>
#include <string>

#include "benchmark/config.h"
#include "benchmark/memory.h"
#include "csrc/ops/cuda_services.h"

namespace kvfuse::bench {

// `auto` is CUDA where the operators for it were built and a device answers, else the CPU. Loads the CUDA
// operators if it chooses CUDA. Throws ConfigError if CUDA was asked for and cannot be had.
c10::Device choose_device(const BenchConfig& config);

// Returns once everything enqueued on `device` has run.
void synchronize(c10::Device device);

// Marks what runs on `device` until the range ends, for profilers; null on the CPU, which has none to tell.
std::unique_ptr<ops::ProfiledRange> profile(c10::Device device, const std::string& name);

// Gives what PyTorch keeps of freed memory back to `device`.
void release_memory(c10::Device device);

// What tensors may take: the memory_budget, else the memory of `device`.
std::int64_t memory_limit(const BenchConfig& config, c10::Device device);

// Bytes held by tensors of `device`, from the counting allocator or PyTorch's own for a GPU.
MemoryFigures memory_figures(c10::Device device);
void reset_peak_memory(c10::Device device);

}  // namespace kvfuse::bench
