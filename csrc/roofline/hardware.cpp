#include "csrc/roofline/hardware.h"

#include <array>
#include <stdexcept>
#include <utility>

#include "csrc/roofline/check.h"

namespace kvfuse::roofline {
namespace {

constexpr std::array<std::pair<Profile, std::string_view>, 4> kProfiles = {
    {{Profile::kVendor, "vendor"},
     {Profile::kReference, "reference"},
     {Profile::kUser, "user"},
     {Profile::kCalibrated, "calibrated"}}};

// What a format may be widened to, narrowest first.
std::vector<Precision> wider_formats(Precision precision) {
  switch (precision) {
    case Precision::kFp32:
      return {};
    case Precision::kFp16:
      return {Precision::kBf16, Precision::kFp32};  // 16 bits have one rate
    case Precision::kBf16:
      return {Precision::kFp16, Precision::kFp32};
    default:
      return {Precision::kFp16, Precision::kBf16, Precision::kFp32};
  }
}

bool is_called(const Hardware& hardware, const std::string& wanted) {
  if (normal_name(hardware.name) == wanted) return true;
  for (const std::string& alias : hardware.aliases)
    if (normal_name(alias) == wanted) return true;
  return false;
}

const Hardware* find_in(const std::vector<Hardware>& machines, std::string_view name) {
  const std::string wanted = normal_name(name);
  for (const Hardware& hardware : machines)
    if (is_called(hardware, wanted)) return &hardware;
  return nullptr;
}

std::vector<std::string> names_in(const std::vector<Hardware>& machines) {
  std::vector<std::string> names;
  for (const Hardware& hardware : machines) names.push_back(hardware.name);
  return names;
}

}  // namespace

std::string_view profile_name(Profile profile) { return kProfiles[static_cast<std::size_t>(profile)].second; }

Profile parse_profile(std::string_view name) {
  std::vector<std::string> names;
  for (const auto& [profile, known] : kProfiles) {
    if (normal_name(name) == known) return profile;
    names.emplace_back(known);
  }
  unknown_name("profile", name, names);
}

Peak peak_of(const Hardware& hardware, Precision precision) {
  const auto native = hardware.peak_tflop_s.find(precision);
  if (native != hardware.peak_tflop_s.end()) return {native->second.value * 1e12, precision, false};
  for (const Precision wider : wider_formats(precision)) {
    const auto found = hardware.peak_tflop_s.find(wider);
    if (found != hardware.peak_tflop_s.end()) return {found->second.value * 1e12, wider, true};
  }
  throw std::invalid_argument("roofline: hardware " + hardware.name + " (" +
                              std::string(profile_name(hardware.profile)) +
                              " figures): expected a peak for " + std::string(precision_name(precision)) +
                              " or a wider format, got none");
}

MachineLimits limits_of(const Hardware& hardware, Precision precision) {
  return {.read_bytes_per_s = hardware.bytes_per_s(),
          .matmul_flops_per_s = peak_of(hardware, precision).flops_per_s};
}

double critical_intensity(const Hardware& hardware, Precision precision) {
  return limits_of(hardware, precision).ridge();
}

void HardwareRegistry::add(Hardware hardware) {
  std::vector<std::string> calls = hardware.aliases;
  calls.push_back(hardware.name);
  Hardware* same = nullptr;
  for (Hardware& known : machines_)
    for (const std::string& call : calls) {
      if (!is_called(known, normal_name(call))) continue;
      if (normal_name(known.name) != normal_name(hardware.name))
        throw std::invalid_argument("roofline: hardware " + hardware.name +
                                    ": expected a name and aliases of its own, got \"" + call +
                                    "\", which means " + known.name);
      same = &known;
    }
  if (same != nullptr) {
    std::erase_if(reference_, [&](const Hardware& old) { return old.name == same->name; });
    *same = std::move(hardware);
  } else {
    machines_.push_back(std::move(hardware));
  }
}

void HardwareRegistry::add(std::string_view json_text, const std::string& origin) {
  HardwareRegistry larger = *this;
  larger.read(json_text, origin, Profile::kUser);
  *this = std::move(larger);
}

const Hardware& HardwareRegistry::find(std::string_view name, Profile profile) const {
  const Hardware* found = find_in(machines_, name);
  if (found == nullptr) unknown_name("hardware", name, names());
  if (profile == Profile::kVendor || profile == found->profile) return *found;
  if (profile != Profile::kReference)
    throw std::invalid_argument("roofline: hardware " + found->name + ": expected " +
                                std::string(profile_name(profile)) + " figures, got " +
                                std::string(profile_name(found->profile)) + " ones only");
  const Hardware* reference = find_in(reference_, found->name);
  if (reference == nullptr)
    unknown_name("hardware with published reference figures", name, names_in(reference_));
  return *reference;
}

std::vector<std::string> HardwareRegistry::names() const { return names_in(machines_); }

}  // namespace kvfuse::roofline
