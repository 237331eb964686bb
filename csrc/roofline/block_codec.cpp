#include "csrc/roofline/block_codec.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>

#include "csrc/roofline/check.h"
#include "csrc/roofline/float_codec.h"

namespace kvfuse::roofline {
namespace {

constexpr float kInt8Max = 127;  // -128 is not used: codes are symmetric
constexpr float kInt4Max = 7;
constexpr float kHalfMax = 65504;

bool half_byte(Precision precision) {
  return precision == Precision::kInt4 || precision == Precision::kNvfp4;
}

std::int64_t row_bytes(Precision precision, std::int64_t columns) {
  if (half_byte(precision)) return (columns + 1) / 2;
  return columns * static_cast<std::int64_t>(precision_info(precision).payload_bits) / 8;
}

std::int64_t block_columns(const EncodedMatrix& matrix) {
  const std::int64_t block = precision_info(matrix.precision).block;
  return block == kWholeRow ? std::max<std::int64_t>(matrix.columns, 1) : block;
}

float absmax(std::span<const float> values) {
  float most = 0;
  for (const float value : values) most = std::max(most, std::fabs(value));
  return most;
}

void check_values(std::span<const float> values, std::int64_t rows, std::int64_t columns) {
  constexpr std::int64_t kMost = std::int64_t{1} << 31;
  check_range("rows", rows, 0, kMost);
  check_range("columns", columns, 0, kMost);
  if (static_cast<std::int64_t>(values.size()) != rows * columns)
    throw std::invalid_argument(
        "roofline: encode: expected rows * columns = " + std::to_string(rows * columns) + " values, got " +
        std::to_string(values.size()));
  for (std::size_t i = 0; i < values.size(); ++i)
    if (!std::isfinite(values[i]))
      throw std::invalid_argument("roofline: encode: expected finite values, got " + number_text(values[i]) +
                                  " at index " + std::to_string(i));
}

// Integer formats: the code of value / scale; 0 if the scale is.
std::uint8_t integer_code(float value, float scale, float most) {
  if (scale == 0) return 0;
  const float code = std::clamp(std::nearbyint(value / scale), -most, most);
  return static_cast<std::uint8_t>(static_cast<std::int8_t>(code));
}

// The scale of a block as it is stored.
float block_scale(const EncodedMatrix& matrix, std::span<const float> block) {
  const float most = absmax(block);
  switch (matrix.precision) {
    case Precision::kInt8:
      return most / kInt8Max;
    case Precision::kInt4:
      return fp16_decode(fp16_encode(std::min(most / kInt4Max, kHalfMax)));
    case Precision::kNvfp4:
      return matrix.tensor_scale == 0 ? 0 : e4m3_decode(e4m3_encode(most / kE2m1Max / matrix.tensor_scale));
    default:
      return 1;
  }
}

void put(EncodedMatrix& matrix, std::int64_t row, std::int64_t column, float value, float scale) {
  std::uint8_t* codes = matrix.codes.data() + row * row_bytes(matrix.precision, matrix.columns);
  const auto put_two = [&](std::uint16_t code) {
    codes[2 * column] = static_cast<std::uint8_t>(code);
    codes[2 * column + 1] = static_cast<std::uint8_t>(code >> 8);
  };
  const auto put_half = [&](std::uint8_t code) {
    codes[column / 2] |= static_cast<std::uint8_t>((code & 0xf) << (column % 2 == 0 ? 0 : 4));
  };
  switch (matrix.precision) {
    case Precision::kFp32: {
      const auto bits = std::bit_cast<std::uint32_t>(value);
      for (int i = 0; i < 4; ++i) codes[4 * column + i] = static_cast<std::uint8_t>(bits >> (8 * i));
      break;
    }
    case Precision::kFp16:
      put_two(fp16_encode(value));
      break;
    case Precision::kBf16:
      put_two(bf16_encode(value));
      break;
    case Precision::kFp8:
      codes[column] = matrix.tensor_scale == 0 ? 0 : e4m3_encode(value / matrix.tensor_scale);
      break;
    case Precision::kInt8:
      codes[column] = integer_code(value, scale, kInt8Max);
      break;
    case Precision::kInt4:
      put_half(integer_code(value, scale, kInt4Max));
      break;
    case Precision::kNvfp4: {
      const float step = scale * matrix.tensor_scale;
      put_half(step == 0 ? 0 : e2m1_encode(value / step));
      break;
    }
  }
}

float get(const EncodedMatrix& matrix, std::int64_t row, std::int64_t column, float scale) {
  const std::uint8_t* codes = matrix.codes.data() + row * row_bytes(matrix.precision, matrix.columns);
  const auto two = [&] { return static_cast<std::uint16_t>(codes[2 * column] | codes[2 * column + 1] << 8); };
  const auto half = [&] { return (codes[column / 2] >> (column % 2 == 0 ? 0 : 4)) & 0xf; };
  switch (matrix.precision) {
    case Precision::kFp32: {
      std::uint32_t bits = 0;
      for (int i = 0; i < 4; ++i) bits |= static_cast<std::uint32_t>(codes[4 * column + i]) << (8 * i);
      return std::bit_cast<float>(bits);
    }
    case Precision::kFp16:
      return fp16_decode(two());
    case Precision::kBf16:
      return bf16_decode(two());
    case Precision::kFp8:
      return e4m3_decode(codes[column]) * matrix.tensor_scale;
    case Precision::kInt8:
      return static_cast<float>(static_cast<std::int8_t>(codes[column])) * scale;
    case Precision::kInt4: {
      const int code = half();
      return static_cast<float>(code >= 8 ? code - 16 : code) * scale;
    }
    case Precision::kNvfp4:
      return e2m1_decode(static_cast<std::uint8_t>(half())) * (scale * matrix.tensor_scale);
  }
  return 0;
}

float tensor_scale(std::span<const float> values, Precision precision) {
  if (precision == Precision::kFp8) return absmax(values) / kE4m3Max;
  if (precision == Precision::kNvfp4) return absmax(values) / (kE2m1Max * kE4m3Max);
  return 1;
}

// Calls f(row, first column, last column, index of the block) for every block; formats without scales have
// one block a row, with index -1.
template <typename F>
void for_each_block(const EncodedMatrix& matrix, F&& f) {
  const std::int64_t block = block_columns(matrix);
  std::int64_t index = 0;
  for (std::int64_t row = 0; row < matrix.rows; ++row) {
    if (block == 0) {
      f(row, std::int64_t{0}, matrix.columns, std::int64_t{-1});
      continue;
    }
    for (std::int64_t first = 0; first < matrix.columns; first += block)
      f(row, first, std::min(first + block, matrix.columns), index++);
  }
}

}  // namespace

std::int64_t EncodedMatrix::stored_bytes() const {
  const double scale_bits = precision_info(precision).scale_bits;
  return static_cast<std::int64_t>(codes.size()) +
         static_cast<std::int64_t>(static_cast<double>(scales.size()) * scale_bits / 8);
}

EncodedMatrix encode(std::span<const float> values, std::int64_t rows, std::int64_t columns,
                     Precision precision) {
  check_values(values, rows, columns);
  EncodedMatrix matrix{.precision = precision,
                       .rows = rows,
                       .columns = columns,
                       .codes = {},
                       .scales = {},
                       .tensor_scale = tensor_scale(values, precision)};
  matrix.codes.resize(static_cast<std::size_t>(rows * row_bytes(precision, columns)));
  for_each_block(matrix, [&](std::int64_t row, std::int64_t first, std::int64_t last, std::int64_t index) {
    const std::span<const float> block = values.subspan(static_cast<std::size_t>(row * columns + first),
                                                        static_cast<std::size_t>(last - first));
    const float scale = index < 0 ? 1 : block_scale(matrix, block);
    if (index >= 0) matrix.scales.push_back(scale);
    for (std::int64_t column = first; column < last; ++column)
      put(matrix, row, column, block[static_cast<std::size_t>(column - first)], scale);
  });
  return matrix;
}

std::vector<float> decode(const EncodedMatrix& matrix) {
  std::vector<float> values(static_cast<std::size_t>(matrix.rows * matrix.columns));
  for_each_block(matrix, [&](std::int64_t row, std::int64_t first, std::int64_t last, std::int64_t index) {
    const float scale = index < 0 ? 1 : matrix.scales[static_cast<std::size_t>(index)];
    for (std::int64_t column = first; column < last; ++column)
      values[static_cast<std::size_t>(row * matrix.columns + column)] = get(matrix, row, column, scale);
  });
  return values;
}

CodecQuality measure_quality(std::span<const float> values, std::int64_t rows, std::int64_t columns,
                             Precision precision) {
  const EncodedMatrix matrix = encode(values, rows, columns, precision);
  const std::vector<float> decoded = decode(matrix);
  double squared_error = 0;
  double squared_value = 0;
  CodecQuality quality;
  for (std::size_t i = 0; i < values.size(); ++i) {
    const double error = static_cast<double>(decoded[i]) - static_cast<double>(values[i]);
    squared_error += error * error;
    squared_value += static_cast<double>(values[i]) * static_cast<double>(values[i]);
    quality.largest_error = std::max(quality.largest_error, std::fabs(error));
  }
  quality.relative_rms_error = squared_error == 0 ? 0 : std::sqrt(squared_error / squared_value);
  quality.signal_to_noise_db = squared_error == 0 ? std::numeric_limits<double>::infinity()
                                                  : 10 * std::log10(squared_value / squared_error);
  if (!values.empty())
    quality.bytes_per_element =
        static_cast<double>(matrix.stored_bytes()) / static_cast<double>(values.size());
  return quality;
}

}  // namespace kvfuse::roofline
