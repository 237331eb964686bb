// What the emulated tests of prefill attention demand of a call: its error, the bits of the cache, the same
// bits under every schedule.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/cuda/attention.h"
#include "tests/cpp/tensors.h"
#include "tests/cuda_emulation/attention_fixture.h"

namespace kvfuse::test {

// The attention of the twin with |V| in place of V: what the errors of the weights scale with.
inline std::vector<double> attention_to_magnitudes(AttentionParams p) {
  const std::int64_t count = p.cache.batch * p.cache.kv_heads * p.cache.capacity * p.cache.head_dim;
  const char* v = static_cast<const char*>(p.cache.v);
  std::vector<char> magnitudes(v, v + count * element_bytes(p.cache.dtype));
  const std::int64_t bytes = element_bytes(p.cache.dtype);
  for (std::int64_t i = 0; i < count; ++i) {
    char& top = magnitudes[static_cast<std::size_t>(i * bytes + bytes - 1)];
    if (p.cache.dtype == DType::kInt8)
      top = static_cast<char>(std::abs(static_cast<std::int8_t>(top)));
    else
      top = static_cast<char>(top & 0x7f);
  }
  p.cache.v = magnitudes.data();
  return reference::attention(p);
}

inline double cached_value(const CacheView& cache, const void* data, const float* scale, std::int64_t row,
                           std::int64_t d) {
  const double value = reference::element(data, cache.dtype, row * cache.head_dim + d);
  return scale == nullptr ? value : value * static_cast<double>(scale[row]);
}

// For each channel the largest |x| of the first `rows` rows from `first` on.
inline std::vector<double> channel_maxima(const CacheView& cache, const void* data, const float* scale,
                                          std::int64_t first, std::int64_t rows) {
  std::vector<double> most(static_cast<std::size_t>(cache.head_dim), 0.0);
  for (std::int64_t row = first; row < first + rows; ++row)
    for (std::int64_t d = 0; d < cache.head_dim; ++d) {
      double& channel = most[static_cast<std::size_t>(d)];
      channel = std::max(channel, std::fabs(cached_value(cache, data, scale, row, d)));
    }
  return most;
}

// Error allowed of each element of the result, from first principles: weights and result are rounded to the
// query's dtype; a score, a sum of products in float32 or in three of tf32, is off by some units of the
// largest such sum, and so is the weight, relatively. What is small for the type underflows.
inline std::vector<double> errors_allowed(const AttentionParams& p) {
  std::vector<double> allowed = attention_to_magnitudes(p);
  const CacheView& cache = p.cache;
  const double rounding = 2.0 * rounding_of(p.q.dtype) + 0x1p-20;
  std::size_t next = 0;
  for (std::int64_t b = 0; b < cache.batch; ++b)
    for (std::int64_t h = 0; h < p.heads; ++h) {
      const std::int64_t first_row = (b * cache.kv_heads + h / (p.heads / cache.kv_heads)) * cache.capacity;
      const std::int64_t total = p.cache_seqlens[b] + (p.k_new.data != nullptr ? p.q_len : 0);
      const std::vector<double> k = channel_maxima(cache, cache.k, cache.k_scale, first_row, total);
      std::vector<double> v(k.size(), 0.0);
      for (std::int64_t t = 0; t < p.q_len; ++t) {
        const std::int64_t visible = std::max<std::int64_t>(0, total - p.q_len + t + 1);
        const bool more = t > 0 && visible > 1;  // one more token than the query before
        const std::vector<double> newest = channel_maxima(
            cache, cache.v, cache.v_scale, more ? first_row + visible - 1 : first_row, more ? 1 : visible);
        double largest_score = 0.0;
        double v_most = 0.0;
        for (std::int64_t d = 0; d < cache.head_dim; ++d) {
          const std::size_t i = static_cast<std::size_t>(d);
          v[i] = std::max(v[i], newest[i]);
          v_most = std::max(v_most, v[i]);
          const std::int64_t at = b * p.q.batch_stride + h * p.q.head_stride + t * p.q.token_stride + d;
          largest_score += std::fabs(reference::element(p.q.data, p.q.dtype, at)) * k[i] *
                           std::fabs(static_cast<double>(p.softmax_scale));
        }
        const double underflow = (p.q.dtype == DType::kFloat16 ? 0x1p-25 : 0x1p-110) *
                                 (1.0 + v_most * static_cast<double>(visible));
        for (std::int64_t d = 0; d < cache.head_dim; ++d, ++next)
          allowed[next] = allowed[next] * (rounding + largest_score * 0x1p-20) + underflow;
      }
    }
  return allowed;
}

// Element (b, h, t, d) of a view in row-major order.
inline std::vector<double> elements(const MutableTokenView& view, std::int64_t batch, std::int64_t heads,
                                    std::int64_t tokens, std::int64_t head_dim) {
  std::vector<double> values;
  for (std::int64_t b = 0; b < batch; ++b)
    for (std::int64_t h = 0; h < heads; ++h)
      for (std::int64_t t = 0; t < tokens; ++t)
        for (std::int64_t d = 0; d < head_dim; ++d)
          values.push_back(
              reference::element(view.data, view.dtype,
                                 b * view.batch_stride + h * view.head_stride + t * view.token_stride + d));
  return values;
}

inline std::vector<double> result_of(const AttentionParams& p) {
  return elements(p.out, p.cache.batch, p.heads, p.q_len, p.cache.head_dim);
}

inline std::vector<double> new_rows(const ConstTokenView& view, const AttentionParams& p) {
  return elements(
      {const_cast<void*>(view.data), view.dtype, view.batch_stride, view.head_stride, view.token_stride},
      p.cache.batch, p.cache.kv_heads, p.q_len, p.cache.head_dim);
}

// How far the result is from the twin's, in units of what is allowed. NaN counts as infinitely far.
inline double error_in_units(const AttentionParams& p) {
  const std::vector<double> got = result_of(p);
  const std::vector<double> want = reference::attention(p);
  const std::vector<double> allowed = errors_allowed(p);
  double most = 0.0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    const double error = std::fabs(got[i] - want[i]);
    if (error == 0.0) continue;
    const double units = error / allowed[i];
    most = units <= DBL_MAX ? std::max(most, units) : INFINITY;
  }
  return most;
}

