#include "csrc/records/cpu_state.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string_view>
#include <system_error>

namespace kvfuse {
namespace {

constexpr double kBusyLoad = 0.5;         // of the cores
constexpr double kThrottledClock = 0.75;  // of the limit

std::optional<std::string> first_line(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::string line;
  if (!std::getline(file, line) || line.empty()) return std::nullopt;
  return line;
}

std::string rounded(double value, int decimals) {
  std::array<char, 64> text = {};
  std::snprintf(text.data(), text.size(), "%.*f", decimals, value);
  return text.data();
}

// The number that the text begins with.
std::optional<double> number_of(std::optional<std::string_view> text) {
  double value = 0;
  if (!text) return std::nullopt;
  const auto result = std::from_chars(text->data(), text->data() + text->size(), value);
  if (result.ec != std::errc() || !std::isfinite(value) || value < 0) return std::nullopt;
  return value;
}

std::optional<double> number_in(const std::filesystem::path& path) {
  const std::optional<std::string> line = first_line(path);
  return number_of(line ? std::optional<std::string_view>(*line) : std::nullopt);
}

bool is_cpu_folder(const std::string& name) {
  return name.size() > 3 && name.starts_with("cpu") &&
         std::all_of(name.begin() + 3, name.end(), [](char c) { return c >= '0' && c <= '9'; });
}

void keep_least(std::optional<double>& least, double value) {
  least = std::min(least.value_or(value), value);
}
void keep_most(std::optional<double>& most, double value) { most = std::max(most.value_or(value), value); }

void take_clock(CpuState& state, double mhz) {
  keep_least(state.mhz_lowest, mhz);
  keep_most(state.mhz_highest, mhz);
}

// Frequencies are in kHz there.
void read_scaling(const std::filesystem::path& cpus, CpuState& state) {
  std::error_code none;
  for (const auto& cpu : std::filesystem::directory_iterator(cpus, none)) {
    if (!is_cpu_folder(cpu.path().filename().string())) continue;
    const std::filesystem::path scaling = cpu.path() / "cpufreq";
    if (const auto governor = first_line(scaling / "scaling_governor"))
      state.governor = !state.governor || state.governor == governor ? *governor : "mixed";
    if (const auto khz = number_in(scaling / "scaling_cur_freq")) take_clock(state, *khz / 1e3);
    if (const auto khz = number_in(scaling / "cpuinfo_max_freq")) keep_most(state.mhz_limit, *khz / 1e3);
  }
  const std::optional<double> boost = number_in(cpus / "cpufreq" / "boost");
  const std::optional<double> no_turbo = number_in(cpus / "intel_pstate" / "no_turbo");
  if (boost)
    state.boost = *boost != 0;
  else if (no_turbo)
    state.boost = *no_turbo == 0;
}

// The cores, and their clocks unless the system has already told them.
void read_cpuinfo(const std::filesystem::path& path, CpuState& state) {
  const bool clocks_known = state.mhz_lowest.has_value();
  std::ifstream info(path);
  for (std::string line; std::getline(info, line);) {
    if (line.starts_with("processor")) ++state.cores;
    const std::size_t colon = line.find(": ");
    if (clocks_known || !line.starts_with("cpu MHz") || colon == std::string::npos) continue;
    if (const auto mhz = number_of(std::string_view(line).substr(colon + 2))) take_clock(state, *mhz);
  }
}

template <typename Value>
nlohmann::ordered_json or_null(const std::optional<Value>& value) {
  return value ? nlohmann::ordered_json(*value) : nlohmann::ordered_json(nullptr);
}

}  // namespace

CpuState read_cpu_state(const std::string& root) {
  CpuState state;
  read_scaling(root + "/sys/devices/system/cpu", state);
  read_cpuinfo(root + "/proc/cpuinfo", state);
  state.load_average = number_in(root + "/proc/loadavg");
  return state;
}

nlohmann::ordered_json cpu_state_json(const CpuState& state) {
  return {{"cpu_governor", or_null(state.governor)},
          {"cpu_mhz_lowest", or_null(state.mhz_lowest)},
          {"cpu_mhz_highest", or_null(state.mhz_highest)},
          {"cpu_mhz_limit", or_null(state.mhz_limit)},
          {"cpu_boost", or_null(state.boost)},
          {"load_average", or_null(state.load_average)}};
}

std::vector<std::string> cpu_state_warnings(const CpuState& state) {
  std::vector<std::string> warnings;
  if (state.governor && *state.governor != "performance")
    warnings.push_back("the CPU's clock is scaled (governor " + *state.governor +
                       "): times vary with it (hint: cpupower frequency-set -g performance)");
  if (state.mhz_highest && state.mhz_limit && *state.mhz_highest < kThrottledClock * *state.mhz_limit)
    warnings.push_back("no CPU runs faster than " + rounded(*state.mhz_highest, 0) + " of " +
                       rounded(*state.mhz_limit, 0) + " MHz: they idle or are throttled");
  if (state.load_average && *state.load_average > kBusyLoad * static_cast<double>(state.cores))
    warnings.push_back("the load average is " + rounded(*state.load_average, 2) + " on " +
                       std::to_string(state.cores) + " cores: other programs take part of them");
  return warnings;
}

}  // namespace kvfuse
