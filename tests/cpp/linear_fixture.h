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
      for (char& code : weight.bytes)
        if (code == -128) code = 127;
      if (lies_in_panels(c.weight_format)) pack_codes(c);
      weight_scale = normal(DType::kFloat32, c.out_size, 0.0F, 0.0F);
      for (std::int64_t i = 0; i < c.out_size; ++i)
        weight_scale.set(i, weight_deviation / 64.0F * (1.0F + static_cast<float>(i % 5)));
    } else if (has_int4_codes(c.weight_format)) {
      draw_codes(c, random);  // of panels too: any bytes are some
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

  // As cpu::pack_weight does; not by it, as tests without the CPU's kernels draw weights too.
  void pack_codes(const LinearCase& c) {
    const std::vector<char> rows = weight.bytes;
    for (std::int64_t output = 0; output < c.out_size; ++output) {
      const WeightRow to = weight_row(c.weight_format, c.out_size, c.in, output);
      for (std::int64_t i = 0; i < c.in; ++i)
        weight.bytes[static_cast<std::size_t>(to.at(i))] =
            static_cast<char>(rows[static_cast<std::size_t>(output * c.in + i)] ^ to.zero);
    }
  }
};

inline constexpr double kFloatStep = 0x1p-24;  // a float32 rounding, relative

// How far one output may be from the truth: its own rounding, and float32 rounding of every sum behind it;
// beside 4-bit codes half a step of each element of x, beside int8 ones, where the twin rounds too, a whole
// step of each element so close to the middle of two that float32 may tip it over, but no more than two steps
// of one. The sums are of absolute values, so the bound holds without luck, but for those two steps.
class Tolerance {
 public:
  explicit Tolerance(const LinearTensors& t)
      : t_(t), p_(t.params), weight_(reference::weight_values(t.params)) {
    for (std::int64_t row = 0; row < p_.rows; ++row) add_row(row);
  }

  double of(std::int64_t row, std::int64_t output, double want) const {
    double magnitude = p_.bias == nullptr ? 0.0 : std::fabs(t_.bias[output]);
    double from_x = 0.0, steps = 0.0, largest_step = 0.0;
    for (std::int64_t i = 0; i < p_.in; ++i) {
      const double w = std::fabs(weight_[static_cast<std::size_t>(output * p_.in + i)]);
      const Element& x = elements_[static_cast<std::size_t>(row * p_.in + i)];
      magnitude += w * x.magnitude;
      from_x += w * x.error;
      steps += w * x.rounding;
      largest_step = std::max(largest_step, w * x.most_step);
    }
    if (has_int8_codes(p_.weight_format)) steps = std::min(steps, 2.0 * largest_step);
    const double sums = static_cast<double>(p_.in / 32 + 24) * kFloatStep * magnitude;
    const double before_rounding = 1.2 * (sums + from_x + steps) + 8.0 * kFloatStep * (1.0 + std::fabs(want));
    return before_rounding + rounding_of(p_.out_dtype) * (std::fabs(want) + before_rounding) + 0x1p-24;
  }

 private:
  struct Element {
    double value;      // that the weights meet
    double magnitude;  // of the terms of value
    double error;      // of float32 in value
    double most_step;  // that value may be rounded to beside int8 codes
    double rounding;   // beside codes
  };

  void add_row(std::int64_t row) {
    std::vector<Element> elements;
    for (std::int64_t i = 0; i < p_.in; ++i) {
      const double x = t_.x[row * p_.in + i];
      elements.push_back({x, std::fabs(x), 0.0, 0.0, 0.0});
    }
    if (p_.norm_weight != nullptr) normalize(elements);
    if (has_int8_codes(p_.weight_format)) round_to_int8(elements);
    if (has_int4_codes(p_.weight_format)) round_groups(elements);
    elements_.insert(elements_.end(), elements.begin(), elements.end());
  }

  void normalize(std::vector<Element>& elements) const {
    const double count = static_cast<double>(p_.in);
    double mean = 0.0, variance = 0.0, largest = 0.0;
    for (const Element& x : elements) mean += x.value / count;
    for (const Element& x : elements) {
      variance += (x.value - mean) * (x.value - mean) / count;
      largest = std::max(largest, x.magnitude);
    }
    const double inverse = 1.0 / std::sqrt(variance + double{p_.norm_epsilon});
    for (std::int64_t i = 0; i < p_.in; ++i) {
      Element& x = elements[static_cast<std::size_t>(i)];
      const double factor = inverse * t_.norm_weight[i], scaled = (x.value - mean) * factor;
      const double bias = p_.norm_bias == nullptr ? 0.0 : t_.norm_bias[i];
      x.value = scaled + bias;
      x.magnitude = std::fabs(scaled) + std::fabs(bias);
      // The mean is off by roundings of its own size, which the division by the deviation enlarges.
      x.error = 16.0 * kFloatStep * std::fabs(factor) * largest;
    }
  }

  void round_to_int8(std::vector<Element>& elements) const {
    std::vector<double> values;
    for (const Element& x : elements) values.push_back(x.value);
    const std::vector<double> steps = reference::activation_steps(values, p_.fine_activations);
    const double of_row = largest_of(elements, 0, p_.in) / static_cast<double>(activation_levels(p_.in));
    for (std::int64_t i = 0; i < p_.in; ++i) {
      Element& x = elements[static_cast<std::size_t>(i)];
      const double step = steps[static_cast<std::size_t>(i)];
      const double of_block =
          2.0 * largest_of(elements, i / kActivationBlock * kActivationBlock, kActivationBlock) / 127.0;
      x.most_step = p_.fine_activations ? of_row : std::max(of_row, of_block);  // a power of two times it
      const double to_middle = std::fabs(x.value - (std::floor(x.value / step) + 0.5) * step);
      if (to_middle <= x.error + 8.0 * kFloatStep * x.magnitude) x.rounding = step;
    }
  }

  void round_groups(std::vector<Element>& elements) const {
    for (std::int64_t i = 0; i < p_.in; ++i)
      elements[static_cast<std::size_t>(i)].rounding =
          largest_of(elements, i / kInt4Group * kInt4Group, kInt4Group) / kInt4ActivationLevels / 2.0;
  }

  // Of `count` elements at most.
  double largest_of(const std::vector<Element>& elements, std::int64_t first, std::int64_t count) const {
    double largest = 0.0;
    for (std::int64_t i = first; i < std::min(first + count, p_.in); ++i)
      largest = std::max(largest, std::fabs(elements[static_cast<std::size_t>(i)].value));
    return largest;
  }

  const LinearTensors& t_;
  const LinearParams& p_;
  std::vector<double> weight_;
  std::vector<Element> elements_;  // [rows, in]
};

}  // namespace kvfuse::test
