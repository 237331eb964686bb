// Tests that run on every instruction set of this machine.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "kernels/cpu/isa.h"

namespace kvfuse::test {

// The kernels are those of the parameter; skipped if the machine lacks it.
class OnIsa : public testing::TestWithParam<cpu::Isa> {
 protected:
  void SetUp() override {
    const auto& available = cpu::available_isas();
    if (std::find(available.begin(), available.end(), GetParam()) == available.end())
      GTEST_SKIP() << "this machine lacks " << cpu::isa_name(GetParam());
    cpu::set_active_isa(GetParam());
  }
  void TearDown() override { cpu::set_active_isa(cpu::available_isas().back()); }
};

// Until it ends the kernels fetch as they do on CPUs that Intel made, or on others.
class Maker {
 public:
  explicit Maker(bool intel) : own_(cpu::is_intel()) { cpu::set_intel(intel); }
  Maker(const Maker&) = delete;
  Maker& operator=(const Maker&) = delete;
  ~Maker() { cpu::set_intel(own_); }

 private:
  bool own_;
};

// For INSTANTIATE_TEST_SUITE_P.
inline auto every_isa() {
  using cpu::Isa;
  return testing::Values(Isa::kPortable, Isa::kAvx2, Isa::kAvx2Vnni, Isa::kAvx512, Isa::kAvx512Vnni,
                         Isa::kAmxInt8);
}
inline std::string isa_of(const testing::TestParamInfo<cpu::Isa>& info) { return cpu::isa_name(info.param); }

}  // namespace kvfuse::test
