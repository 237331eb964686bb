// The scheduler and the checks of the emulator. State is global and belongs to one system thread.
#include "cuda_emulation.h"

#include <array>
#include <bit>
#include <cstring>
#include <exception>
#include <memory>
#include <numeric>
#include <utility>

#include "fiber.h"
#include "load_log.h"

uint3 threadIdx;
uint3 blockIdx;
dim3 blockDim;
dim3 gridDim;

namespace kvfuse::emulation {
namespace {

constexpr unsigned kWarp = 32;
constexpr std::uint32_t kAllLanes = 0xffffffffU;
constexpr std::uint64_t kMemorySwitchOdds = 16;  // one memory access in so many gives way

struct PendingCopy {
  void* shared;
  uint4 value;
  int group;
};

struct Thread {
  explicit Thread(unsigned index_, void (*body)()) : index(index_), fiber(body) {}
  unsigned index;  // in its block
  Fiber fiber;
  bool unfinished = false;          // has started the kernel and not ended it
  int groups = 0;                   // of asynchronous copies, committed so far
  std::vector<PendingCopy> copies;  // not landed yet
};

// Bit i of each set stands for lane i.
struct Warp {
  std::uint32_t runnable = kAllLanes;
  std::uint32_t in_collective = 0;
  std::uint32_t in_barrier = 0;
  std::uint32_t ended = 0;
  const char* name = nullptr;  // of the collective, and where
  CallSite site;
  std::array<void*, kWarp> operands{};
};

struct Barrier {
  unsigned arrived = 0;
  const char* name = nullptr;
  CallSite site;
  bool vote = false;    // of those that have arrived
  bool result = false;  // of the last completed one
};

// Who goes on of those that can: always the first, always the last, or anyone.
enum class Order { kAscending, kDescending, kRandom };

struct Block {
  std::vector<Warp> warps;
  std::uint32_t runnable_warps = 0;
  unsigned ended = 0;
  Barrier barrier;
  Order order = Order::kRandom;
  std::uint64_t switch_odds = 1;  // kRandom: one turn in so many may go to another warp
  bool failed = false;
};

struct Unwind {};  // thrown through the threads of a launch that has failed

std::uint64_t random_state = 0;
std::uint64_t blocks_run = 0;  // starts at the seed
std::string error_text;
LoadLog load_log;

Fiber main_fiber;
std::vector<std::unique_ptr<Thread>> pool;  // pool[i] runs thread i of every block
Thread* running = nullptr;
const std::function<void()>* kernel = nullptr;
Block block;
std::byte* shared = nullptr;
std::size_t shared_size = 0;

std::uint64_t draw() {  // splitmix64
  std::uint64_t z = random_state += 0x9e3779b97f4a7c15U;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9U;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebU;
  return z ^ (z >> 31);
}

// One element of a set that is not empty.
unsigned choose(std::uint32_t set) {
  if (block.order == Order::kDescending) return 31U - static_cast<unsigned>(std::countl_zero(set));
  const unsigned start = block.order == Order::kAscending ? 0 : draw() % kWarp;
  return (static_cast<unsigned>(std::countr_zero(std::rotr(set, static_cast<int>(start)))) + start) % kWarp;
}

std::string describe(const char* name, const CallSite& site) {
  return std::string(name) + " at " + site.file_name() + ":" + std::to_string(site.line());
}

std::string this_thread() {
  return "thread " + std::to_string(running->index) + " of block (" + std::to_string(blockIdx.x) + ", " +
         std::to_string(blockIdx.y) + ", " + std::to_string(blockIdx.z) + ")";
}

void note_failure(const std::string& text) {
  if (!block.failed) error_text = text;
  block.failed = true;
}

[[noreturn]] void fail(const std::string& text) {
  note_failure(text);
  throw Unwind{};
}

bool same_site(const CallSite& a, const CallSite& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}

// ---- Scheduling.

Warp& own_warp() { return block.warps[running->index / kWarp]; }
std::uint32_t own_bit() { return 1U << (running->index % kWarp); }

void set_runnable(Warp& warp, std::uint32_t lanes) {
  const std::uint32_t bit = 1U << (&warp - block.warps.data());
  warp.runnable = lanes;
  block.runnable_warps = lanes == 0 ? block.runnable_warps & ~bit : block.runnable_warps | bit;
}

// Control goes from one fiber to another; `next` is null for the launch itself.
void switch_thread(Fiber& self, Thread* next) {
  running = next;
  if (next != nullptr) threadIdx = {next->index, 0, 0};
  self.switch_to(next != nullptr ? next->fiber : main_fiber);
}

Thread* choose_next() {
  if (block.failed || block.runnable_warps == 0) return nullptr;
  unsigned warp = running->index / kWarp;
  const bool can_keep = block.order == Order::kRandom && (block.runnable_warps >> warp & 1) != 0;
  if (!can_keep || draw() % block.switch_odds == 0) warp = choose(block.runnable_warps);
  return pool[warp * kWarp + choose(block.warps[warp].runnable)].get();
}

void give_way() {
  Thread* const self = running;
  Thread* const next = choose_next();
  if (next != self) switch_thread(self->fiber, next);
  if (block.failed) throw Unwind{};
}

void end_thread() {
  Warp& warp = own_warp();
  const auto divergence = [](const char* whose, const std::string& where) {
    fail("Divergence: " + this_thread() + " ends while " + whose + " wait in " + where + ".");
  };
  if (warp.in_collective != 0) divergence("lanes of its warp", describe(warp.name, warp.site));
  if (block.barrier.arrived != 0)
    divergence("threads of its block", describe(block.barrier.name, block.barrier.site));
  warp.ended |= own_bit();
  ++block.ended;
  set_runnable(warp, warp.runnable & ~own_bit());
}

// What every fiber of the pool runs: the kernel, once for each block in which it takes part.
void run_threads() {
  for (;;) {
    Thread& self = *running;
    self.unfinished = true;
    try {
      (*kernel)();
      end_thread();
    } catch (const Unwind&) {
    } catch (const std::exception& error) {
      note_failure("The kernel threw in " + this_thread() + ": " + error.what() + ".");
    }
    self.unfinished = false;
    switch_thread(self.fiber, choose_next());
  }
}

// Three blocks in a row, and so three seeds in a row, take the three orders: of any two warps (or lanes)
// without a barrier between them, each then runs ahead of the other.
void reset_block(unsigned threads) {
  constexpr std::array kOrders = {Order::kAscending, Order::kDescending, Order::kRandom};
  constexpr std::array<std::uint64_t, 3> kSwitchOdds = {4, 64, 1024};
  const unsigned warps = threads / kWarp;
  block = Block{};
  block.warps.resize(warps);
  block.runnable_warps = kAllLanes >> (kWarp - warps);
  block.order = kOrders[blocks_run++ % kOrders.size()];
  block.switch_odds = kSwitchOdds[draw() % kSwitchOdds.size()];
  if (shared_size > 0) std::memset(shared, kPoison, shared_size);
  for (unsigned i = 0; i < threads; ++i) {
    pool[i]->groups = 0;
    pool[i]->copies.clear();
  }
}

void run_block(unsigned threads) {
  reset_block(threads);
  switch_thread(main_fiber, pool[choose(block.runnable_warps) * kWarp + choose(kAllLanes)].get());
  for (unsigned i = 0; block.failed && i < threads; ++i)
    if (pool[i]->unfinished) switch_thread(main_fiber, pool[i].get());
  load_log.end_block();
}

bool valid_shape(dim3 grid, unsigned threads, std::size_t shared_bytes) {
  constexpr unsigned kMaxThreads = 1024;
  constexpr unsigned kMaxGridX = 0x7fffffff;
  constexpr unsigned kMaxGridYz = 65535;
  constexpr std::size_t kMaxSharedBytes = 227 * 1024;
  return threads > 0 && threads % kWarp == 0 && threads <= kMaxThreads && grid.x > 0 && grid.y > 0 &&
         grid.z > 0 && grid.x <= kMaxGridX && grid.y <= kMaxGridYz && grid.z <= kMaxGridYz &&
         shared_bytes <= kMaxSharedBytes;
}

bool is_shared(const void* address) {
  return reinterpret_cast<std::uintptr_t>(address) - reinterpret_cast<std::uintptr_t>(shared) < shared_size;
}

void check_alignment(const char* name, const void* address, const CallSite& site) {
  if (reinterpret_cast<std::uintptr_t>(address) % sizeof(uint4) != 0)
    fail("Misaligned address: " + describe(name, site) + " needs a multiple of 16 bytes, in " +
         this_thread() + ".");
}

}  // namespace

void set_options(Options options) {
  random_state = options.seed;
  blocks_run = options.seed;
}

const std::string& last_error() { return error_text; }

void reset_load_counts(bool record) { load_log.reset(record); }

const LoadCounts& load_counts() { return load_log.counts(); }

void record_load(const void* address, const CallSite& site) { load_log.add(address, site, running->index); }

cudaError_t run_grid(dim3 grid, unsigned threads, std::size_t shared_bytes,
                     const std::function<void()>& thread) {
  error_text.clear();
  if (!valid_shape(grid, threads, shared_bytes)) {
    error_text = "A launch of " + std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " +
                 std::to_string(grid.z) + " blocks of " + std::to_string(threads) + " threads with " +
                 std::to_string(shared_bytes) + " bytes of shared memory is outside the limits.";
    return cudaErrorInvalidConfiguration;
  }
  while (pool.size() < threads)
    pool.push_back(std::make_unique<Thread>(static_cast<unsigned>(pool.size()), run_threads));
  const auto memory = std::make_unique_for_overwrite<std::byte[]>(shared_bytes);
  shared = memory.get();
  shared_size = shared_bytes;
  kernel = &thread;
  blockDim = dim3(threads);
  gridDim = grid;

  std::vector<std::uint64_t> order(std::uint64_t{grid.x} * grid.y * grid.z);
  std::iota(order.begin(), order.end(), std::uint64_t{0});
  for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[draw() % i]);
  for (const std::uint64_t index : order) {
    blockIdx = {static_cast<unsigned>(index % grid.x), static_cast<unsigned>(index / grid.x % grid.y),
                static_cast<unsigned>(index / grid.x / grid.y)};
    run_block(threads);
    if (block.failed) return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}

int lane() { return static_cast<int>(running->index % kWarp); }

void meet_warp(const char* name, const CallSite& site, void* operands, Complete complete) {
  Warp& warp = own_warp();
  const auto divergence = [&](const std::string& others) {
    fail("Divergence: " + this_thread() + " reaches " + describe(name, site) + " while lanes of its warp " +
         others + ".");
  };
  if (warp.ended != 0) divergence("have ended");
  if (warp.in_barrier != 0) divergence("wait in " + describe(block.barrier.name, block.barrier.site));
  if (warp.in_collective != 0 && !same_site(site, warp.site))
    divergence("wait in " + describe(warp.name, warp.site));
  warp.name = name;
  warp.site = site;
  warp.operands[running->index % kWarp] = operands;
  warp.in_collective |= own_bit();
  set_runnable(warp, warp.runnable & ~own_bit());
  if (warp.in_collective == kAllLanes) {
    complete(warp.operands.data());
    warp.in_collective = 0;
    set_runnable(warp, kAllLanes);
  }
  give_way();
}

bool meet_block(const char* name, const CallSite& site, bool vote) {
  Warp& warp = own_warp();
  Barrier& barrier = block.barrier;
  const auto divergence = [&](const std::string& others) {
    fail("Divergence: " + this_thread() + " reaches " + describe(name, site) + " while " + others + ".");
  };
  if (block.ended != 0) divergence("threads of its block have ended");
  if (warp.in_collective != 0) divergence("lanes of its warp wait in " + describe(warp.name, warp.site));
  if (barrier.arrived != 0 && !same_site(site, barrier.site))
    divergence("threads of its block wait in " + describe(barrier.name, barrier.site));
  barrier.name = name;
  barrier.site = site;
  barrier.vote = barrier.vote || vote;
  ++barrier.arrived;
  warp.in_barrier |= own_bit();
  set_runnable(warp, warp.runnable & ~own_bit());
  if (barrier.arrived == blockDim.x) {
    barrier.arrived = 0;
    barrier.result = std::exchange(barrier.vote, false);
    for (Warp& each : block.warps) {
      each.in_barrier = 0;
      set_runnable(each, kAllLanes);
    }
  }
  give_way();
  return barrier.result;  // the next barrier completes only after every thread has left this one
}

void maybe_switch() {
  if (block.order == Order::kRandom && draw() % kMemorySwitchOdds == 0) give_way();
}

void* shared_memory(std::size_t bytes, const CallSite& site) {
  if (bytes > shared_size)
    fail("Too little shared memory: " + describe("block_shared", site) + " needs " + std::to_string(bytes) +
         " bytes, the launch asked for " + std::to_string(shared_size) + ".");
  return shared;
}

void access_global(const char* name, const void* address, const CallSite& site) {
  check_alignment(name, address, site);
  if (is_shared(address))
    fail("Wrong memory: " + describe(name, site) + " got a shared address for a global one, in " +
         this_thread() + ".");
  maybe_switch();
}

void access_shared(const char* name, const void* address, const CallSite& site) {
  check_alignment(name, address, site);
  if (!is_shared(address) || !is_shared(static_cast<const std::byte*>(address) + sizeof(uint4) - 1))
    fail("Wrong memory: " + describe(name, site) + " got an address outside the block's shared memory, in " +
         this_thread() + ".");
  maybe_switch();
}

void queue_copy(void* destination, const uint4& value) {
  running->copies.push_back({destination, value, running->groups});
}

void commit_copies() { ++running->groups; }

void wait_copies(int pending_groups) {
  maybe_switch();
  std::erase_if(running->copies, [&](const PendingCopy& copy) {
    const bool complete = copy.group < running->groups - pending_groups;
    if (complete) std::memcpy(copy.shared, &copy.value, sizeof(copy.value));
    return complete;
  });
}

}  // namespace kvfuse::emulation
