// One attention call with its tensors, for the kernel tests.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "kernels/attention.h"
#include "kernels/half.h"
#include "kernels/reference/reference.h"

namespace kvfuse::test {

inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

inline void write(std::vector<char>& data, DType dtype, std::size_t index, float value) {
  if (dtype == DType::kFloat32) reinterpret_cast<float*>(data.data())[index] = value;
  if (dtype == DType::kBFloat16)
    reinterpret_cast<BFloat16*>(data.data())[index] = from_float<BFloat16>(value);
  if (dtype == DType::kFloat16) reinterpret_cast<Float16*>(data.data())[index] = from_float<Float16>(value);
}

struct Case {
  DType query_dtype = DType::kFloat32;
  DType cache_dtype = DType::kInt8;
  std::vector<std::int32_t> lengths = {1};  // tokens in the cache before the call, a sequence each
  std::int64_t kv_heads = 2;
  std::int64_t group = 1;  // query heads a kv head
  std::int64_t q_len = 1;
  std::int64_t head_dim = 64;
  std::int64_t spare = 3;  // capacity past the longest sequence
  bool append = true;
};

// Owns the tensors of one attention call. Cached rows past a sequence's length hold NaN (or scale NaN);
// inputs have an outlier channel (x50), a constant bias on K and one dominant token; tensors are laid out
// [batch, token, head, dim] with a gap between tokens.
class Fixture {
 public:
  explicit Fixture(const Case& c, unsigned seed = 7) : c_(c), random_(seed) {
    const std::int64_t batch = static_cast<std::int64_t>(c.lengths.size());
    capacity_ = *std::max_element(c.lengths.begin(), c.lengths.end()) + c.q_len + c.spare;
    const std::size_t rows = static_cast<std::size_t>(batch * c.kv_heads * capacity_);
    const std::size_t cache_bytes =
        rows * static_cast<std::size_t>(c.head_dim * element_bytes(c.cache_dtype));
    k_.resize(cache_bytes);
    v_.resize(cache_bytes);
    k_scale_.assign(rows, kNan);
    v_scale_.assign(rows, kNan);
    for (auto* side : {&k_, &v_})
      for (std::size_t row = 0; row < rows; ++row)
        fill_row(*side, side == &k_ ? k_scale_ : v_scale_, row, cached(row));

    q_ = tokens(c.kv_heads * c.group);
    k_new_ = tokens(c.kv_heads);
    v_new_ = tokens(c.kv_heads);
    out_.assign(q_.size(), 0);
    softmax_lse_.assign(static_cast<std::size_t>(batch * c.kv_heads * c.group * c.q_len), kNan);

    params.q = view<const void*>(q_.data(), c.kv_heads * c.group);
    if (c.append) {
      params.k_new = view<const void*>(k_new_.data(), c.kv_heads);
      params.v_new = view<const void*>(v_new_.data(), c.kv_heads);
    }
    params.out = view<void*>(out_.data(), c.kv_heads * c.group);
    const bool scaled = c.cache_dtype == DType::kInt8;
    params.cache = {.k = k_.data(),
                    .v = v_.data(),
                    .k_scale = scaled ? k_scale_.data() : nullptr,
                    .v_scale = scaled ? v_scale_.data() : nullptr,
                    .dtype = c.cache_dtype,
                    .batch = batch,
                    .kv_heads = c.kv_heads,
                    .capacity = capacity_,
                    .head_dim = c.head_dim};
    params.cache_seqlens = c_.lengths.data();
    params.heads = c.kv_heads * c.group;
    params.q_len = c.q_len;
    params.softmax_scale = 1.0F / std::sqrt(static_cast<float>(c.head_dim));
    params.softmax_lse = softmax_lse_.data();
  }

  // The kernel's result as [batch, heads, q_len, head_dim] in double.
  std::vector<double> result() const {
    std::vector<double> values;
    for (std::int64_t b = 0; b < params.cache.batch; ++b)
      for (std::int64_t h = 0; h < params.heads; ++h)
        for (std::int64_t t = 0; t < params.q_len; ++t)
          for (std::int64_t d = 0; d < c_.head_dim; ++d)
            values.push_back(reference::element(
                out_.data(), c_.query_dtype,
                b * params.out.batch_stride + h * params.out.head_stride + t * params.out.token_stride + d));
    return values;
  }

  // decode_attention must have written each query's logarithm of the sum of exp(score), to `tolerance` of the
  // largest.
  void expect_softmax_lse(double tolerance) const {
    const std::vector<double> want = reference::softmax_lse(params);
    double most = 1.0;
    for (const double value : want)
      if (std::isfinite(value)) most = std::max(most, std::fabs(value));
    ASSERT_EQ(softmax_lse_.size(), want.size());
    for (std::size_t i = 0; i < want.size(); ++i) {
      const double got = softmax_lse_[i];
      ASSERT_TRUE(got == want[i] || std::fabs(got - want[i]) <= tolerance * most)  // false for NaN
          << "query " << i << ": got " << got << ", want " << want[i];
    }
  }

