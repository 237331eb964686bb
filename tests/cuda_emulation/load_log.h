// Groups the 16-byte loads of single lanes into the loads of whole warps.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <tuple>
#include <vector>

#include "cuda_emulation.h"

namespace kvfuse::emulation {

class LoadLog {
 public:
  void reset(bool record) {
    recording_ = record;
    counts_ = {};
  }

  const LoadCounts& counts() const { return counts_; }

  void add(const void* address, const CallSite& site, unsigned thread) {
    if (!recording_) return;
    Site& log = sites_[{site.file_name(), site.line(), site.column(), thread / 32}];
    const std::size_t execution = log.executions[thread % 32]++;
    if (execution == log.addresses.size()) log.addresses.emplace_back();
    log.addresses[execution].push_back(reinterpret_cast<std::uintptr_t>(address));
  }

  // The next block counts its executions anew.
  void end_block() {
    for (auto& [key, log] : sites_)
      for (std::vector<std::uintptr_t>& addresses : log.addresses) add_warp_load(key, addresses);
    sites_.clear();
  }

 private:
  using Key = std::tuple<const char*, unsigned, unsigned, unsigned>;  // file, line, column, warp
  struct Site {
    std::array<std::size_t, 32> executions{};            // by lane
    std::vector<std::vector<std::uintptr_t>> addresses;  // [execution][lanes that took part]
  };

  void add_warp_load(const Key& key, std::vector<std::uintptr_t>& addresses) {
    constexpr std::uintptr_t kBytes = sizeof(uint4);
    std::sort(addresses.begin(), addresses.end());
    std::uintptr_t end = addresses.front() + kBytes;
    for (const std::uintptr_t address : addresses)
      if (address <= end) end = address + kBytes;
    counts_.loads.push_back({.file = std::get<0>(key),
                             .line = static_cast<int>(std::get<1>(key)),
                             .first = addresses.front(),
                             .contiguous_bytes = static_cast<int>(end - addresses.front()),
                             .lanes = static_cast<int>(addresses.size()),
                             .warp = static_cast<int>(std::get<3>(key))});
    counts_.bytes += static_cast<std::int64_t>(addresses.size() * kBytes);
  }

  bool recording_ = false;
  LoadCounts counts_;
  std::map<Key, Site> sites_;  // of the running block
};

}  // namespace kvfuse::emulation
