// Rows times a weight matrix. Weights are read from memory once, row after row as they lie there: one stream
// a core is what hardware prefetchers follow best.
#include "kernels/linear.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "kernels/cpu/gelu.h"
#include "kernels/cpu/linear_products.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/rows.h"

namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE {
namespace {

constexpr std::int64_t kOutputsPerTask = 64;         // 200 KB of float32 weights at a width of 768
constexpr std::int64_t kBytesPerWorker = 64 << 10;   // 4 us of reading; waking a thread takes 1 us or more
constexpr std::int64_t kInputsPerWorker = 16 << 10;  // of x, as long

constexpr std::int64_t kMostRows = 256;  // that scratch holds; the next ones read the weights anew
constexpr int kRowsAtOnce = 4;           // that share a weight in a register
// Weight rows at once beside kRowsAtOnce rows of x, by how many registers there are. A single row of x takes
// one: a core's stream from memory is fastest alone.
constexpr int kOutputsAtOnce = kLanes == 16 ? 4 : 2;

constexpr std::int64_t padded(std::int64_t count) { return (count + 63) / 64 * 64; }
// Of rows of x: a line more than they need, or those of a power of two would meet in the same lines of the
// cache.
constexpr std::int64_t stride_of(std::int64_t in) { return padded(in) + 16; }
// Of rows of 8-bit codes of x: whole steps of the products, and a line.
constexpr std::int64_t int4_stride_of(std::int64_t in) {
  constexpr std::int64_t kInputs = kNibbleGroups * kInt4Group;
  return (in + kInputs - 1) / kInputs * kInputs + 64;
}

// The rows of x as the products take them, and a worker's room to prepare one.
struct Inputs {
  std::int64_t stride = 0;        // elements from row to row
  float* values = nullptr;        // beside codes of weights a row a worker
  float* parameter = nullptr;     // of the layernorm, a row a worker
  std::int16_t* codes = nullptr;  // beside int8 weights: x = code * scale
  float* scale = nullptr;
  Int4Inputs int4;
};

// Room in this thread's scratch memory; nothing is written.
Inputs take_scratch(const LinearParams& p, int workers) {
  Inputs inputs;
  inputs.stride = stride_of(p.in);
  std::int64_t bytes = 0;
  char* memory = nullptr;
  const auto cut = [&]<typename T>(T*& part, std::int64_t count) {
    if (memory != nullptr) part = reinterpret_cast<T*>(memory + bytes);
    bytes += padded(count * static_cast<std::int64_t>(sizeof(T)));
  };
  const auto cut_all = [&] {
    cut(inputs.values, (p.weight_format == WeightFormat::kFloat ? p.rows : workers) * inputs.stride);
    cut(inputs.parameter, workers * inputs.stride);
    if (p.weight_format == WeightFormat::kInt8Rows) {
      cut(inputs.codes, p.rows * inputs.stride);
      cut(inputs.scale, p.rows);
    }
    if (p.weight_format == WeightFormat::kInt4Groups) {
      inputs.int4.stride = int4_stride_of(p.in);
      cut(inputs.int4.codes, p.rows * inputs.int4.stride);
      cut(inputs.int4.scale, p.rows * inputs.int4.stride / 8);
      cut(inputs.int4.start, p.rows * inputs.int4.stride / 8);
    }
  };
  cut_all();
  memory = static_cast<char*>(thread_scratch().reserve(bytes));
  bytes = 0;
  cut_all();
  return inputs;
}

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

// NaN for a row that is not finite, so that its products are not either.
float absmax_of(const float* x, std::int64_t count) {
  Vec most = zero();
  Vec spoilt = zero();  // stays 0 unless an element is not finite
  for (std::int64_t i = 0; i < count; i += kLanes) {
    most = max(most, absolute(load(x + i)));
    spoilt = fma(load(x + i), zero(), spoilt);
  }
  const float spoilt_sum = reduce_add(spoilt);
  return spoilt_sum == 0.0F ? reduce_max(most) : spoilt_sum;
}

void round_row(const float* x, const LinearParams& p, const Inputs& inputs, std::int64_t row) {
  std::int16_t* codes = inputs.codes + row * inputs.stride;
  const auto levels = static_cast<float>(activation_levels(p.in));
  const float absmax = absmax_of(x, inputs.stride);
  inputs.scale[row] = absmax / levels;
  if (!(absmax > 0.0F)) return static_cast<void>(std::fill_n(codes, inputs.stride, std::int16_t{0}));
  for (std::int64_t i = 0; i < inputs.stride; i += kLanes)
    quantize(mul(load(x + i), splat(levels / absmax)), codes + i);
}

// The same for Int4Inputs, group by group. A row that is not finite has one such group at least.
void round_groups(const float* x, std::int64_t in, const Int4Inputs& out) {
  std::fill_n(out.codes, out.stride, std::int8_t{0});
  std::fill_n(out.scale, out.stride / 8, 0.0F);
  for (std::int64_t i = 0; i < in; i += kInt4Group) {
    const float absmax = absmax_of(x + i, kInt4Group);
    const float inverse = absmax > 0.0F ? kInt4ActivationLevels / absmax : 0.0F;
    alignas(64) std::int8_t codes[kInt4Group];
    for (std::int64_t j = 0; j < kInt4Group; j += kLanes)
      quantize(mul(load(x + i + j), splat(inverse)), codes + j);
    std::memcpy(out.codes + nibble_position(i), codes, 16);
    std::memcpy(out.codes + nibble_position(i + 16), codes + 16, 16);
    const std::int64_t lanes = i / 8;
    std::fill_n(out.scale + lanes, 4, absmax / kInt4ActivationLevels);
  }
  constexpr std::int64_t kInputs = kNibbleGroups * kInt4Group;
  alignas(64) std::uint8_t eights[kInputs / 2];
  alignas(64) std::int32_t zeros[kLanes] = {};
  alignas(64) float sums[kLanes];
  std::memset(eights, 0x88, sizeof(eights));
  for (std::int64_t i = 0; i + kInputs <= out.stride; i += kInputs) {
    store(sums, nibble_dot(load_nibbles(eights), out.codes + i, zeros));
    for (int lane = 0; lane < kLanes; ++lane)
      out.start[i / 8 + lane] = -static_cast<std::int32_t>(sums[lane]);
  }
}

// A row converted to float32, normalised and rounded as the products need it.
void prepare(const LinearParams& p, const Inputs& inputs, std::int64_t row, int worker) {
  const bool normalised = p.norm_weight != nullptr;
  const DType dtype = normalised ? DType::kFloat32 : p.dtype;
  float* x = inputs.values + (p.weight_format == WeightFormat::kFloat ? row : worker) * inputs.stride;
  read_row(static_cast<const char*>(p.x) + row * p.in * element_bytes(dtype), dtype, p.in, x);
  std::fill(x + p.in, x + inputs.stride, 0.0F);
  if (normalised) layer_norm(x, p, inputs.parameter + worker * inputs.stride);
  if (p.weight_format == WeightFormat::kInt8Rows) round_row(x, p, inputs, row);
  if (p.weight_format == WeightFormat::kInt4Groups) round_groups(x, p.in, inputs.int4.from_row(row));
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

// Outputs [begin, end) of rows [first, first + kRows), without bias and the scales of codes:
// sums[row][output - begin].
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
}

// The same, scales included.
template <int kRows>
void multiply_int4(const LinearParams& p, const Inputs& inputs, std::int64_t first, std::int64_t begin,
                   std::int64_t end, float (*sums)[kOutputsPerTask]) {
  // A load of x serves several outputs where vectors are long: there loads are what takes longest.
  constexpr int kOutputs = kLanes < 16 ? 1 : (kRows == 1 ? 4 : 2);
  const std::int64_t groups = p.in / kInt4Group;
  const Int4Inputs x = inputs.int4.from_row(first);
  const auto weight = [&](std::int64_t o) {
    return Int4Weight{static_cast<const std::uint8_t*>(p.weight) + o * groups * kInt4GroupBytes,
                      static_cast<const Float16*>(p.weight_scale) + o * groups};
  };
  for (std::int64_t o = begin; o < end; o += kFolded) {
    Vec tile[kRows][kFolded];
    const std::int64_t count = std::min<std::int64_t>(kFolded, end - o);
    std::int64_t i = 0;
    for (; i + kOutputs <= count; i += kOutputs) products<kRows, kOutputs>(weight(o + i), x, p.in, tile, i);
    for (; i < count; ++i) products<kRows, 1>(weight(o + i), x, p.in, tile, i);
    for (auto& row : tile) {
      for (i = count; i < kFolded; ++i) row[i] = zero();
    }
    for (int row = 0; row < kRows; ++row) sum_rows8(tile[row], sums[row] + o - begin);
  }
}

// Which of the two, and how many outputs at once.
template <int kRows, typename W>
void multiply(const LinearParams& p, const Inputs& inputs, std::int64_t first, std::int64_t begin,
              std::int64_t end, float (*sums)[kOutputsPerTask]) {
  if constexpr (std::is_same_v<W, Int4Weight>)
    return multiply_int4<kRows>(p, inputs, first, begin, end, sums);
  else if constexpr (kRows > 1)
    return multiply<kRows, kOutputsAtOnce, W>(p, inputs, first, begin, end, sums);
  else if (std::is_same_v<W, std::int8_t> && p.in % kCodeLanes == 0)
    multiply<1, kFolded, W>(p, inputs, first, begin, end, sums);
  else
    multiply<1, 1, W>(p, inputs, first, begin, end, sums);
}

void apply_scales(const LinearParams& p, const Inputs& inputs, std::int64_t row, std::int64_t begin,
                  std::int64_t count, float* sums) {
  const float* weight_scale = static_cast<const float*>(p.weight_scale) + begin;
  for (std::int64_t i = 0; i < count; ++i) sums[i] *= weight_scale[i] * inputs.scale[row];
}

// As many rows from `first` on as there are, kRows at most; returns how many.
template <int kRows, typename W>
std::int64_t multiply_rows(const LinearParams& p, const Inputs& inputs, std::int64_t first,
                           std::int64_t begin, std::int64_t end, float (*sums)[kOutputsPerTask]) {
  if constexpr (kRows > 1) {
    constexpr int kFewer = kRows / 2;
    if (p.rows - first < kRows) return multiply_rows<kFewer, W>(p, inputs, first, begin, end, sums);
  }
  multiply<kRows, W>(p, inputs, first, begin, end, sums);
  return kRows;
}

template <typename W>
void run_task(const LinearParams& p, const Inputs& inputs, std::int64_t begin, std::int64_t end) {
  alignas(64) float sums[kRowsAtOnce][kOutputsPerTask] = {};
  // Rows in groups: for all but the first the weights come from the caches.
  for (std::int64_t first = 0; first < p.rows;) {
    const std::int64_t count = multiply_rows<kRowsAtOnce, W>(p, inputs, first, begin, end, sums);
    for (std::int64_t row = 0; row < count; ++row) {
      if (inputs.codes != nullptr) apply_scales(p, inputs, first + row, begin, end - begin, sums[row]);
      finish(p, first + row, begin, end - begin, sums[row]);
    }
    first += count;
  }
}

// Calls f with the type that run_task takes.
template <typename F>
void with_weight_type(const LinearParams& p, F&& f) {
  if (p.weight_format == WeightFormat::kInt4Groups) return f(Int4Weight{});
  with_cache_type(p.weight_format == WeightFormat::kInt8Rows ? DType::kInt8 : p.dtype, f);
}

void multiply_all(const LinearParams& p) {
  const std::int64_t tasks = (p.out_size + kOutputsPerTask - 1) / kOutputsPerTask;
  const std::int64_t weight_bytes = p.out_size * (weight_row_bytes(p.weight_format, p.dtype, p.in) +
                                                  scale_row_bytes(p.weight_format, p.in));
  const int preparing = worker_count(std::min(p.rows, p.rows * p.in / kInputsPerWorker));
  const int workers = worker_count(std::min(tasks, weight_bytes / kBytesPerWorker));
  const Inputs inputs = take_scratch(p, std::max(preparing, 1));
  parallel_tasks(p.rows, preparing,
                 [&](std::int64_t row, std::int64_t, int worker) { prepare(p, inputs, row, worker); });
  with_weight_type(p, [&](auto element) {
    parallel_tasks(tasks, workers, [&](std::int64_t task, std::int64_t, int) {
      const std::int64_t begin = task * kOutputsPerTask;
      run_task<decltype(element)>(p, inputs, begin, std::min(begin + kOutputsPerTask, p.out_size));
    });
  });
}

}  // namespace

void linear(const LinearParams& p) {
  const DType x_dtype = p.norm_weight != nullptr ? DType::kFloat32 : p.dtype;
  for (std::int64_t first = 0; first < p.rows; first += kMostRows) {
    LinearParams piece = p;
    piece.x = static_cast<const char*>(p.x) + first * p.in * element_bytes(x_dtype);
    piece.out = static_cast<char*>(p.out) + first * p.out_size * element_bytes(p.out_dtype);
    piece.rows = std::min(kMostRows, p.rows - first);
    multiply_all(piece);
  }
}

}  // namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE
