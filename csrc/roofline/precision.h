// Number formats: what an element takes in memory, the scales that it shares included.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace kvfuse::roofline {

enum class Precision { kFp32, kFp16, kBf16, kFp8, kInt8, kInt4, kNvfp4 };
inline constexpr std::array kAllPrecisions = {Precision::kFp32, Precision::kFp16, Precision::kBf16,
                                              Precision::kFp8,  Precision::kInt8, Precision::kInt4,
                                              Precision::kNvfp4};

inline constexpr std::int64_t kWholeRow = -1;  // as a block: all values of a row share a scale

// A range of quality loss in per cent as the format's proponents quote it. csrc/roofline/block_codec measures
// what a format does to given values.
struct QuotedLoss {
  double low_pct = 0;
  double high_pct = 0;
};

struct PrecisionInfo {
  Precision precision = Precision::kFp32;
  std::string_view name;
  std::string_view description;
  double payload_bits = 32;  // an element, without scales
  std::int64_t block = 0;    // consecutive elements of a row that share a scale; 0: no scale is stored
  double scale_bits = 0;     // a scale
  std::optional<QuotedLoss> quoted_loss;  // nothing: nobody quoted one

  // Of an element in rows of whole blocks. Of a whole row's scale it counts nothing.
  double bytes_per_element() const {
    return (payload_bits + (block > 0 ? scale_bits / static_cast<double>(block) : 0.0)) / 8;
  }
};

const PrecisionInfo& precision_info(Precision precision);
std::string_view precision_name(Precision precision);
std::vector<std::string> precision_names();

// By its name or another usual one ("float16", "e4m3", "fp8_e4m3"), in any case. An unknown one throws
// std::invalid_argument that lists the names and the nearest.
Precision parse_precision(std::string_view name);

// What is counted of a quantised matrix.
enum class Accounting {
  kComplete,    // payload and scales
  kPayloadOnly  // as the published tables do: 0.5 bytes for any 4-bit format
};

// A matrix of [rows, columns], with a scale for each block of a row, the last of which may be shorter. Not
// counted: the one float that scales a whole NVFP4 or FP8 tensor, and the half byte that fills up a row of an
// odd number of 4-bit codes.
double matrix_bytes(Precision precision, double rows, std::int64_t columns,
                    Accounting accounting = Accounting::kComplete);

// What activations are kept in beside weights of `weights`: 16 bits, or more if the weights have more.
Precision activation_precision(Precision weights);

}  // namespace kvfuse::roofline
