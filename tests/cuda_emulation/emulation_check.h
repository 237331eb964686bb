// What the tests of the emulator share: launches that must run, and launches that must fail.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "cuda_emulation.h"

namespace kvfuse::emulation {

using Body = std::function<void()>;  // of every thread of the launch

constexpr unsigned kThreads = 128;

inline void expect_runs(unsigned blocks, unsigned threads, std::size_t shared_bytes, const Body& body) {
  ASSERT_EQ(run_grid(blocks, threads, shared_bytes, body), cudaSuccess) << last_error();
  EXPECT_EQ(last_error(), "");
}

// One block must fail for every seed, with a sentence that has all `parts`, and leave the emulator fit for
// more.
inline void expect_failure(const Body& body, std::size_t shared_bytes,
                           const std::vector<std::string>& parts) {
  for (std::uint64_t seed = 0; seed < 6; ++seed) {
    set_options({seed});
    ASSERT_EQ(run_grid(1, kThreads, shared_bytes, body), cudaErrorLaunchFailure) << "seed " << seed;
    for (const std::string& part : parts)
      EXPECT_NE(last_error().find(part), std::string::npos) << last_error() << " lacks " << part;
    unsigned ran = 0;
    expect_runs(1, kThreads, 0, [&] {
      meet_block("barrier", CallSite::current(), false);
      ++ran;
    });
    EXPECT_EQ(ran, kThreads);
  }
}

}  // namespace kvfuse::emulation
