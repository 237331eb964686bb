// Runs CUDA kernels on the CPU: the header that kernels/cuda/device/platform.h includes in place of the
// toolkit's.
//
// One fiber per CUDA thread, all on one system thread; blocks run one after another, in random order. A fiber
// gives way only where this interface is called: at a collective it waits until its whole warp or block has
// arrived, at a 16-byte memory access it may give way. Of three blocks in a row one lets the lowest thread
// that can run go first, one the highest, one draws: so a warp gets as far ahead of another as the barriers
// allow, both ways round. Everything follows from the seed; three consecutive seeds give a launch's first
// block all three orders.
//
// To make mistakes visible, shared memory and the destinations of copies under way hold 0xFF bytes (NaN as a
// float or a half), the block's shared memory is a heap block of exactly the size asked for, asynchronous
// copies land only at their wait, and collectives demand all their threads at one and the same line. An error
// unwinds the whole launch; run_grid returns a CUDA error code and last_error() says what was wrong.
//
// What it cannot show: blocks that run at the same time, memory made visible late (a shuffle where a
// warp_sync is needed, a missing fence), and anything between two interface calls of one lane.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <string>
#include <vector>

// The toolkit's names, as far as kernels and entry points use them.
enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719
};
using cudaStream_t = struct CUstream_st*;

struct uint2 {
  unsigned x, y;
};
struct uint3 {
  unsigned x, y, z;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// Those of the running thread.
extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;

namespace kvfuse::emulation {

// ---- For tests.

struct Options {
  std::uint64_t seed = 0;
};

// Starts the random sequence anew: the same launches after it run in the same way.
void set_options(Options options);

// What was wrong with the last launch that returned an error, as a sentence; empty if none did since
// set_options.
const std::string& last_error();

// What one execution of a load16, load16_readonly or copy16_async by a warp touched: the k-th execution of a
// call site by each of its lanes make one WarpLoad.
struct WarpLoad {
  const char* file;
  int line;
  std::uintptr_t first;  // lowest address
  int contiguous_bytes;  // from `first` on without a gap
  int lanes;             // that took part
  int warp;              // of its block
};

struct LoadCounts {
  std::vector<WarpLoad> loads;
  std::int64_t bytes = 0;  // 16 for each lane of each load
};

// Loads are recorded from reset_load_counts() on if `record`.
void reset_load_counts(bool record = true);
const LoadCounts& load_counts();

// ---- For kernels/cuda/device: what the twins of the intrinsics are made of.

using CallSite = std::source_location;

inline constexpr int kPoison = 0xff;

// Runs `thread` once for every thread of the grid.
cudaError_t run_grid(dim3 grid, unsigned threads, std::size_t shared_bytes,
                     const std::function<void()>& thread);

int lane();

// Waits for all 32 lanes; the last to arrive runs `complete` on what each lane passed as `operands`, lane by
// lane.
using Complete = void (*)(void* const* operands);
void meet_warp(const char* name, const CallSite& site, void* operands, Complete complete);

// Waits for all threads of the block; whether any of them passed true.
bool meet_block(const char* name, const CallSite& site, bool vote);

// Gives way, with a small probability.
void maybe_switch();

void* shared_memory(std::size_t bytes, const CallSite& site);

// Checks a 16-byte access to global or to shared memory.
void access_global(const char* name, const void* address, const CallSite& site);
void access_shared(const char* name, const void* address, const CallSite& site);

void record_load(const void* address, const CallSite& site);

// The asynchronous copies of the running thread.
void queue_copy(void* shared, const uint4& value);
void commit_copies();
void wait_copies(int pending_groups);

}  // namespace kvfuse::emulation
