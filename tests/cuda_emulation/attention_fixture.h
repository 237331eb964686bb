// What the emulated attention tests share: the tensors of one call (those of the CPU tests), the errors
// allowed, and the comparison with the double-precision twin.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "tests/cpp/attention_fixture.h"

namespace kvfuse::test {

// Largest error allowed, in units of the largest value. Scores reach 100 here, so the rounding of a float32
// score and of its exponential moves a probability by some 1e-5; for 16-bit results half a unit in the last
// place on top. Over an int8 cache the query is rounded to 16 bits; the weights of V, and their products with
// four tokens as they are added up, to the 11 bits of a half: five times 2^-12.
inline double tolerance(DType out, DType cache) {
  const double arithmetic = cache == DType::kInt8 ? 5 * 0x1p-12 : 3e-5;
  switch (out) {
    case DType::kBFloat16:
      return arithmetic + 4e-3;
    case DType::kFloat16:
      return arithmetic + 5e-4;
    default:
      return arithmetic;
  }
}

inline std::string describe(const Case& c) {
  std::string lengths;
  for (const std::int32_t length : c.lengths)
    lengths += (lengths.empty() ? "" : ", ") + std::to_string(length);
  return std::string(dtype_name(c.query_dtype)) + " query, " + dtype_name(c.cache_dtype) +
         " cache, lengths " + lengths + ", q_len " + std::to_string(c.q_len) + ", kv_heads " +
         std::to_string(c.kv_heads) + ", group " + std::to_string(c.group) + ", head_dim " +
         std::to_string(c.head_dim) + (c.append ? "" : ", attend only");
}

// The largest |got - want| in units of the largest |want|; infinity when any of them is NaN.
inline double relative_error(const std::vector<double>& got, const std::vector<double>& want) {
  double most = 0.0;
  double error = got.size() == want.size() ? 0.0 : INFINITY;
  for (const double value : want) most = std::max(most, std::fabs(value));
  for (std::size_t i = 0; i < want.size() && error < INFINITY; ++i) {
    const double difference = std::fabs(got[i] - want[i]);
    if (difference != 0.0) error = difference < INFINITY ? std::max(error, difference / most) : INFINITY;
  }
  return error;
}

}  // namespace kvfuse::test
