#include "kernels/cpu/isa.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <stdexcept>
#include <utility>

namespace kvfuse::cpu {
namespace {

constexpr std::array<std::pair<Isa, const char*>, 6> kNames = {{{Isa::kPortable, "portable"},
                                                                {Isa::kAvx2, "avx2"},
                                                                {Isa::kAvx2Vnni, "avx2_vnni"},
                                                                {Isa::kAvx512, "avx512"},
                                                                {Isa::kAvx512Vnni, "avx512_vnni"},
                                                                {Isa::kAmxInt8, "amx_int8"}}};

// Not a feature that clang's __builtin_cpu_supports knows by name.
bool has_avx_vnni() {
  unsigned int eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & bit_AVXVNNI) != 0;
}

// Linux saves the tiles of a process's threads only once it has asked for them; a sandbox may refuse.
bool may_use_tiles() {
  constexpr int kArchReqXcompPerm = 0x1023, kTileData = 18;  // asm/prctl.h; the state's number in XCR0
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kTileData) == 0;
}

std::vector<Isa> detect() {
  std::vector<Isa> found = {Isa::kPortable};
  if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")))
    return found;
  found.push_back(Isa::kAvx2);
  if (has_avx_vnni()) found.push_back(Isa::kAvx2Vnni);
  if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")))
    return found;
  found.push_back(Isa::kAvx512);
  if (!__builtin_cpu_supports("avx512vnni")) return found;
  found.push_back(Isa::kAvx512Vnni);
  if (__builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-int8") && may_use_tiles())
    found.push_back(Isa::kAmxInt8);
  return found;
}

std::string names(const std::vector<Isa>& isas) {
  std::string text;
  for (const Isa isa : isas) text += (text.empty() ? "" : ", ") + std::string(isa_name(isa));
  return text;
}

Isa choose() {
  const char* wanted = std::getenv("KVFUSE_ISA");
  if (wanted == nullptr || *wanted == '\0') return available_isas().back();
  for (const Isa isa : available_isas())
    if (wanted == std::string(isa_name(isa))) return isa;
  throw std::runtime_error("KVFUSE_ISA: expected one that this machine runs (" + names(available_isas()) +
                           "), got \"" + wanted + "\"");
}

std::atomic<int>& chosen() {
  static std::atomic<int> isa{static_cast<int>(choose())};
  return isa;
}

std::atomic<bool>& intel() {
  static std::atomic<bool> is{__builtin_cpu_is("intel") != 0};
  return is;
}

}  // namespace

const std::vector<Isa>& available_isas() {
  static const std::vector<Isa> isas = detect();
  return isas;
}

const char* isa_name(Isa isa) {
  for (const auto& [known, name] : kNames)
    if (known == isa) return name;
  return "unknown";
}

Isa active_isa() { return static_cast<Isa>(chosen().load(std::memory_order_relaxed)); }

bool multiplies_bfloat16() { return __builtin_cpu_supports("avx512bf16") != 0; }

bool multiplies_bytes() {
  const Isa isa = active_isa();
  return isa == Isa::kAvx2Vnni || isa == Isa::kAvx512Vnni || isa == Isa::kAmxInt8;
}

bool is_intel() { return intel().load(std::memory_order_relaxed); }

void set_intel(bool is) { intel().store(is, std::memory_order_relaxed); }

void set_active_isa(Isa isa) {
  const std::vector<Isa>& isas = available_isas();
  if (std::find(isas.begin(), isas.end(), isa) == isas.end())
    throw std::runtime_error(std::string("set_active_isa: this machine lacks ") + isa_name(isa));
  chosen().store(static_cast<int>(isa), std::memory_order_relaxed);
}

}  // namespace kvfuse::cpu
