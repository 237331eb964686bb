// Rows of x in groups that share a weight in a register.
#pragma once

#include <cstdint>
#include <type_traits>

namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE {

// As few groups as may be, of `most` rows at most; their numbers differ by one at most.
struct RowGroups {
  std::int64_t rows = 0;
  int most = 1;
  std::int64_t count = (rows + most - 1) / most;

  std::int64_t begin(std::int64_t group) const { return rows * group / count; }
  std::int64_t size(std::int64_t group) const { return begin(group + 1) - begin(group); }
  std::int64_t group_of(std::int64_t row) const { return ((row + 1) * count - 1) / rows; }
};

// Calls f with a constant: `rows`, within [kLeast, kMost].
template <int kMost, int kLeast = 1, typename F>
void with_rows(std::int64_t rows, F&& f) {
  if constexpr (kMost > kLeast) {
    if (rows < kMost) return with_rows<kMost - 1, kLeast>(rows, f);
  }
  f(std::integral_constant<int, kMost>{});
}

}  // namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE
