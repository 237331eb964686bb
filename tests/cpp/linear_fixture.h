// Calls of a fused linear layer, and how exact their results have to be.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "kernels/linear.h"
#include "kernels/reference/gpt2_step.h"
#include "tests/cpp/tensors.h"

namespace kvfuse::test {

struct LinearCase {
  DType dtype = DType::kFloat16;
  std::int64_t rows = 1;
  std::int64_t in = 64;
  std::int64_t out_size = 19;  // no multiple of what a block computes
  bool norm = false;
  Epilogue epilogue = Epilogue::kStore;
  bool float32_out = false;
  bool biases = true;
  WeightFormat weight_format = WeightFormat::kFloat;
  bool fine_activations = false;
  float mean = 0.0F;       // of x
  float deviation = 1.0F;  // of x
};

inline std::string describe(const LinearCase& c) {
  return std::string(dtype_name(c.dtype)) + " rows " + std::to_string(c.rows) + " in " +
         std::to_string(c.in) + " out " + std::to_string(c.out_size) + (c.norm ? " layernorm" : "") +
         " epilogue " + std::to_string(static_cast<int>(c.epilogue)) + (c.float32_out ? " to float32" : "") +
         (c.biases ? "" : " without biases") + " weight format " +
         std::to_string(static_cast<int>(c.weight_format)) + (c.fine_activations ? " fine" : "");
}

// Owns the tensors of one call. `out` starts as random numbers: what kAdd adds to, and what others must
// replace.
struct LinearTensors {
  Tensor x, weight, bias, norm_weight, norm_bias, out;
  Tensor weight_scale;  // of codes
  LinearParams params;

  explicit LinearTensors(const LinearCase& c) {
    std::mt19937 random(11);
    const auto normal = [&](DType dtype, std::int64_t count, float mean, float deviation) {
      return Tensor::normal(dtype, count, mean, deviation, random);
    };
    const float weight_deviation = 1.0F / std::sqrt(static_cast<float>(c.in));
    const DType out_dtype = c.float32_out || c.epilogue == Epilogue::kAdd ? DType::kFloat32 : c.dtype;
    x = normal(c.norm ? DType::kFloat32 : c.dtype, c.rows * c.in, c.mean, c.deviation);
    weight = normal(c.dtype, c.out_size * c.in, 0.0F, weight_deviation);
    if (has_int8_codes(c.weight_format)) {
      draw_codes(c, random);
      const char refused = static_cast<char>(c.weight_format == WeightFormat::kInt8Panels ? 0 : -128);
      for (char& code : weight.bytes)
        if (code == refused) code = 127;
      weight_scale = normal(DType::kFloat32, c.out_size, 0.0F, 0.0F);
      for (std::int64_t i = 0; i < c.out_size; ++i)
        weight_scale.set(i, weight_deviation / 64.0F * (1.0F + static_cast<float>(i % 5)));
    } else if (c.weight_format == WeightFormat::kInt4Groups) {
      draw_codes(c, random);
      weight_scale = normal(DType::kFloat16, c.out_size * c.in / kInt4Group, 0.0F, weight_deviation / 4.0F);
    }
    bias = normal(c.dtype, c.out_size, 0.0F, 1.0F);
    norm_weight = normal(c.dtype, c.in, 1.0F, 0.2F);
    norm_bias = normal(c.dtype, c.in, 0.0F, 0.5F);
    out = normal(out_dtype, c.rows * c.out_size, 0.0F, 1.0F);
    params = {.x = x.data(),
              .weight = weight.data(),
              .weight_scale = has_codes(c.weight_format) ? weight_scale.data() : nullptr,
              .bias = c.biases ? bias.data() : nullptr,
              .norm_weight = c.norm ? norm_weight.data() : nullptr,
              .norm_bias = c.norm && c.biases ? norm_bias.data() : nullptr,
              .out = out.data(),
              .dtype = c.dtype,
              .out_dtype = out_dtype,
              .weight_format = c.weight_format,
              .epilogue = c.epilogue,
              .fine_activations = c.fine_activations,
              .rows = c.rows,
              .in = c.in,
              .out_size = c.out_size};
  }

