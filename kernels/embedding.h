// The first rows of a decode step: token plus position embedding.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"
#include "kernels/weight_format.h"

namespace kvfuse {

// One token per sequence, at the position that follows the cached ones. A token or position outside its table
// gives a row of NaN. All tensors are contiguous; the tables and x start at 16-byte addresses.
struct EmbeddingParams {
  const void* token_embedding = nullptr;         // [vocab_size, width] of token_format
  const float* token_embedding_scale = nullptr;  // [vocab_size]: a value is code * scale; null: no codes
  const void* position_embedding = nullptr;      // [positions, width]
  const std::int64_t* tokens = nullptr;          // [batch]
  const std::int32_t* cache_seqlens = nullptr;   // [batch]: the position of each token
  float* x = nullptr;                            // [batch, width]
  std::int32_t* visible_seqlens = nullptr;  // [batch]: set to cache_seqlens + 1, what an attention sees after
                                            // the append; null: not wanted
  DType dtype = DType::kFloat32;            // of the tables
  WeightFormat token_format = WeightFormat::kFloat;  // not of 4 bits
  std::int64_t batch = 0;
  std::int64_t width = 0;  // a multiple of 8
  std::int64_t vocab_size = 0;
  std::int64_t positions = 0;
};

}  // namespace kvfuse