struct CacheBytes {
  std::vector<char> rows[2];  // K, V
  std::vector<float> scales[2];
};

inline CacheBytes copy_cache(const CacheView& cache) {
  CacheBytes copy;
  const std::int64_t rows = cache.batch * cache.kv_heads * cache.capacity;
  const void* const data[2] = {cache.k, cache.v};
  const float* const scales[2] = {cache.k_scale, cache.v_scale};
  for (int side = 0; side < 2; ++side) {
    const char* bytes = static_cast<const char*>(data[side]);
    copy.rows[side].assign(bytes, bytes + rows * cache.head_dim * element_bytes(cache.dtype));
    if (scales[side] != nullptr) copy.scales[side].assign(scales[side], scales[side] + rows);
  }
  return copy;
}

inline bool same_bits(const CacheBytes& a, const CacheBytes& b) {
  for (int side = 0; side < 2; ++side) {
    if (a.rows[side] != b.rows[side] || a.scales[side].size() != b.scales[side].size()) return false;
    for (std::size_t row = 0; row < a.scales[side].size(); ++row)  // NaN equals NaN here
      if (std::bit_cast<std::uint32_t>(a.scales[side][row]) !=
          std::bit_cast<std::uint32_t>(b.scales[side][row]))
        return false;
  }
  return true;
}

