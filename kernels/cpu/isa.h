// Which instruction set the CPU kernels run with. Chosen once per process, at the first call.
#pragma once

#include <string>
#include <vector>

namespace kvfuse::cpu {

enum class Isa { kPortable, kAvx2, kAvx2Vnni, kAvx512, kAvx512Vnni, kAmxInt8 };

// The instruction sets this machine can run, worst first.
const std::vector<Isa>& available_isas();

// "portable", "avx2", "avx2_vnni", "avx512", "avx512_vnni", "amx_int8": the values that KVFUSE_ISA takes.
const char* isa_name(Isa isa);

// The best available one, or the one that the environment variable KVFUSE_ISA names.
// Throws std::runtime_error if KVFUSE_ISA names an unknown one or one that this machine lacks.
Isa active_isa();

// Whether the machine has products of bfloat16 (AVX-512 BF16). The kernels have none; oneDNN does.
bool multiplies_bfloat16();

// Whether the kernels have products of bytes that add up in 32 bits (VNNI): what int8 codes are packed for.
bool multiplies_bytes();

// Whether Intel made the CPU: what its prefetchers do by themselves differs (docs/decisions.md).
bool is_intel();

// Makes every later call take it for one or not (for tests: both ways give the same bits on any CPU).
void set_intel(bool intel);

// Makes every later call run with `isa` (for tests and benchmarks). Throws if the machine lacks it.
void set_active_isa(Isa isa);

}  // namespace kvfuse::cpu
