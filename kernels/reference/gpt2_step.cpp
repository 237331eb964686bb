#include "kernels/reference/gpt2_step.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>

#include "kernels/half.h"
#include "kernels/reference/reference.h"

namespace kvfuse::reference {
namespace {

using Row = std::vector<double>;

constexpr double kPi = 3.14159265358979323846;
constexpr double kLayerNormEpsilon = 1e-5;

Row layer_norm(const Row& x, const Row& weight, const Row& bias, double epsilon) {
  double mean = 0.0, variance = 0.0;
  for (const double value : x) mean += value / static_cast<double>(x.size());
  for (const double value : x) variance += (value - mean) * (value - mean) / static_cast<double>(x.size());
  Row y;
  for (std::size_t i = 0; i < x.size(); ++i)
    y.push_back((x[i] - mean) / std::sqrt(variance + epsilon) * weight[i] + (bias.empty() ? 0.0 : bias[i]));
  return y;
}

// The first out_size rows of the weight.
Row product(const Row& x, const Row& weight, const Row& bias, std::size_t out_size) {
  Row y;
  for (std::size_t o = 0; o < out_size; ++o) {
    double sum = bias.empty() ? 0.0 : bias[o];
    for (std::size_t i = 0; i < x.size(); ++i) sum += x[i] * weight[o * x.size() + i];
    y.push_back(sum);
  }
  return y;
}

double largest_of(Row::const_iterator first, Row::const_iterator last) {
  double largest = 0.0;
  for (; first != last; ++first) largest = std::max(largest, std::fabs(*first));
  return largest;
}

double gelu(double x, bool tanh_form) {
  if (tanh_form) return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / kPi) * (x + 0.044715 * x * x * x)));
  return 0.5 * x * (1.0 + std::erf(x / std::sqrt(2.0)));
}

Row row_of(const void* data, DType dtype, std::int64_t first, std::int64_t count) {
  Row row;
  for (std::int64_t i = 0; data != nullptr && i < count; ++i) row.push_back(element(data, dtype, first + i));
  return row;
}

Row through_dtype(Row row, DType dtype) {
  for (double& value : row) {
    const auto narrow = static_cast<float>(value);
    if (dtype == DType::kFloat16) value = to_float(from_float<Float16>(narrow));
    if (dtype == DType::kBFloat16) value = to_float(from_float<BFloat16>(narrow));
  }
  return row;
}

// What an int8 cache holds of a row, head by head.
Row through_int8(const Row& row, std::size_t n_head) {
  const auto head_dim = static_cast<std::ptrdiff_t>(row.size() / n_head);
  Row held;
  for (auto head = row.begin(); head != row.end(); head += head_dim) {
    const QuantizedRow quantized = quantize_row(Row(head, head + head_dim));
    for (const double code : quantized.codes) held.push_back(std::nearbyint(code) * quantized.scale);
  }
  return held;
}

Row attend(const Row& qkv, const Gpt2::Cache& cache, std::size_t n_embd, std::size_t n_head) {
  const std::size_t head_dim = n_embd / n_head;
  Row out(n_embd, 0.0);
  for (std::size_t first = 0; first < n_embd; first += head_dim) {
    Row weights;
    double sum = 0.0;
    for (const Row& k : cache.k) {
      double score = 0.0;
      for (std::size_t d = first; d < first + head_dim; ++d) score += qkv[d] * k[d];
      weights.push_back(std::exp(score / std::sqrt(static_cast<double>(head_dim))));
      sum += weights.back();
    }
    for (std::size_t t = 0; t < weights.size(); ++t)
      for (std::size_t d = first; d < first + head_dim; ++d) out[d] += weights[t] / sum * cache.v[t][d];
  }
  return out;
}

void add(Row& x, const Row& y) {
  for (std::size_t i = 0; i < x.size(); ++i) x[i] += y[i];
}

}  // namespace

std::vector<double> weight_values(const LinearParams& p) {
  const WeightFormat format = p.weight_format;
  const bool packed = format == WeightFormat::kFloatPanels || format == WeightFormat::kInt8Panels ||
                      format == WeightFormat::kInt4Panels;
  // Where element i of row o lies in a matrix of `columns`: of panels of sixteen rows, `together` elements of
  // a row side by side.
  const auto place = [&](std::int64_t o, std::int64_t i, std::int64_t columns, std::int64_t together) {
    if (!packed) return o * columns + i;
    const std::int64_t before = o - o % 16, width = std::min<std::int64_t>(16, p.out_size - before);
    return before * columns + (i / together * width + o % 16) * together + i % together;
  };
  const auto value = [&](std::int64_t o, std::int64_t i) -> double {
    if (format == WeightFormat::kFloat || format == WeightFormat::kFloatPanels)
      return element(p.weight, p.dtype, place(o, i, p.in, 1));
    const auto byte = [&](std::int64_t at, std::int64_t columns) -> int {
      return static_cast<const std::uint8_t*>(p.weight)[place(o, at, columns, 4)];
    };
    if (format == WeightFormat::kInt8Rows || format == WeightFormat::kInt8Panels) {
      const int code = packed ? byte(i, p.in) - 128 : static_cast<std::int8_t>(byte(i, p.in));
      return code * element(p.weight_scale, DType::kFloat32, o);
    }
    // Of 4-bit codes, 32 at a time: byte m holds those of inputs m and 16 + m, plus 8.
    const int both = byte(i / 32 * 16 + i % 16, p.in / 2);
    const int code = (i % 32 < 16 ? both % 16 : both / 16) - 8;
    return code * element(p.weight_scale, DType::kFloat16, place(o, i / 32, p.in / 32, 1));
  };
  Row values;
  for (std::int64_t o = 0; o < p.out_size; ++o)
    for (std::int64_t i = 0; i < p.in; ++i) values.push_back(value(o, i));
  return values;
}

