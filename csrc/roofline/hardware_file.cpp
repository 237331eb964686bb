#include "csrc/roofline/hardware_file.h"

#include <stdexcept>
#include <utility>

#include "csrc/roofline/check.h"
#include "csrc/roofline/hardware.h"
#include "csrc/roofline/json_reader.h"

namespace kvfuse::roofline {
namespace {

constexpr std::int64_t kSchemaVersion = 1;
constexpr std::size_t kMostMachines = 1000;  // each is compared with every earlier one

using Keys = std::vector<std::string>;

Figure read_figure(const json& value, const std::string& where) {
  static const Keys kKeys = {"value", "source"};
  const JsonObject object(value, where, kKeys);
  return {.value = object.positive("value"), .source = object.text("source")};
}

std::optional<Figure> read_optional_figure(const JsonObject& parent, const char* key) {
  if (!parent.has(key)) return std::nullopt;
  return read_figure(parent.at(key), parent.where(key));
}

std::map<Precision, Figure> read_peaks(const JsonObject& parent) {
  static const Keys kKeys = precision_names();
  const JsonObject object(parent.at("peak_tflop_s"), parent.where("peak_tflop_s"), kKeys);
  std::map<Precision, Figure> peaks;
  for (const Precision precision : kAllPrecisions) {
    const std::string name(precision_name(precision));
    if (object.has(name.c_str())) peaks[precision] = read_figure(object.at(name.c_str()), object.where(name));
  }
  if (peaks.empty())
    throw std::invalid_argument(object.where() + ": expected a peak for at least one format, got none");
  return peaks;
}

Hardware read_machine(const JsonObject& object, Profile profile) {
  Hardware hardware{
      .name = object.text("name"),
      .title = object.text("title"),
      .kind = object.text("kind"),
      .profile = profile,
      .aliases = {},
      .bandwidth_gb_s = read_figure(object.at("bandwidth_gb_s"), object.where("bandwidth_gb_s")),
      .peak_tflop_s = read_peaks(object),
      .memory_gb = read_optional_figure(object, "memory_gb"),
      .l2_mb = read_optional_figure(object, "l2_mb"),
      .multiprocessors = read_optional_figure(object, "multiprocessors"),
      .note = object.has("note") ? object.text("note") : ""};
  if (hardware.kind != "gpu" && hardware.kind != "cpu")
    throw std::invalid_argument(object.where("kind") + ": expected \"gpu\" or \"cpu\", got \"" +
                                hardware.kind + "\"");
  if (object.has("aliases")) hardware.aliases = object.texts("aliases");
  return hardware;
}

// What the published study says of the same machine.
Hardware read_reference(const JsonObject& parent, Hardware hardware) {
  static const Keys kKeys = {"bandwidth_gb_s", "peak_tflop_s", "note"};
  const JsonObject object(parent.at("reference"), parent.where("reference"), kKeys);
  hardware.profile = Profile::kReference;
  hardware.bandwidth_gb_s = read_figure(object.at("bandwidth_gb_s"), object.where("bandwidth_gb_s"));
  hardware.peak_tflop_s = read_peaks(object);
  hardware.note = object.has("note") ? object.text("note") : "";
  return hardware;
}

}  // namespace

void HardwareRegistry::read(std::string_view json_text, const std::string& origin, Profile profile) {
  static const Keys kFileKeys = {"schema_version", "hardware"};
  static const Keys kMachineKeys = {"name",         "title",     "kind",  "aliases",         "bandwidth_gb_s",
                                    "peak_tflop_s", "memory_gb", "l2_mb", "multiprocessors", "note",
                                    "reference"};
  const json text = parse_strictly(json_text, origin);
  const JsonObject file(text, origin, kFileKeys);
  file.whole("schema_version", kSchemaVersion, kSchemaVersion);
  const json& machines = file.array("hardware");
  if (machines.size() > kMostMachines)
    throw std::invalid_argument(file.where("hardware") + ": expected at most " +
                                std::to_string(kMostMachines) + " machines, got " +
                                std::to_string(machines.size()));
  for (std::size_t i = 0; i < machines.size(); ++i) {
    const JsonObject object(machines[i], file.where("hardware[" + std::to_string(i) + "]"), kMachineKeys);
    const Hardware hardware = read_machine(object, profile);
    for (std::size_t earlier = 0; earlier < i; ++earlier)
      if (normal_name(machines[earlier]["name"].get<std::string>()) == normal_name(hardware.name))
        throw std::invalid_argument(object.where("name") + ": expected every machine once, got \"" +
                                    hardware.name + "\" twice");
    add(hardware);
    if (object.has("reference")) reference_.push_back(read_reference(object, hardware));
  }
}

const HardwareRegistry& HardwareRegistry::builtin() {
  static const HardwareRegistry registry = [] {
    HardwareRegistry made;
    made.read(hardware_file_text(), "csrc/roofline/data/hardware.json", Profile::kVendor);
    return made;
  }();
  return registry;
}

}  // namespace kvfuse::roofline
