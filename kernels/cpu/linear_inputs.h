// The rows of x of a linear layer as its products take them: float32, normalised, beside codes rounded too.
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels/cpu/linear_byte_panels.h"
#include "kernels/cpu/linear_float_panels.h"
#include "kernels/cpu/linear_int4_panels.h"
#include "kernels/cpu/linear_rounding.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/rows.h"

namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE {

constexpr std::int64_t kMostRows = 256;  // that scratch holds; the next ones read the weights anew
// 4 us of work, of preparing x and of reading weights; waking a thread takes 1 us or more.
constexpr std::int64_t kInputsPerWorker = 16 << 10;
constexpr std::int64_t kBytesPerWorker = 64 << 10;

constexpr std::int64_t padded(std::int64_t count) { return (count + 63) / 64 * 64; }
// Of rows of x: two lines of floats, or one of 16-bit codes, more than they need, or rows of a power of two
// would meet in the same lines of the cache.
constexpr std::int64_t stride_of(std::int64_t in) { return padded(in) + 32; }

// The rows of x as the products take them, and a worker's room to prepare one.
struct LinearInputs {
  std::int64_t stride = 0;     // elements from row to row
  float* values = nullptr;     // beside codes of weights, and panels of floats, a row a worker
  float* parameter = nullptr;  // of the layernorm, a row a worker
  RoundedRow rounded;          // beside int8 weights; the codes of all rows, beside panels a row a worker
  float* scale = nullptr;      // of its codes
  Int4PanelInputs nibbles;     // beside 4-bit weights
  FloatPanelInputs floats;     // beside panels of floats
  BytePanelInputs bytes;       // beside panels of codes
  char* panels = nullptr;  // beside weights in rows room for those that a task packs, a worker each; else for
                           // the last one as wide as the others, if it is not
};

inline bool goes_by_panels(const LinearParams& p) {
  return goes_by_float_panels(p) || goes_by_byte_panels(p) || has_int4_codes(p.weight_format);
}

// Of an output in panels that a task packs.
inline std::int64_t packed_row_bytes(const LinearParams& p) {
  if (goes_by_float_panels(p)) return p.in * static_cast<std::int64_t>(sizeof(float));
  const std::int64_t codes = weight_row_bytes(p.weight_format, p.dtype, p.in);
  return has_int4_codes(p.weight_format) ? codes + scale_row_bytes(p.weight_format, p.in) : codes;
}

// Of those panels, from one worker's to the next one's: further apart than prefetchers look ahead.
inline std::int64_t packed_bytes(const LinearParams& p) {
  return panels_to_pack(packed_row_bytes(p)) * kPanelOutputs * packed_row_bytes(p) + 4096;
}

// Whether products take the rows of x as they are.
inline bool keeps_rows(const LinearParams& p) {
  return p.weight_format == WeightFormat::kFloat && !goes_by_float_panels(p);
}

// Room in this thread's scratch memory; nothing is written.
inline LinearInputs take_scratch(const LinearParams& p, int workers) {
  LinearInputs inputs;
  inputs.stride = stride_of(p.in);
  std::int64_t bytes = 0;
  char* memory = nullptr;
  const auto cut = [&]<typename T>(T*& part, std::int64_t count) {
    if (memory != nullptr) part = reinterpret_cast<T*>(memory + bytes);
    bytes += padded(count * static_cast<std::int64_t>(sizeof(T)));
  };
  const auto cut_all = [&] {
    cut(inputs.values, (keeps_rows(p) ? p.rows : workers) * inputs.stride);
    cut(inputs.parameter, workers * inputs.stride);
    const std::int64_t blocks = activation_blocks(p.in);
    if (has_int8_codes(p.weight_format)) {
      cut(inputs.rounded.codes, (goes_by_byte_panels(p) ? workers : p.rows) * inputs.stride);
      cut(inputs.rounded.shift, workers * blocks);
      cut(inputs.rounded.whole, workers * blocks);
      cut(inputs.scale, p.rows);
    }
    if (goes_by_byte_panels(p)) {
      inputs.bytes.groups = byte_panel_groups(p);
      inputs.bytes.blocks = blocks;
      inputs.bytes.fine = p.fine_activations || goes_by_tiles(p);
      inputs.bytes.most_shift = activation_shift(activation_levels(p.in));
      cut(inputs.bytes.high, p.rows * blocks * kActivationBlock);
      cut(inputs.bytes.low, p.rows * blocks * kActivationBlock);
      cut(inputs.bytes.shift, p.rows * blocks);
      cut(inputs.bytes.whole, p.rows * blocks);
      cut(inputs.bytes.start, p.rows);
    }
    if (goes_by_float_panels(p)) {
      inputs.floats.groups = panel_groups(p.rows);
      inputs.floats.blocks = (p.in + kFloatPanelInputs - 1) / kFloatPanelInputs;
      cut(inputs.floats.values, p.rows * inputs.floats.blocks * kFloatPanelInputs);
    }
    if (has_int4_codes(p.weight_format)) {
      const std::int64_t groups = p.in / kInt4Group;
      inputs.nibbles.groups = int4_panel_groups(p);
      inputs.nibbles.blocks = groups;
      cut(inputs.nibbles.codes, p.rows * p.in);
      cut(inputs.nibbles.scale, p.rows * groups);
      cut(inputs.nibbles.start, p.rows * groups);
    }
    if (goes_by_panels(p)) {
      const std::int64_t workers_that_pack =
          lies_in_panels(p.weight_format) ? p.out_size % kPanelOutputs != 0 : worker_count(p.out_size);
      cut(inputs.panels, workers_that_pack * packed_bytes(p));
    }
  };
  cut_all();
  memory = static_cast<char*>(thread_scratch().reserve(bytes));
  bytes = 0;
  cut_all();
  return inputs;
}

inline void layer_norm(float* x, const LinearParams& p, float* parameter) {
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

// A row converted to float32, normalised and rounded as the products need it.
inline void prepare(const LinearParams& p, const LinearInputs& inputs, std::int64_t row, int worker) {
  const bool normalised = p.norm_weight != nullptr;
  const DType dtype = normalised ? DType::kFloat32 : p.dtype;
  float* x = inputs.values + (keeps_rows(p) ? row : worker) * inputs.stride;
  read_row(static_cast<const char*>(p.x) + row * p.in * element_bytes(dtype), dtype, p.in, x);
  std::fill(x + p.in, x + inputs.stride, 0.0F);
  if (normalised) layer_norm(x, p, inputs.parameter + worker * inputs.stride);
  if (goes_by_float_panels(p)) inputs.floats.take(x, row);
  if (has_int4_codes(p.weight_format)) inputs.nibbles.take(x, row);
  if (!has_int8_codes(p.weight_format)) return;
  const bool as_bytes = goes_by_byte_panels(p);
  const std::int64_t blocks = activation_blocks(p.in);
  const RoundedRow rounded = {inputs.rounded.codes + (as_bytes ? worker : row) * inputs.stride,
                              inputs.rounded.shift + worker * blocks, inputs.rounded.whole + worker * blocks};
  inputs.scale[row] = round_row(x, p.in, p.fine_activations, rounded);
  if (as_bytes) inputs.bytes.take(rounded, row);
}

// All rows, in this thread's scratch memory.
inline LinearInputs prepare_inputs(const LinearParams& p) {
  const int workers = std::max(worker_count(std::min(p.rows, p.rows * p.in / kInputsPerWorker)), 1);
  const LinearInputs inputs = take_scratch(p, workers);
  parallel_tasks(p.rows, workers,
                 [&](std::int64_t row, std::int64_t, int worker) { prepare(p, inputs, row, worker); });
  return inputs;
}

}  // namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE
