// What of the CPU's state makes times unrepeatable: clock, governor, boost, load.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

namespace kvfuse {

// Absent: the machine does not say, as most virtual ones.
struct CpuState {
  std::optional<std::string> governor;  // of all CPUs, "mixed" if they differ
  std::optional<double> mhz_lowest;     // the slowest and fastest CPU at this moment
  std::optional<double> mhz_highest;
  std::optional<double> mhz_limit;  // what the fastest CPU may reach
  std::optional<bool> boost;
  std::optional<double> load_average;  // of the last minute
  std::int64_t cores = 0;              // online
};

// From <root>/sys and <root>/proc. Takes no longer than a few milliseconds on a large machine. The load is
// this program's own after a minute of measuring: to learn of others', read it before.
CpuState read_cpu_state(const std::string& root = "");

// The members for a record's context: cpu_governor, cpu_mhz_lowest, cpu_mhz_highest, cpu_mhz_limit,
// cpu_boost, load_average; null where absent.
nlohmann::ordered_json cpu_state_json(const CpuState& state);

// A sentence for each thing that makes times unrepeatable; none on a quiet machine with a fixed clock.
std::vector<std::string> cpu_state_warnings(const CpuState& state);

}  // namespace kvfuse