std::vector<double> activation_steps(const std::vector<double>& x, bool fine) {
  constexpr std::size_t kBlock = 64;
  const double fitting =
      std::min(32767.0, std::floor(2147483647.0 / (127.0 * static_cast<double>(x.size()))));
  const double row_step =
      largest_of(x.begin(), x.end()) /
      (fitting < 127.0 ? fitting : 127.0 * std::exp2(std::floor(std::log2(fitting / 127.0))));
  if (row_step == 0.0) return Row(x.size(), 0.0);
  std::vector<int> powers;
  for (std::size_t i = 0; i < x.size(); i += kBlock) {
    const auto first = x.begin() + static_cast<std::ptrdiff_t>(i);
    const auto last = x.begin() + static_cast<std::ptrdiff_t>(std::min(i + kBlock, x.size()));
    const double parts = largest_of(first, last) / row_step / 127.0;
    powers.push_back(std::max(0, static_cast<int>(std::ceil(std::log2(parts) - 1e-6))));
  }
  std::vector<int> sorted = powers;
  std::sort(sorted.begin(), sorted.end());
  const int middle = sorted[(sorted.size() - 1) / 2];
  Row steps;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const int power = powers[i / kBlock];
    steps.push_back(row_step * (fine || power >= middle + 2 ? 1.0 : std::exp2(power)));
  }
  return steps;
}

std::vector<double> rounded_activations(const std::vector<double>& x, bool fine) {
  const Row steps = activation_steps(x, fine);
  Row rounded;
  for (std::size_t i = 0; i < x.size(); ++i)
    rounded.push_back(steps[i] > 0.0 ? std::nearbyint(x[i] / steps[i]) * steps[i] : x[i]);
  return rounded;
}

std::vector<double> linear(const LinearParams& p) {
  const Row weight = weight_values(p);
  const Row bias = row_of(p.bias, p.dtype, 0, p.out_size);
  const Row norm_weight = row_of(p.norm_weight, p.dtype, 0, p.in);
  const Row norm_bias = row_of(p.norm_bias, p.dtype, 0, p.in);
  Row out;
  for (std::int64_t r = 0; r < p.rows; ++r) {
    Row x = row_of(p.x, p.norm_weight != nullptr ? DType::kFloat32 : p.dtype, r * p.in, p.in);
    if (p.norm_weight != nullptr) x = layer_norm(x, norm_weight, norm_bias, p.norm_epsilon);
    if (has_int8_codes(p.weight_format)) x = rounded_activations(x, p.fine_activations);
    Row y = product(x, weight, bias, static_cast<std::size_t>(p.out_size));
    if (p.epilogue == Epilogue::kGeluTanh || p.epilogue == Epilogue::kGeluExact)
      for (double& value : y) value = gelu(value, p.epilogue == Epilogue::kGeluTanh);
    if (p.epilogue == Epilogue::kAdd) add(y, row_of(p.out, p.out_dtype, r * p.out_size, p.out_size));
    out.insert(out.end(), y.begin(), y.end());
  }
  return out;
}

std::vector<double> Gpt2::step(std::int64_t token, Caches& caches) const {
  const std::size_t position = caches.front().k.size();
  const auto layer_product = [&](const Row& x, const Row& weight, const Row& bias, std::size_t out_size,
                                 bool fine = false) {
    return product(int8_layers ? rounded_activations(x, fine) : x, weight, bias, out_size);
  };
  Row x;
  for (std::size_t i = 0; i < n_embd; ++i)
    x.push_back(token_embedding[static_cast<std::size_t>(token) * n_embd + i] +
                position_embedding[position * n_embd + i]);
  for (const Gpt2Layer& layer : layers) {
    const Row qkv =
        through_dtype(layer_product(layer_norm(x, layer.ln_1_weight, layer.ln_1_bias, kLayerNormEpsilon),
                                    layer.qkv_weight, layer.qkv_bias, 3 * n_embd, &layer == layers.data()),
                      dtype);
    Cache& cache = caches[layer.cache_layer];
    if (layer.appends) {
      const auto k = qkv.begin() + static_cast<std::ptrdiff_t>(n_embd);
      const auto v = k + static_cast<std::ptrdiff_t>(n_embd);
      cache.k.push_back(int8_cache ? through_int8(Row(k, v), n_head) : Row(k, v));
      cache.v.push_back(int8_cache ? through_int8(Row(v, qkv.end()), n_head) : Row(v, qkv.end()));
    }
    add(x, layer_product(through_dtype(attend(qkv, cache, n_embd, n_head), dtype), layer.attn_proj_weight,
                         layer.attn_proj_bias, n_embd));
    Row hidden = layer_product(layer_norm(x, layer.ln_2_weight, layer.ln_2_bias, kLayerNormEpsilon),
                               layer.fc_weight, layer.fc_bias, 4 * n_embd);
    for (double& value : hidden) value = gelu(value, gelu_tanh);
    hidden = through_dtype(std::move(hidden), dtype);
    add(x, layer_product(hidden, layer.mlp_proj_weight, layer.mlp_proj_bias, n_embd));
  }
  const Row last = layer_norm(x, ln_f_weight, ln_f_bias, kLayerNormEpsilon);
  return product(int8_head ? rounded_activations(last, true) : last, token_embedding, {},
                 token_embedding.size() / n_embd);
}

}  // namespace kvfuse::reference
