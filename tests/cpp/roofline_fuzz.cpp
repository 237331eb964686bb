// libFuzzer entry: whatever a file of machines, of a calibration or of records holds, reading it ends in
// values or in an error about the file.
#include <cstdint>
#include <stdexcept>
#include <string_view>

#include "csrc/roofline/hardware.h"
#include "csrc/roofline/validation.h"

namespace {

using namespace kvfuse::roofline;

template <typename F>
void allow_refusal(F&& f) {
  try {
    f();
  } catch (const std::invalid_argument&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  allow_refusal([&] {
    HardwareRegistry registry;
    registry.add(text, "fuzz");
  });
  allow_refusal([&] {
    const Calibration calibration = read_calibration(text, "fuzz");
    read_calibration(calibration_json(calibration), "again");
  });
  allow_refusal([&] { validate(text, "fuzz", nullptr); });
  return 0;
}
