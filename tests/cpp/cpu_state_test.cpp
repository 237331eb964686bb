// The CPU's state from a made-up /sys and /proc, and from this machine's.
#include "csrc/records/cpu_state.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "tests/cpp/temporary_folder.h"

namespace kvfuse::bench {
namespace {

using Words = std::vector<std::string>;

class CpuStateTest : public ::testing::Test {
 protected:
  void write(const std::string& path, const std::string& text) const { root_.write(path, text); }
  void write_cpu(int index, const std::string& governor, const std::string& khz) const {
    const std::string folder = "sys/devices/system/cpu/cpu" + std::to_string(index) + "/cpufreq/";
    write(folder + "scaling_governor", governor + "\n");
    write(folder + "scaling_cur_freq", khz + "\n");
    write(folder + "cpuinfo_max_freq", "3000000\n");
  }
  CpuState read() const { return read_cpu_state(root_.path()); }

  const test::TemporaryFolder root_;
};

TEST_F(CpuStateTest, ScalingClocks) {
  write_cpu(0, "performance", "2900000");
  write_cpu(1, "performance", "2800500");
  write("sys/devices/system/cpu/cpufreq/boost", "1\n");
  write("sys/devices/system/cpu/cpuidle/current_driver", "none\n");
  write("proc/cpuinfo", "processor\t: 0\ncpu MHz\t\t: 1.0\n\nprocessor\t: 1\ncpu MHz\t\t: 1.0\n");
  write("proc/loadavg", "0.75 0.50 0.25 1/100 4242\n");
  const CpuState state = read();
  EXPECT_EQ(state.governor, "performance");
  EXPECT_EQ(state.mhz_lowest, 2800.5);
  EXPECT_EQ(state.mhz_highest, 2900);
  EXPECT_EQ(state.mhz_limit, 3000);
  EXPECT_EQ(state.boost, true);
  EXPECT_EQ(state.load_average, 0.75);
  EXPECT_EQ(state.cores, 2);
  EXPECT_EQ(cpu_state_warnings(state), Words{});
  EXPECT_EQ(cpu_state_json(state).dump(),
            "{\"cpu_governor\":\"performance\",\"cpu_mhz_lowest\":2800.5,\"cpu_mhz_highest\":2900.0,"
            "\"cpu_mhz_limit\":3000.0,\"cpu_boost\":true,\"load_average\":0.75}");
}

TEST_F(CpuStateTest, AVirtualMachineTellsOnlyClockAndLoad) {
  write("proc/cpuinfo", "processor\t: 0\ncpu MHz\t\t: 2596.148\n\nprocessor\t: 1\ncpu MHz\t\t: 2000.5\n");
  write("proc/loadavg", "1.50 0 0 1/1 1\n");
  const CpuState state = read();
  EXPECT_FALSE(state.governor || state.mhz_limit || state.boost);
  EXPECT_EQ(state.mhz_lowest, 2000.5);
  EXPECT_EQ(state.mhz_highest, 2596.148);
  EXPECT_EQ(cpu_state_warnings(state),
            Words{"the load average is 1.50 on 2 cores: other programs take part of them"});
  EXPECT_TRUE(cpu_state_json(state)["cpu_governor"].is_null());
}

TEST_F(CpuStateTest, WhatMakesTimesUnrepeatable) {
  write_cpu(0, "powersave", "1000000");
  write_cpu(1, "performance", "2000000");
  write("sys/devices/system/cpu/intel_pstate/no_turbo", "1\n");
  write("proc/cpuinfo", "processor\t: 0\nprocessor\t: 1\n");
  write("proc/loadavg", "1.00 0 0 1/1 1\n");
  const CpuState state = read();
  EXPECT_EQ(state.governor, "mixed");
  EXPECT_EQ(state.boost, false);
  EXPECT_EQ(cpu_state_warnings(state),
            (Words{"the CPU's clock is scaled (governor mixed): times vary with it (hint: cpupower "
                   "frequency-set -g performance)",
                   "no CPU runs faster than 2000 of 3000 MHz: they idle or are throttled"}));
}

TEST_F(CpuStateTest, UnreadableFilesAreAbsent) {
  EXPECT_TRUE(cpu_state_warnings(read()).empty());  // nothing there at all
  write_cpu(0, "", "<unknown>");
  write("sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq", "-5\n");
  write("sys/devices/system/cpu/cpufreq/boost", "\n");
  write("proc/cpuinfo", "cpu MHz : nan\ncpu MHz\nprocessor");
  write("proc/loadavg", "inf\n");
  const CpuState state = read();
  EXPECT_FALSE(state.governor || state.mhz_lowest || state.mhz_limit || state.boost || state.load_average);
  EXPECT_EQ(state.cores, 1);
}

TEST(CpuState, ThisMachine) {
  const CpuState state = read_cpu_state();
  EXPECT_GE(state.cores, 1);
  EXPECT_TRUE(state.load_average.has_value());
}

}  // namespace
}  // namespace kvfuse::bench
