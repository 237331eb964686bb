// How the weight matrix [out, in] of a linear layer is kept in memory.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "kernels/dtype.h"

namespace kvfuse {

// A weight is code * scale.
enum class WeightFormat : std::uint8_t {
  kFloat,        // no codes: of the dtype of the layer's other parameters
  kFloatPanels,  // the same weights in the order in which products of several rows read them (below)
  kInt8Rows,     // int8 codes [out, in] in [-127, 127], float32 scales [out]
  kInt8Panels,   // the same in panels (below), each code plus 128
  kInt4Groups,   // 4-bit codes [out, in / 2 bytes], float16 scales [out, in / 32]
  kInt4Panels,   // the same in panels (below), the scales as well
};

constexpr bool has_codes(WeightFormat format) {
  return format != WeightFormat::kFloat && format != WeightFormat::kFloatPanels;
}

constexpr bool has_int8_codes(WeightFormat format) {
  return format == WeightFormat::kInt8Rows || format == WeightFormat::kInt8Panels;
}

constexpr bool has_int4_codes(WeightFormat format) {
  return format == WeightFormat::kInt4Groups || format == WeightFormat::kInt4Panels;
}

constexpr bool lies_in_panels(WeightFormat format) {
  return format == WeightFormat::kFloatPanels || format == WeightFormat::kInt8Panels ||
         format == WeightFormat::kInt4Panels;
}

// So many outputs lie side by side: [in, kPanelOutputs] of the first ones, then of the next; the last panel
// is as wide as outputs are left, so all of them take the room of the matrix.
inline constexpr std::int64_t kPanelOutputs = 16;
// Of int8 codes so many inputs of an output stay together: [in / kQuadInputs, kPanelOutputs, kQuadInputs].
// `in` is a multiple of it. Of 4-bit codes so many bytes.
inline constexpr std::int64_t kQuadInputs = 4;
// Added to each int8 code, modulo 256, which flips its highest bit.
inline constexpr std::uint8_t kPackedZero = 128;

// Where the weights of one output lie, in elements of the weight, of 4-bit codes in bytes.
struct WeightRow {
  std::int64_t begin;
  std::int64_t stride;    // from 2^together elements to the next ones
  int together = 0;       // a logarithm
  std::uint8_t zero = 0;  // flips the bits by which codes in panels differ

  constexpr std::int64_t at(std::int64_t i) const {
    return begin + (i >> together) * stride + (i & ((std::int64_t{1} << together) - 1));
  }
};
constexpr WeightRow weight_row(WeightFormat format, std::int64_t out_size, std::int64_t in,
                               std::int64_t output) {
  const std::int64_t elements = has_int4_codes(format) ? in / 2 : in;
  if (!lies_in_panels(format)) return {output * elements, 1};
  const std::int64_t first = output / kPanelOutputs * kPanelOutputs;
  const std::int64_t width = std::min(kPanelOutputs, out_size - first);
  if (format == WeightFormat::kFloatPanels) return {first * elements + output - first, width};
  return {first * elements + (output - first) * kQuadInputs, width * kQuadInputs,
          std::countr_zero(static_cast<unsigned>(kQuadInputs)),
          format == WeightFormat::kInt8Panels ? kPackedZero : std::uint8_t{0}};
}

// The inputs that share a scale. `in` is a multiple of it.
inline constexpr std::int64_t kInt4Group = 32;
// 4-bit codes are in [-8, 7], and the scale of a group may have either sign. Byte m of the 16 of a group
// holds the codes of inputs m (its low half) and 16 + m (its high half), each plus 8. In panels scales lie as
// floats do, [in / kInt4Group, kPanelOutputs].
inline constexpr std::int64_t kInt4GroupBytes = 16;

inline int int4_code(const std::uint8_t* group, int input) {
  return (group[input % 16] >> (input / 16 * 4) & 15) - 8;
}

// Of one row of the matrix; `dtype` is that of weights without codes.
constexpr std::int64_t weight_row_bytes(WeightFormat format, DType dtype, std::int64_t in) {
  if (has_int4_codes(format)) return in / kInt4Group * kInt4GroupBytes;
  return in * element_bytes(has_int8_codes(format) ? DType::kInt8 : dtype);
}
constexpr std::int64_t scale_row_bytes(WeightFormat format, std::int64_t in) {
  if (has_int4_codes(format)) return in / kInt4Group * element_bytes(DType::kFloat16);
  return has_int8_codes(format) ? element_bytes(DType::kFloat32) : 0;
}

}  // namespace kvfuse
