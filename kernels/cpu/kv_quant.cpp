// Quantises rows to int8 codes and scales, and back.
#include "kernels/kv_quant.h"

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/rows.h"

namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE {
namespace {

constexpr std::int64_t kRowsPerTask = 64;

// Runs row(index, worker's scratch of `width` floats) for every row.
template <typename Row>
void for_each_row(std::int64_t rows, std::int64_t width, Row&& row) {
  const std::int64_t tasks = (rows + kRowsPerTask - 1) / kRowsPerTask;
  const int workers = worker_count(tasks);
  const std::int64_t padded = (width + 15) / 16 * 16;
  auto* scratch = static_cast<float*>(
      thread_scratch().reserve(workers * padded * static_cast<std::int64_t>(sizeof(float))));
  parallel_tasks(tasks, workers, [&](std::int64_t task, std::int64_t, int worker) {
    const std::int64_t end = (task + 1) * kRowsPerTask < rows ? (task + 1) * kRowsPerTask : rows;
    for (std::int64_t i = task * kRowsPerTask; i < end; ++i) row(i, scratch + worker * padded);
  });
}

}  // namespace

void quantize_kv(const QuantizeParams& p) {
  const std::int64_t row_bytes = p.width * element_bytes(p.x_dtype);
  for_each_row(p.rows, p.width, [&](std::int64_t row, float* values) {
    read_row(static_cast<const char*>(p.x) + row * row_bytes, p.x_dtype, p.width, values);
    p.scale[row] = quantize_row(values, p.width, p.codes + row * p.width);
  });
}

void dequantize_kv(const DequantizeParams& p) {
  const std::int64_t row_bytes = p.width * element_bytes(p.out_dtype);
  for_each_row(p.rows, p.width, [&](std::int64_t row, float* values) {
    for (std::int64_t i = 0; i < p.width; ++i)
      values[i] = static_cast<float>(p.codes[row * p.width + i]) * p.scale[row];
    write_row(values, p.out_dtype, p.width, static_cast<char*>(p.out) + row * row_bytes);
  });
}

}  // namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE
