#include "kernels/reference/reference.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace kvfuse::reference {
namespace {

double cache_element(const CacheView& cache, const void* data, const float* scale, std::int64_t row,
                     std::int64_t d) {
  const double value = element(data, cache.dtype, row * cache.head_dim + d);
  return scale == nullptr ? value : value * static_cast<double>(scale[row]);
}

// Softmax of the scores in place; an empty or fully hidden list stays empty.
void softmax(std::vector<double>& scores) {
  if (scores.empty()) return;
  const double most = *std::max_element(scores.begin(), scores.end());
  double sum = 0.0;
  for (double& score : scores) sum += score = std::exp(score - most);
  for (double& score : scores) score /= sum;
}

// Calls f for each query, in the order of [batch, heads, q_len], with the first cache row of its head and its
// scores with the tokens that it sees.
template <class F>
void each_query(const AttentionParams& p, const F& f) {
  const CacheView& cache = p.cache;
  for (std::int64_t b = 0; b < cache.batch; ++b)
    for (std::int64_t h = 0; h < p.heads; ++h)
      for (std::int64_t t = 0; t < p.q_len; ++t) {
        const std::int64_t total = p.cache_seqlens[b] + (p.k_new.data != nullptr ? p.q_len : 0);
        const std::int64_t visible = std::max<std::int64_t>(0, total - p.q_len + t + 1);
        const std::int64_t first_row = (b * cache.kv_heads + h / (p.heads / cache.kv_heads)) * cache.capacity;
        std::vector<double> scores;
        for (std::int64_t i = 0; i < visible; ++i) {
          double dot = 0.0;
          for (std::int64_t d = 0; d < cache.head_dim; ++d)
            dot += element(p.q.data, p.q.dtype,
                           b * p.q.batch_stride + h * p.q.head_stride + t * p.q.token_stride + d) *
                   cache_element(cache, cache.k, cache.k_scale, first_row + i, d);
          scores.push_back(dot * static_cast<double>(p.softmax_scale));
        }
        f(first_row, scores);
      }
}

}  // namespace

double element(const void* data, DType dtype, std::int64_t index) {
  if (dtype == DType::kFloat32) return static_cast<const float*>(data)[index];
  if (dtype == DType::kInt8) return static_cast<const std::int8_t*>(data)[index];
  const int bits = static_cast<const std::uint16_t*>(data)[index];
  const int fraction_bits = dtype == DType::kFloat16 ? 10 : 7;
  const int exponent_bits = 15 - fraction_bits;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int fraction = bits & ((1 << fraction_bits) - 1);
  const int exponent = (bits >> fraction_bits) & ((1 << exponent_bits) - 1);
  const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == (1 << exponent_bits) - 1)
    return fraction != 0 ? std::numeric_limits<double>::quiet_NaN()
                         : sign * std::numeric_limits<double>::infinity();
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias - fraction_bits);
  return sign * std::ldexp(fraction + (1 << fraction_bits), exponent - bias - fraction_bits);
}

std::vector<double> attention(const AttentionParams& p) {
  const CacheView& cache = p.cache;
  std::vector<double> out;
  each_query(p, [&](std::int64_t first_row, const std::vector<double>& scores) {
    std::vector<double> weights = scores;
    softmax(weights);
    for (std::int64_t d = 0; d < cache.head_dim; ++d) {
      double sum = 0.0;
      for (std::size_t i = 0; i < weights.size(); ++i)
        sum += weights[i] *
               cache_element(cache, cache.v, cache.v_scale, first_row + static_cast<std::int64_t>(i), d);
      out.push_back(sum);
    }
  });
  return out;
}

std::vector<double> softmax_lse(const AttentionParams& p) {
  std::vector<double> out;
  each_query(p, [&](std::int64_t, const std::vector<double>& scores) {
    const double most = scores.empty() ? 0.0 : *std::max_element(scores.begin(), scores.end());
    double sum = 0.0;
    for (const double score : scores) sum += std::exp(score - most);
    out.push_back(most + std::log(sum));
  });
  return out;
}

QuantizedRow quantize_row(const std::vector<double>& x) {
  double absmax = 0.0;
  for (const double value : x) absmax = std::max(absmax, std::fabs(value));
  QuantizedRow row{absmax / 127.0, {}};
  for (const double value : x) row.codes.push_back(absmax == 0.0 ? 0.0 : value / row.scale);
  return row;
}

}  // namespace kvfuse::reference
