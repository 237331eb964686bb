// A few rows times a weight matrix. Weights are read once, row after row as they lie in memory: one stream a
// core is what hardware prefetchers follow best.
#include "kernels/linear.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "kernels/cpu/gelu.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/rows.h"

namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE {
namespace {

constexpr std::int64_t kOutputsPerTask = 64;        // 200 KB of float32 weights at a width of 768
constexpr std::int64_t kBytesPerWorker = 64 << 10;  // 4 us of reading; waking a thread takes 1 us or more
constexpr int kRowsAtOnce = 4;                      // that share a weight in a register
// Weight rows at once beside kRowsAtOnce rows of x, by how many registers there are. A single row of x takes
// one: a core's stream from memory is fastest alone.
constexpr int kOutputsAtOnce = kLanes == 16 ? 4 : 2;

constexpr std::int64_t padded(std::int64_t count) { return (count + 15) / 16 * 16; }
// Of rows of x: a line more than they need, or those of a power of two would meet in the same lines of the
// cache.
constexpr std::int64_t stride_of(std::int64_t in) { return padded(in) + 16; }

// The rows of x as the products take them.
struct Inputs {
  std::int64_t stride = 0;  // elements from row to row
  float* values = nullptr;
  std::int16_t* codes = nullptr;  // beside int8 weights: x = code * scale
  float* scale = nullptr;
};

void layer_norm(float* x, const LinearParams& p, float* parameter) {
  Vec sum = zero();
  const std::int64_t whole = p.in / kLanes * kLanes;
  for (std::int64_t i = 0; i < whole; i += kLanes) sum = add(sum, load(x + i));
  float mean = reduce_add(sum);
  for (std::int64_t i = whole; i < p.in; ++i) mean += x[i];
  mean /= static_cast<float>(p.in);
  Vec squares = zero();
  for (std::int64_t i = 0; i < whole; i += kLanes) {
    const Vec difference = sub(load(x + i), splat(mean));
    squares = fma(difference, difference, squares);
  }
  float variance = reduce_add(squares);
  for (std::int64_t i = whole; i < p.in; ++i) variance += (x[i] - mean) * (x[i] - mean);
  const float inverse = 1.0F / std::sqrt(variance / static_cast<float>(p.in) + p.norm_epsilon);
  read_row(p.norm_weight, p.dtype, p.in, parameter);
  for (std::int64_t i = 0; i < p.in; ++i) x[i] = (x[i] - mean) * inverse * parameter[i];
  if (p.norm_bias == nullptr) return;
  read_row(p.norm_bias, p.dtype, p.in, parameter);
  for (std::int64_t i = 0; i < p.in; ++i) x[i] += parameter[i];
}

// Returns the scale; NaN for a row that is not finite, so that its products are not either.
float round_row(const float* x, std::int64_t count, std::int16_t* codes) {
  Vec most = zero();
  Vec spoilt = zero();  // stays 0 unless an element is not finite
  for (std::int64_t i = 0; i < count; i += kLanes) {
    most = max(most, absolute(load(x + i)));
    spoilt = fma(load(x + i), zero(), spoilt);
  }
  const float absmax = reduce_max(most);
  if (!(absmax > 0.0F) || reduce_add(spoilt) != 0.0F) {
    std::fill_n(codes, count, std::int16_t{0});
    return reduce_add(spoilt);
  }
  return absmax;
}

// Rows converted to float32, normalised and rounded as the products need them.
void prepare(const LinearParams& p, const Inputs& inputs, float* parameter) {
  const bool normalised = p.norm_weight != nullptr;
  const DType dtype = normalised ? DType::kFloat32 : p.dtype;
  for (std::int64_t row = 0; row < p.rows; ++row) {
    float* x = inputs.values + row * inputs.stride;
    read_row(static_cast<const char*>(p.x) + row * p.in * element_bytes(dtype), dtype, p.in, x);
    std::fill(x + p.in, x + inputs.stride, 0.0F);
    if (normalised) layer_norm(x, p, parameter);
    if (inputs.codes == nullptr) continue;
    std::int16_t* codes = inputs.codes + row * inputs.stride;
    const auto levels = static_cast<float>(activation_levels(p.in));
    const float absmax = round_row(x, inputs.stride, codes);
    inputs.scale[row] = absmax / levels;
    if (!(absmax > 0.0F)) continue;
    for (std::int64_t i = 0; i < inputs.stride; i += kLanes)
      quantize(mul(load(x + i), splat(levels / absmax)), codes + i);
  }
}

// sums[row][output] = the product of row `output` of `weight` with row `row` of x. A product is one chain of
// sums, the same for any number of rows: a row's bits are the same alone and in a batch.
template <int kRows, int kOutputs, typename W>
void products(const W* weight, const float* x, std::int64_t stride, std::int64_t in,
              float (&sums)[kRows][kOutputs]) {
  Vec chains[kRows][kOutputs];
  for (auto& row : chains)
    for (Vec& chain : row) chain = zero();
  std::int64_t i = 0;
  for (; i + kLanes <= in; i += kLanes) {
    Vec w[kOutputs];
    for (int o = 0; o < kOutputs; ++o) {
      w[o] = load(weight + o * in + i);
      if (kOutputs > 1) __builtin_prefetch(weight + kOutputs * in + i * kOutputs + o * kLanes);
    }
    for (int row = 0; row < kRows; ++row) {
      const Vec values = load(x + row * stride + i);
      for (int o = 0; o < kOutputs; ++o) chains[row][o] = fma(w[o], values, chains[row][o]);
    }
  }
  for (int row = 0; row < kRows; ++row)
    for (int o = 0; o < kOutputs; ++o) {
      sums[row][o] = reduce_add(chains[row][o]);
      for (std::int64_t j = i; j < in; ++j)
        sums[row][o] += to_float(weight[o * in + j]) * x[row * stride + j];
    }
}

// The same in integers: exact, in whatever order.
template <int kRows, int kOutputs>
void products(const std::int8_t* weight, const std::int16_t* x, std::int64_t stride, std::int64_t in,
              float (&sums)[kRows][kOutputs]) {
  CodeSum parts[kRows][kOutputs];
  for (auto& row : parts)
    for (CodeSum& part : row) part = code_zero();
  std::int64_t i = 0;
  for (; i + kCodeLanes <= in; i += kCodeLanes) {
    CodeVec w[kOutputs];
    for (int o = 0; o < kOutputs; ++o) {
      w[o] = load_codes(weight + o * in + i);
      if (kOutputs > 1) __builtin_prefetch(weight + kOutputs * in + i * kOutputs + o * kCodeLanes);
    }
    for (int row = 0; row < kRows; ++row)
      for (int o = 0; o < kOutputs; ++o) parts[row][o] = code_dot(parts[row][o], w[o], x + row * stride + i);
  }
  for (int row = 0; row < kRows; ++row)
    for (int o = 0; o < kOutputs; ++o) {
      std::int32_t sum = exact_sum(folded(parts[row][o]));
      for (std::int64_t j = i; j < in; ++j) sum += weight[o * in + j] * x[row * stride + j];
      sums[row][o] = static_cast<float>(sum);
    }
}

// One row of x with kFolded weight rows, which follow one another as memory does; their sums are folded
// together. `in` is a multiple of kCodeLanes.
constexpr int kFolded = 8;
inline void products(const std::int8_t* weight, const std::int16_t* x, std::int64_t, std::int64_t in,
                     float (&sums)[1][kFolded]) {
  IntVec folded_sums[kFolded];
  for (int o = 0; o < kFolded; ++o, weight += in) {
    CodeSum even = code_zero(), odd = code_zero();  // which do not wait for each other
    std::int64_t i = 0;
    for (; i + 2 * kCodeLanes <= in; i += 2 * kCodeLanes) {
      even = code_dot(even, load_codes(weight + i), x + i);
      odd = code_dot(odd, load_codes(weight + i + kCodeLanes), x + i + kCodeLanes);
    }
    if (i < in) even = code_dot(even, load_codes(weight + i), x + i);
    folded_sums[o] = folded(add(even, odd));
  }
  sum_rows8(folded_sums, sums[0]);
}

Vec activated(Vec x, Epilogue epilogue) {
  if (epilogue == Epilogue::kGeluTanh) return gelu_tanh(x);
  if (epilogue == Epilogue::kGeluExact) return gelu_exact(x);
  return x;
}

// `count` outputs from `begin` on of one row: bias, epilogue, store.
void finish(const LinearParams& p, std::int64_t row, std::int64_t begin, std::int64_t count, float* sums) {
  alignas(64) float bias[kOutputsPerTask];
  if (p.bias != nullptr) {
    read_row(static_cast<const char*>(p.bias) + begin * element_bytes(p.dtype), p.dtype, count, bias);
    for (std::int64_t i = 0; i < count; ++i) sums[i] += bias[i];
  }
  if (p.epilogue == Epilogue::kGeluTanh || p.epilogue == Epilogue::kGeluExact)
    for (std::int64_t i = 0; i < kOutputsPerTask; i += kLanes)
      store(sums + i, activated(load(sums + i), p.epilogue));
  char* out = static_cast<char*>(p.out) + (row * p.out_size + begin) * element_bytes(p.out_dtype);
  if (p.epilogue != Epilogue::kAdd) return write_row(sums, p.out_dtype, count, out);
  auto* residual = reinterpret_cast<float*>(out);
  for (std::int64_t i = 0; i < count; ++i) residual[i] += sums[i];
}

// The rows of x that the products with weights of type W take.
template <typename W>
const float* rows_for(const W*, const Inputs& inputs) {
  return inputs.values;
}
inline const std::int16_t* rows_for(const std::int8_t*, const Inputs& inputs) { return inputs.codes; }

// Outputs [begin, end) of rows [first, first + kRows), without bias: sums[row][output - begin].
template <int kRows, int kOutputs, typename W>
void multiply(const LinearParams& p, const Inputs& inputs, std::int64_t first, std::int64_t begin,
              std::int64_t end, float (*sums)[kOutputsPerTask]) {
  const W* weight = static_cast<const W*>(p.weight);
  const auto* x = rows_for(weight, inputs) + first * inputs.stride;
  std::int64_t o = begin;
  for (; o + kOutputs <= end; o += kOutputs) {
    float tile[kRows][kOutputs];
    products(weight + o * p.in, x, inputs.stride, p.in, tile);
    for (int row = 0; row < kRows; ++row)
      for (int i = 0; i < kOutputs; ++i) sums[row][o - begin + i] = tile[row][i];
  }
  for (; o < end; ++o) {
    float column[kRows][1];
    products(weight + o * p.in, x, inputs.stride, p.in, column);
    for (int row = 0; row < kRows; ++row) sums[row][o - begin] = column[row][0];
  }
  if (p.weight_scale == nullptr) return;
  for (int row = 0; row < kRows; ++row)
    for (o = begin; o < end; ++o) sums[row][o - begin] *= p.weight_scale[o] * inputs.scale[first + row];
}

template <typename W>
void run_task(const LinearParams& p, const Inputs& inputs, std::int64_t begin, std::int64_t end) {
  // Rows in groups: for all but the first the weights come from the caches.
  for (std::int64_t first = 0; first < p.rows;) {
    alignas(64) float sums[kRowsAtOnce][kOutputsPerTask] = {};
    std::int64_t count = 1;
    if (p.rows - first >= kRowsAtOnce) {
      multiply<kRowsAtOnce, kOutputsAtOnce, W>(p, inputs, first, begin, end, sums);
      count = kRowsAtOnce;
    } else if (p.rows - first >= 2) {
      multiply<2, kOutputsAtOnce, W>(p, inputs, first, begin, end, sums);
      count = 2;
    } else if (std::is_same_v<W, std::int8_t> && p.in % kCodeLanes == 0) {
      multiply<1, kFolded, W>(p, inputs, first, begin, end, sums);
    } else {
      multiply<1, 1, W>(p, inputs, first, begin, end, sums);
    }
    for (std::int64_t row = 0; row < count; ++row) finish(p, first + row, begin, end - begin, sums[row]);
    first += count;
  }
}

}  // namespace

void linear(const LinearParams& p) {
  const std::int64_t tasks = (p.out_size + kOutputsPerTask - 1) / kOutputsPerTask;
  const DType weight_dtype = p.weight_scale == nullptr ? p.dtype : DType::kInt8;
  const std::int64_t weight_bytes = p.out_size * p.in * element_bytes(weight_dtype);
  const int workers = worker_count(std::min(tasks, weight_bytes / kBytesPerWorker));
  Inputs inputs{.stride = stride_of(p.in)};
  const std::int64_t values = p.rows * inputs.stride;
  const std::int64_t floats = values + inputs.stride + padded(p.rows);
  auto* scratch =
      static_cast<float*>(thread_scratch().reserve(floats * static_cast<std::int64_t>(sizeof(float)) +
                                                   values * static_cast<std::int64_t>(sizeof(std::int16_t))));
  inputs.values = scratch;
  if (p.weight_scale != nullptr) {
    inputs.scale = scratch + values + inputs.stride;
    inputs.codes = reinterpret_cast<std::int16_t*>(scratch + floats);
  }
  prepare(p, inputs, scratch + values);
  with_cache_type(weight_dtype, [&](auto element) {
    parallel_tasks(tasks, workers, [&](std::int64_t task, std::int64_t, int) {
      const std::int64_t begin = task * kOutputsPerTask;
      run_task<decltype(element)>(p, inputs, begin, std::min(begin + kOutputsPerTask, p.out_size));
    });
  });
}

}  // namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE
