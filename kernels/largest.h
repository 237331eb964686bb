// The largest value of each row and where it stands: what greedy choices among logits need.
#pragma once

#include <cstdint>

namespace kvfuse {

struct LargestParams {
  const float* rows = nullptr;    // [row_count, row_size], contiguous
  float* largest = nullptr;       // [row_count]; NaN where a row holds a NaN or +infinity
  std::int64_t* index = nullptr;  // [row_count]: its first place; where it is NaN any
  std::int64_t row_count = 0;
  std::int64_t row_size = 0;  // at least 1
};

namespace cpu {
void find_largest(const LargestParams& params);
}

}  // namespace kvfuse
