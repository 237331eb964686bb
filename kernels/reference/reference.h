// Scalar double-precision twins of the kernels: the truth that every backend is judged by.
#pragma once

#include <vector>

#include "kernels/attention.h"

namespace kvfuse::reference {

// Attention over what the cache holds, taking params.k_new only as a sign that q_len tokens were appended
// already. Returns [batch, heads, q_len, head_dim].
std::vector<double> attention(const AttentionParams& params);

// The natural logarithm of each query's sum of exp(score), [batch, heads, q_len]; -infinity where it sees no
// token.
std::vector<double> softmax_lse(const AttentionParams& params);

struct QuantizedRow {
  double scale;
  std::vector<double> codes;  // x / scale, not rounded, so that a test can allow for ties
};
QuantizedRow quantize_row(const std::vector<double>& x);

// One element of a tensor as a double.
double element(const void* data, DType dtype, std::int64_t index);

}  // namespace kvfuse::reference
