// Matrices in every number format, with the scales each needs: what a format does to given values.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "csrc/roofline/precision.h"

namespace kvfuse::roofline {

// A matrix [rows, columns] in a format.
struct EncodedMatrix {
  Precision precision = Precision::kFp16;
  std::int64_t rows = 0;
  std::int64_t columns = 0;
  std::vector<std::uint8_t> codes;  // little-endian; 4-bit formats: two a byte, the first in the low half,
                                    // rows of odd length padded
  std::vector<float> scales;        // a scale for each block of each row, as stored: float32 (INT8),
                                    // rounded to float16 (INT4) or to FP8 E4M3 (NVFP4)
  float tensor_scale = 1;           // FP8 and NVFP4

  std::int64_t stored_bytes() const;  // codes and scales
};

// Values are row-major. Throws std::invalid_argument if their number is not rows * columns, or if one is NaN
// or infinite. Zeros, and blocks of zeros, decode to zeros.
//   fp8    tensor_scale = absmax / 448; code = E4M3(x / tensor_scale)
//   int8   scale = absmax of the row / 127; codes -127...127
//   int4   scale = absmax of 128 values / 7, as float16, at most 65504; codes -7...7
//   nvfp4  tensor_scale = absmax / (6 * 448); scale = E4M3(absmax of 16 values / 6 / tensor_scale);
//          code = E2M1(x / (scale * tensor_scale))
EncodedMatrix encode(std::span<const float> values, std::int64_t rows, std::int64_t columns,
                     Precision precision);
std::vector<float> decode(const EncodedMatrix& matrix);

// What encoding and decoding does to values.
struct CodecQuality {
  double relative_rms_error = 0;  // root of the sum of squared errors over that of squared values
  double largest_error = 0;
  double signal_to_noise_db = 0;  // infinite without an error
  double bytes_per_element = 0;   // stored, the tensor's scale aside
};
CodecQuality measure_quality(std::span<const float> values, std::int64_t rows, std::int64_t columns,
                             Precision precision);

}  // namespace kvfuse::roofline
