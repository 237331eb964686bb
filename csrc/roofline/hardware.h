// The machines that the toolkit knows: bandwidth and dense peaks, each figure with its source.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "csrc/roofline/cost.h"
#include "csrc/roofline/precision.h"

namespace kvfuse::roofline {

struct Figure {
  double value = 0;
  std::string source;
};

// Where a machine's figures are from.
enum class Profile {
  kVendor,     // data sheets and white papers, dense rates
  kReference,  // the published study that this toolkit reproduces; some are sparse rates or of another format
  kUser,       // a file given at run time
  kCalibrated  // measured on this machine
};
std::string_view profile_name(Profile profile);
Profile parse_profile(std::string_view name);

struct Hardware {
  std::string name;  // by which it is asked for: "h100"
  std::string title;
  std::string kind;  // "gpu" or "cpu"
  Profile profile = Profile::kVendor;
  std::vector<std::string> aliases;
  Figure bandwidth_gb_s;                     // of memory, 1e9 bytes a second
  std::map<Precision, Figure> peak_tflop_s;  // dense matrix products; a format that is absent is not native
  std::optional<Figure> memory_gb;           // 1e9 bytes
  std::optional<Figure> l2_mb;
  std::optional<Figure> multiprocessors;
  std::string note;

  double bytes_per_s() const { return bandwidth_gb_s.value * 1e9; }
  bool is_native(Precision precision) const { return peak_tflop_s.contains(precision); }
};

// The rate at which products in a format are computed.
struct Peak {
  double flops_per_s = 0;
  Precision computed_in = Precision::kFp16;
  bool storage_only = false;  // the format is not native: it saves bytes and is widened before the product
};

// A format that is not native computes at the rate of the narrowest wider floating-point format that is.
// Throws std::invalid_argument if there is none, such as for FP32 where only FP16 is known.
Peak peak_of(const Hardware& hardware, Precision precision);
MachineLimits limits_of(const Hardware& hardware, Precision precision);

// FLOPs a byte from which on the arithmetic is the slower one.
double critical_intensity(const Hardware& hardware, Precision precision);

// The machines in the order of their file. Names and aliases are looked up without regard to case, "-" and
// " " count as "_".
class HardwareRegistry {
 public:
  // csrc/roofline/data/hardware.json, as it was when this was built.
  static const HardwareRegistry& builtin();

  // Adds the machines of a JSON text of that same form; `origin` names it in errors. An entry of a known name
  // or alias is refused unless it is of the same name, which it then replaces, published figures included. On
  // an error, which throws std::invalid_argument, nothing is added.
  void add(std::string_view json_text, const std::string& origin);
  void add(Hardware hardware);

  // Throws std::invalid_argument that lists the names and the nearest. kVendor asks for the figures that the
  // registry uses, whoever gave them; kReference for the published ones; the others refuse a machine whose
  // figures are not of that kind.
  const Hardware& find(std::string_view name, Profile profile = Profile::kVendor) const;

  const std::vector<Hardware>& all() const { return machines_; }
  const std::vector<Hardware>& with_reference_figures() const { return reference_; }
  std::vector<std::string> names() const;

 private:
  void read(std::string_view json_text, const std::string& origin, Profile profile);

  std::vector<Hardware> machines_;
  std::vector<Hardware> reference_;
};

}  // namespace kvfuse::roofline