  // New token `token` of K (or V) must stand in the cache at its place, quantised as the twin says.
  void expect_appended() const {
    for (std::int64_t b = 0; b < params.cache.batch; ++b)
      for (std::int64_t h = 0; h < c_.kv_heads; ++h)
        for (std::int64_t t = 0; t < c_.q_len; ++t) {
          const std::int64_t row =
              (b * c_.kv_heads + h) * capacity_ + c_.lengths[static_cast<std::size_t>(b)] + t;
          expect_row(k_new_, k_, k_scale_, params.k_new, b, h, t, row);
          expect_row(v_new_, v_, v_scale_, params.v_new, b, h, t, row);
        }
  }

  std::vector<char> cache_bytes() const {
    std::vector<char> all = k_;
    all.insert(all.end(), v_.begin(), v_.end());
    return all;
  }
  const std::vector<char>& out_bytes() const { return out_; }
  const std::vector<float>& softmax_lse() const { return softmax_lse_; }
  std::vector<char>& k() { return k_; }
  std::vector<char>& q() { return q_; }

  AttentionParams params;

 private:
  bool cached(std::size_t row) const {
    const std::size_t heads_and_tokens = static_cast<std::size_t>(c_.kv_heads * capacity_);
    return static_cast<std::int64_t>(row % static_cast<std::size_t>(capacity_)) <
           c_.lengths[row / heads_and_tokens];
  }

  float value(std::int64_t d, bool dominant) {
    const float x = normal_(random_) + 0.5F;
    return (d == 5 ? 50.0F * x : x) * (dominant ? 4.0F : 1.0F);
  }

  void fill_row(std::vector<char>& side, std::vector<float>& scale, std::size_t row, bool cached) {
    const bool dominant = row % 97 == 3;
    for (std::int64_t d = 0; d < c_.head_dim; ++d) {
      const std::size_t index = row * static_cast<std::size_t>(c_.head_dim) + static_cast<std::size_t>(d);
      if (c_.cache_dtype == DType::kInt8)
        side[index] = static_cast<char>(static_cast<int>(random_() % 255) - 127);
      else
        write(side, c_.cache_dtype, index, cached ? value(d, dominant) : kNan);
    }
    if (cached) scale[row] = (dominant ? 0.05F : 0.01F) * (1.0F + 0.5F * std::fabs(normal_(random_)));
  }

  static constexpr std::int64_t kGap = 16;
  std::int64_t token_stride(std::int64_t heads) const { return heads * c_.head_dim + kGap; }

  std::vector<char> tokens(std::int64_t heads) {
    const std::int64_t count = static_cast<std::int64_t>(c_.lengths.size()) * c_.q_len * token_stride(heads);
    std::vector<char> data(static_cast<std::size_t>(count * element_bytes(c_.query_dtype)));
    for (std::int64_t i = 0; i < count; ++i)
      write(data, c_.query_dtype, static_cast<std::size_t>(i),
            i % token_stride(heads) < heads * c_.head_dim
                ? 0.3F * value(i % token_stride(heads) % c_.head_dim, false)
                : kNan);
    return data;
  }

  template <typename Pointer>
  TokenView<Pointer> view(Pointer data, std::int64_t heads) const {
    return {.data = data,
            .dtype = c_.query_dtype,
            .batch_stride = c_.q_len * token_stride(heads),
            .head_stride = c_.head_dim,
            .token_stride = token_stride(heads)};
  }

  void expect_row(const std::vector<char>& source, const std::vector<char>& side,
                  const std::vector<float>& scale, const ConstTokenView& from, std::int64_t b, std::int64_t h,
                  std::int64_t t, std::int64_t row) const {
    std::vector<double> want;
    for (std::int64_t d = 0; d < c_.head_dim; ++d)
      want.push_back(
          reference::element(source.data(), c_.query_dtype,
                             b * from.batch_stride + h * from.head_stride + t * from.token_stride + d));
    const auto element = [&](std::int64_t d) {
      return reference::element(side.data(), c_.cache_dtype, row * c_.head_dim + d);
    };
    if (c_.cache_dtype != DType::kInt8) {
      for (std::int64_t d = 0; d < c_.head_dim; ++d)
        ASSERT_NEAR(
            element(d), want[static_cast<std::size_t>(d)],
            std::fabs(want[static_cast<std::size_t>(d)]) * (c_.cache_dtype == c_.query_dtype ? 0 : 4e-3));
      return;
    }
    const reference::QuantizedRow quantized = reference::quantize_row(want);
    ASSERT_NEAR(scale[static_cast<std::size_t>(row)], quantized.scale, quantized.scale * 1e-6);
    for (std::int64_t d = 0; d < c_.head_dim; ++d)
      ASSERT_LE(std::fabs(element(d) - quantized.codes[static_cast<std::size_t>(d)]), 0.5 + 1e-4);
  }

  Case c_;
  std::mt19937 random_;
  std::normal_distribution<float> normal_;
  std::int64_t capacity_ = 0;
  std::vector<char> q_, k_new_, v_new_, k_, v_, out_;
  std::vector<float> k_scale_, v_scale_, softmax_lse_;
};

}  // namespace kvfuse::test
