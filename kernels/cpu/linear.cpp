// Rows times a weight matrix. Weights are read from memory once. Few rows of x wait for it, and read a few
// streams a core, each in the order of memory, as hardware prefetchers follow best; many rows compute, and
// fetch the next task's weights on the way.
#include "kernels/linear.h"

#include <algorithm>
#include <type_traits>
#include <vector>

#include "kernels/cpu/linear_groups.h"
#include "kernels/cpu/linear_inputs.h"
#include "kernels/cpu/linear_outputs.h"
#include "kernels/cpu/linear_panel_tasks.h"
#include "kernels/cpu/linear_products.h"
#include "kernels/cpu/parallel.h"
#include "kernels/weight_pack.h"

namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE {
namespace {

// Of weights that one row reads in one go, two at a time, if that leaves two tasks or more for each worker.
constexpr std::int64_t kMostStretchBytes = 64 << 10;

// The one row of x with two stretches of outputs, `most` at most, from begins[0] and begins[1] on.
template <typename W, bool kFetched>
void run_pair(const LinearParams& p, const LinearInputs& inputs, const std::int64_t (&begins)[2],
              std::int64_t most) {
  const W* weight = static_cast<const W*>(p.weight);
  const auto* x = rows_for(weight, inputs);
  std::int64_t counts[2];
  for (int s = 0; s < 2; ++s) counts[s] = std::clamp<std::int64_t>(p.out_size - begins[s], 0, most);
  alignas(64) float sums[2][kOutputsPerTask];
  std::int64_t done = 0;
  for (; done + kPair <= std::min(counts[0], counts[1]); done += kPair) {
    float tile[2][kPair];
    paired_products<kFetched>({weight + (begins[0] + done) * p.in, weight + (begins[1] + done) * p.in}, x,
                              p.in, tile);
    for (int s = 0; s < 2; ++s) std::copy_n(tile[s], kPair, sums[s] + done);
  }
  for (int s = 0; s < 2; ++s) {
    for (std::int64_t o = done; o < counts[s]; ++o) {
      float sum[1][1];
      products(weight + (begins[s] + o) * p.in, x, inputs.stride, p.in, NothingAhead{}, sum);
      sums[s][o] = sum[0][0];
    }
    if (counts[s] > 0) TaskOutputs(p, inputs, begins[s], counts[s]).finish(0, sums[s]);
  }
}

// Whether the products of one row go by run_pair.
template <typename W>
bool reads_pairs(const LinearParams& p) {
  return p.rows == 1 && (!std::is_same_v<W, std::int8_t> || p.in % kCodeLanes == 0);
}

// Of one stream, if a task reads pairs of them.
std::int64_t outputs_per_task(const LinearParams& p, std::int64_t row_bytes, bool pairs) {
  if (!pairs) return std::clamp(kTaskBytes / row_bytes / 8 * 8, std::int64_t{8}, kOutputsPerTask);
  const bool long_rows = kOutputsPerTask * row_bytes > kMostStretchBytes;
  const bool few_outputs = p.out_size < 4 * kOutputsPerTask * worker_count(p.out_size);
  return long_rows || few_outputs ? kOutputsPerTask / 2 : kOutputsPerTask;
}

void multiply_all(const LinearParams& p) {
  const LinearInputs inputs = prepare_inputs(p);
  if (has_int4_codes(p.weight_format)) return multiply_by_int4_panels(p, inputs);
#if defined(KVFUSE_VNNI)
  if (goes_by_byte_panels(p)) return multiply_by_byte_panels(p, inputs);
#endif
  if (goes_by_float_panels(p)) return multiply_by_float_panels(p, inputs);
  const std::int64_t row_bytes =
      weight_row_bytes(p.weight_format, p.dtype, p.in) + scale_row_bytes(p.weight_format, p.in);
  with_cache_type(p.weight_format == WeightFormat::kInt8Rows ? DType::kInt8 : p.dtype, [&](auto element) {
    using W = decltype(element);
    const bool pairs = reads_pairs<W>(p), fetched = is_intel();
    const std::int64_t stretch = outputs_per_task(p, row_bytes, pairs);
    const std::int64_t outputs = pairs ? 2 * stretch : stretch;  // a task
    const std::int64_t tasks = (p.out_size + outputs - 1) / outputs;
    const int workers = worker_count(std::min(tasks, p.out_size * row_bytes / kBytesPerWorker));
    parallel_tasks(tasks, workers, [&](std::int64_t task, std::int64_t, int) {
      const std::int64_t begin = task * stretch;
      if (pairs) {
        const auto run = fetched ? run_pair<W, true> : run_pair<W, false>;
        return run(p, inputs, {begin, begin + tasks * stretch}, stretch);
      }
      const std::int64_t end = std::min(begin + stretch, p.out_size);
      run_task<W>(p, inputs, begin, end);
    });
  });
}

// By the codes of panels in rows again. Panels are for byte products; elsewhere they only have to work.
void multiply_unpacked(LinearParams p) {
  const PanelMatrix matrix = {.panels = p.weight_format, .out_size = p.out_size, .in = p.in};
  std::vector<std::int8_t> rows(static_cast<std::size_t>(p.out_size * p.in));
  for (std::int64_t output = 0; output < p.out_size; ++output)
    unpack_row(p.weight, matrix, output, rows.data() + output * p.in);
  p.weight = rows.data();
  p.weight_format = WeightFormat::kInt8Rows;
  linear(p);
}

}  // namespace

void linear(const LinearParams& p) {
  if (!kHasByteProducts && p.weight_format == WeightFormat::kInt8Panels) return multiply_unpacked(p);
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