 private:
  void draw_codes(const LinearCase& c, std::mt19937& random) {
    const std::int64_t bytes = c.out_size * weight_row_bytes(c.weight_format, c.dtype, c.in);
    weight = {DType::kInt8, std::vector<char>(static_cast<std::size_t>(bytes))};
    for (char& code : weight.bytes) code = static_cast<char>(random());
  }
};

inline constexpr double kFloatStep = 0x1p-24;  // a float32 rounding, relative

// How far one output may be from the truth: its own rounding, and float32 rounding of every sum behind it;
// beside 4-bit codes half a step of each element of x, beside int8 ones, where the twin rounds too, three
// steps of one, as float32 rounding may tip an element over. The sums are of absolute values, so the bound
// holds without luck.
class Tolerance {
 public:
  explicit Tolerance(const LinearTensors& t)
      : t_(t), p_(t.params), weight_(reference::weight_values(t.params)) {}

  double of(std::int64_t row, std::int64_t output, double want) const {
    double magnitude = p_.bias == nullptr ? 0.0 : std::fabs(t_.bias[output]);
    double from_norm = 0.0, steps = 0.0;
    const Norm norm = norm_of(row);
    const std::int64_t sharing =
        p_.weight_format == WeightFormat::kInt4Groups ? std::int64_t{kInt4Group} : kActivationBlock;
    double step = 0.0;
    for (std::int64_t i = 0; i < p_.in; ++i) {
      if (i % sharing == 0) step = step_of(row, norm, i, sharing);
      const double w = std::fabs(weight_[static_cast<std::size_t>(output * p_.in + i)]);
      steps = has_int8_codes(p_.weight_format) ? std::max(steps, 3.0 * w * step) : steps + w * step / 2.0;
      if (p_.norm_weight == nullptr) {
        magnitude += w * std::fabs(t_.x[row * p_.in + i]);
        continue;
      }
      const double scale = std::fabs(t_.norm_weight[i]);
      magnitude += w * (std::fabs(t_.x[row * p_.in + i] - norm.mean) * norm.inverse * scale +
                        (p_.norm_bias == nullptr ? 0.0 : std::fabs(t_.norm_bias[i])));
      // The mean is off by roundings of its own size, which the division by the deviation enlarges.
      from_norm += 16.0 * kFloatStep * w * scale * norm.largest * norm.inverse;
    }
    const double sums = static_cast<double>(p_.in / 32 + 24) * kFloatStep * magnitude;
    const double before_rounding =
        1.2 * (sums + from_norm + steps) + 8.0 * kFloatStep * (1.0 + std::fabs(want));
    return before_rounding + rounding_of(p_.out_dtype) * (std::fabs(want) + before_rounding) + 0x1p-24;
  }

 private:
  struct Norm {
    double mean = 0.0, inverse = 1.0, largest = 0.0;
  };

  // To which `count` elements of a row of x, from `first` on, are rounded beside codes.
  double step_of(std::int64_t row, const Norm& norm, std::int64_t first, std::int64_t count) const {
    if (!has_codes(p_.weight_format)) return 0.0;
    const double largest = largest_of(row, norm, first, count);
    if (p_.weight_format == WeightFormat::kInt4Groups) return largest / kInt4ActivationLevels;
    const double of_row = largest_of(row, norm, 0, p_.in) / static_cast<double>(activation_levels(p_.in));
    return p_.fine_activations ? of_row : std::max(of_row, 2.0 * largest / 127.0);  // a power of two times it
  }

  // Of `count` elements at most.
  double largest_of(std::int64_t row, const Norm& norm, std::int64_t first, std::int64_t count) const {
    double largest = 0.0;
    for (std::int64_t i = first; i < std::min(first + count, p_.in); ++i) {
      double x = t_.x[row * p_.in + i];
      if (p_.norm_weight != nullptr)
        x = (x - norm.mean) * norm.inverse * t_.norm_weight[i] +
            (p_.norm_bias == nullptr ? 0.0 : t_.norm_bias[i]);
      largest = std::max(largest, std::fabs(x));
    }
    return largest;
  }

  Norm norm_of(std::int64_t row) const {
    Norm norm;
    if (p_.norm_weight == nullptr) return norm;
    double variance = 0.0;
    const double count = static_cast<double>(p_.in);
    for (std::int64_t i = 0; i < p_.in; ++i) norm.mean += t_.x[row * p_.in + i] / count;
    for (std::int64_t i = 0; i < p_.in; ++i) {
      const double deviation = t_.x[row * p_.in + i] - norm.mean;
      variance += deviation * deviation / count;
      norm.largest = std::max(norm.largest, std::fabs(t_.x[row * p_.in + i]));
    }
    norm.inverse = 1.0 / std::sqrt(variance + double{p_.norm_epsilon});
    return norm;
  }

  const LinearTensors& t_;
  const LinearParams& p_;
  std::vector<double> weight_;
};

}  // namespace kvfuse::test
