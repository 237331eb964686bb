// How the weight matrix [out, in] of a linear layer is kept in memory.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/dtype.h"

namespace kvfuse {

// A weight is code * scale.
enum class WeightFormat : std::uint8_t {
  kFloat,        // no codes: of the dtype of the layer's other parameters
  kFloatPanels,  // the same weights in the order in which products of several rows read them (below)
  kInt8Rows,     // int8 codes [out, in] in [-127, 127], float32 scales [out]
  kInt4Groups,   // 4-bit codes [out, in / 2 bytes], float16 scales [out, in / 32]
};

constexpr bool has_codes(WeightFormat format) {
  return format == WeightFormat::kInt8Rows || format == WeightFormat::kInt4Groups;
}

// So many outputs lie side by side: [in, kFloatPanelOutputs] of the first ones, then of the next; the last
// panel is as wide as outputs are left, so all of them take the room of the matrix.
inline constexpr std::int64_t kFloatPanelOutputs = 16;

// Where the weights of one output lie in panels: element i at begin + i * stride.
struct PanelRow {
  std::int64_t begin, stride;
};
constexpr PanelRow panel_row(std::int64_t out_size, std::int64_t in, std::int64_t output) {
  const std::int64_t first = output / kFloatPanelOutputs * kFloatPanelOutputs;
  return {first * in + output - first, std::min(kFloatPanelOutputs, out_size - first)};
}

// The inputs that share a scale. `in` is a multiple of it.
inline constexpr std::int64_t kInt4Group = 32;
// 4-bit codes are in [-8, 7], and the scale of a group may have either sign. Byte m of the 16 of a group
// holds the codes of inputs m (its low half) and 16 + m (its high half), each plus 8.
inline constexpr std::int64_t kInt4GroupBytes = 16;

inline int int4_code(const std::uint8_t* group, int input) {
  return (group[input % 16] >> (input / 16 * 4) & 15) - 8;
}

// Of one row of the matrix; `dtype` is that of weights without codes.
constexpr std::int64_t weight_row_bytes(WeightFormat format, DType dtype, std::int64_t in) {
  if (format == WeightFormat::kInt4Groups) return in / kInt4Group * kInt4GroupBytes;
  return in * element_bytes(format == WeightFormat::kInt8Rows ? DType::kInt8 : dtype);
}
constexpr std::int64_t scale_row_bytes(WeightFormat format, std::int64_t in) {
  if (format == WeightFormat::kInt4Groups) return in / kInt4Group * element_bytes(DType::kFloat16);
  return format == WeightFormat::kInt8Rows ? element_bytes(DType::kFloat32) : 0;
}

}  // namespace kvfuse