// Puts a new row where the call is to put it, as docs/numerics.md has it: bit by bit.
inline void append_row(const std::vector<double>& x, DType dtype, std::size_t row, std::vector<char>& rows,
                       std::vector<float>& scales) {
  const std::size_t first = row * x.size();
  if (dtype != DType::kInt8) {
    for (std::size_t d = 0; d < x.size(); ++d) write(rows, dtype, first + d, static_cast<float>(x[d]));
    return;
  }
  float absmax = 0.0F;
  bool finite = true;
  for (const double value : x) {
    absmax = std::max(absmax, static_cast<float>(std::fabs(value)));
    finite = finite && std::isfinite(value);
  }
  const float scale = finite ? absmax / 127.0F : kNan;
  scales[row] = scale;
  for (std::size_t d = 0; d < x.size(); ++d) {
    const float code = scale > 0.0F ? std::nearbyint(static_cast<float>(x[d]) / scale) : 0.0F;
    rows[first + d] = static_cast<char>(std::clamp(code, -127.0F, 127.0F));
  }
}

// What the cache must hold after the call: the new rows, and otherwise what it held `before`.
inline CacheBytes appended(const CacheBytes& before, const AttentionParams& p) {
  CacheBytes cache = before;
  if (p.k_new.data == nullptr) return cache;
  const std::size_t width = static_cast<std::size_t>(p.cache.head_dim);
  const std::vector<double> rows[2] = {new_rows(p.k_new, p), new_rows(p.v_new, p)};
  for (int side = 0; side < 2; ++side) {
    auto next = rows[side].begin();
    for (std::int64_t b = 0; b < p.cache.batch; ++b)
      for (std::int64_t h = 0; h < p.cache.kv_heads; ++h)
        for (std::int64_t t = 0; t < p.q_len; ++t, next += p.cache.head_dim) {
          if (p.cache_seqlens[b] < 0 || p.cache_seqlens[b] + p.q_len > p.cache.capacity) continue;
          const std::int64_t row = (b * p.cache.kv_heads + h) * p.cache.capacity + p.cache_seqlens[b] + t;
          append_row({next, next + static_cast<std::ptrdiff_t>(width)}, p.cache.dtype,
                     static_cast<std::size_t>(row), cache.rows[side], cache.scales[side]);
        }
  }
  return cache;
}

// One call under all schedules: each starts from the cache as it was and must leave the same bits in the
// result and, in the cache, those that belong there.
inline void run(const AttentionParams& p) {
  const CacheBytes before = copy_cache(p.cache);
  const CacheBytes want = appended(before, p);
  std::vector<double> first_result;
  for (const std::uint64_t seed : kSeeds) {
    const std::int64_t rows = p.cache.batch * p.cache.kv_heads * p.cache.capacity;
    std::memcpy(p.cache.k, before.rows[0].data(), before.rows[0].size());
    std::memcpy(p.cache.v, before.rows[1].data(), before.rows[1].size());
    if (p.cache.k_scale != nullptr) {
      std::copy_n(before.scales[0].data(), rows, p.cache.k_scale);
      std::copy_n(before.scales[1].data(), rows, p.cache.v_scale);
    }
    emulation::set_options({seed});
    ASSERT_EQ(cuda::prefill_attention(p, nullptr), cudaSuccess) << emulation::last_error();
    EXPECT_TRUE(same_bits(copy_cache(p.cache), want)) << "the cache, schedule " << seed;
    const std::vector<double> result = result_of(p);
    if (seed == kSeeds[0]) first_result = result;
    EXPECT_EQ(std::memcmp(result.data(), first_result.data(), result.size() * sizeof(double)), 0)
        << "schedule " << seed;
  }
}

inline void check(const AttentionParams& p, const Case& c) {
  run(p);
  if (::testing::Test::HasFatalFailure()) return;
  const double units = error_in_units(p);
  EXPECT_TRUE(units <= 1.0) << units << " times the error allowed: " << describe(c);
  ::testing::Test::RecordProperty("error_in_units", std::to_string(units));
}

inline void check(const Case& c) {
  Fixture fixture(c);
  check(fixture.params, c);
}

// The tensors of a call moved to where rows start anywhere, tokens and heads apart by odd numbers of
// elements.
class Scattered {
 public:
  explicit Scattered(AttentionParams& p) {
    move(p.q, p.heads, p);
    move(p.k_new, p.cache.kv_heads, p);
    move(p.v_new, p.cache.kv_heads, p);
    move(p.out, p.heads, p);
  }

  // NaN between the rows must still be there.
  void expect_gaps_untouched(const AttentionParams& p) const {
    const std::vector<char>& out = buffers_.back();
    const std::int64_t count = static_cast<std::int64_t>(out.size()) / element_bytes(p.out.dtype);
    std::vector<bool> inside(static_cast<std::size_t>(count), false);
    for (std::int64_t b = 0; b < p.cache.batch; ++b)
      for (std::int64_t h = 0; h < p.heads; ++h)
        for (std::int64_t t = 0; t < p.q_len; ++t)
          for (std::int64_t d = 0; d < p.cache.head_dim; ++d)
            inside[static_cast<std::size_t>(1 + b * p.out.batch_stride + h * p.out.head_stride +
                                            t * p.out.token_stride + d)] = true;
    for (std::int64_t i = 0; i < count; ++i)
      ASSERT_TRUE(inside[static_cast<std::size_t>(i)] ||
                  std::isnan(reference::element(out.data(), p.out.dtype, i)))
          << i;
  }

 private:
  template <typename Pointer>
  void move(TokenView<Pointer>& view, std::int64_t heads, const AttentionParams& p) {
    TokenView<Pointer> moved = view;
    moved.head_stride = p.cache.head_dim + 1;
    moved.token_stride = heads * moved.head_stride + 2;
    moved.batch_stride = p.q_len * moved.token_stride + 3;
    const std::int64_t count = 1 + p.cache.batch * moved.batch_stride;
    std::vector<char>& buffer =
        buffers_.emplace_back(static_cast<std::size_t>(count * element_bytes(view.dtype)));
    for (std::int64_t i = 0; i < count; ++i) write(buffer, view.dtype, static_cast<std::size_t>(i), kNan);
    for (std::int64_t b = 0; b < p.cache.batch; ++b)
      for (std::int64_t h = 0; h < heads; ++h)
        for (std::int64_t t = 0; t < p.q_len; ++t)
          for (std::int64_t d = 0; d < p.cache.head_dim; ++d)
            write(buffer, view.dtype,
                  static_cast<std::size_t>(1 + b * moved.batch_stride + h * moved.head_stride +
                                           t * moved.token_stride + d),
                  static_cast<float>(reference::element(
                      view.data, view.dtype,
                      b * view.batch_stride + h * view.head_stride + t * view.token_stride + d)));
    moved.data = buffer.data() + element_bytes(view.dtype);
    view = moved;
  }

  std::vector<std::vector<char>> buffers_;
};

// The plain algorithm, float32 throughout.
inline std::vector<float> plain_attention(const AttentionParams& p) {
  std::vector<float> out;
  const auto at = [](const auto& view, std::int64_t t) {
    return static_cast<const float*>(view.data) + t * view.token_stride;
  };
  for (std::int64_t t = 0; t < p.q_len; ++t) {
    std::vector<float> weights;
    float most = -INFINITY;
    for (std::int64_t token = 0; token <= t; ++token) {
      float score = 0.0F;
      for (std::int64_t d = 0; d < p.cache.head_dim; ++d) score += at(p.q, t)[d] * at(p.k_new, token)[d];
      weights.push_back(score * p.softmax_scale);
      most = std::max(most, weights.back());
    }
    float sum = 0.0F;
    for (float& weight : weights) sum += weight = std::exp(weight - most);
    for (std::int64_t d = 0; d < p.cache.head_dim; ++d) {
      float value = 0.0F;
      for (std::int64_t token = 0; token <= t; ++token)
        value += weights[static_cast<std::size_t>(token)] / sum * at(p.v_new, token)[d];
      out.push_back(value);
    }
  }
  return out;
}

}  // namespace kvfuse::test
