// Weights to codes, in plain loops that the compiler turns into vectors. No sum depends on how wide
// those are, and multiplications and additions stay separate (-ffp-contract=off), so that every instruction
// set gives the same codes.
#include "kernels/weight_quant.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/cpu/parallel.h"
#include "kernels/half.h"

namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE {
namespace {

constexpr std::int64_t kRowsPerTask = 16;
constexpr int kGroup = static_cast<int>(kInt4Group);

// For |x| <= 2^22, ties to even.
inline float rounded(float x) {
  constexpr float kShift = 12582912.0F;  // 1.5 * 2^23: leaves no bits for a fraction
  return (x + kShift) - kShift;
}
inline float clamped(float x, float low, float high) {
  const float raised = x < low ? low : x;
  return raised > high ? high : raised;
}

struct Range {
  float least, most;
  float absmax() const { return std::fabs(std::max(most, -least)); }
};

// NaN anywhere makes `most` NaN; infinities are an end of the range.
Range range_of(const float* x, std::int64_t count) {
  constexpr std::int64_t kStep = 16;  // sums that do not wait for one another
  float least[kStep], most[kStep], spoilt[kStep] = {};
  std::fill_n(least, kStep, x[0]);
  std::fill_n(most, kStep, x[0]);
  const auto take = [&](const float* from, std::int64_t k) {
    least[k] = from[k] < least[k] ? from[k] : least[k];
    most[k] = from[k] > most[k] ? from[k] : most[k];
    spoilt[k] += from[k] * 0.0F;
  };
  std::int64_t i = 0;
  for (; i + kStep <= count; i += kStep)
    for (std::int64_t k = 0; k < kStep; ++k) take(x + i, k);
  for (std::int64_t k = 0; i + k < count; ++k) take(x + i, k);
  Range range{x[0], x[0]};
  for (std::int64_t k = 0; k < kStep; ++k)
    range = {std::min(range.least, least[k]), std::max(range.most, most[k])};
  for (const float term : spoilt) range.most += term;
  return range;
}

// Whether the row can be kept.
bool quantize_int8_row(const float* x, std::int64_t in, std::int8_t* codes, float* scale) {
  const float absmax = range_of(x, in).absmax();
  if (!std::isfinite(absmax)) return false;
  const float step = absmax / 127.0F;
  *scale = step;
  if (step == 0.0F) std::fill_n(codes, in, std::int8_t{0});
  for (std::int64_t i = 0; step != 0.0F && i < in; ++i)
    codes[i] =
        static_cast<std::int8_t>(static_cast<std::int32_t>(rounded(clamped(x[i] / step, -127.0F, 127.0F))));
  return true;
}

// A group rounded to multiples of a scale.
struct Int4Fit {
  float scale = 0.0F;  // that a float16 holds
  float error = INFINITY;
  float codes[kGroup] = {};
};

template <int kHalf = kGroup / 2>
inline float sum(float (&terms)[kGroup]) {
  for (int i = 0; i < kHalf; ++i) terms[i] += terms[i + kHalf];
  if constexpr (kHalf > 1) return sum<kHalf / 2>(terms);
  return terms[0];
}

// Takes the place of `best` if it is nearer to x. `scale` is rounded to a float16.
void try_scale(const float* x, float scale, Int4Fit& best) {
  Int4Fit fit{.scale = to_float(from_float<Float16>(scale))};
  if (fit.scale == 0.0F || !std::isfinite(fit.scale)) return;
  const float inverse = 1.0F / fit.scale;
  float squares[kGroup];
  for (int i = 0; i < kGroup; ++i) {
    fit.codes[i] = rounded(clamped(x[i] * inverse, -8.0F, 7.0F));
    const float difference = x[i] - fit.codes[i] * fit.scale;
    squares[i] = difference * difference;
  }
  fit.error = sum(squares);
  if (fit.error < best.error) best = fit;
}

// The scale that suits the codes of `fit` best.
float least_squares_scale(const float* x, const Int4Fit& fit) {
  float products[kGroup], squares[kGroup];
  for (int i = 0; i < kGroup; ++i) {
    products[i] = x[i] * fit.codes[i];
    squares[i] = fit.codes[i] * fit.codes[i];
  }
  return sum(products) / sum(squares);
}

void pack(const Int4Fit& fit, std::uint8_t* group, Float16* scale) {
  *scale = from_float<Float16>(fit.scale);
  for (int m = 0; m < kGroup / 2; ++m)
    group[m] = static_cast<std::uint8_t>(static_cast<int>(fit.codes[m]) + 8 +
                                         16 * (static_cast<int>(fit.codes[16 + m]) + 8));
}

bool quantize_int4_group(const float* x, std::uint8_t* group, Float16* scale) {
  // The codes to which the largest element goes. -8 is one more than the other end has; beyond it the element
  // is cut, for the good of the others.
  constexpr float kExtremes[] = {-8.0F, -7.25F, -7.75F, -8.25F, -8.75F, -9.25F, -9.75F, -10.5F};
  const Range range = range_of(x, kGroup);
  const float extreme = -range.least > range.most ? range.least : range.most;
  if (!std::isfinite(range.absmax())) return false;
  Int4Fit best{.error = INFINITY};
  for (const float code : kExtremes) try_scale(x, extreme / code, best);
  if (best.scale == 0.0F && std::fabs(extreme) > 1.0F) return false;
  if (best.scale != 0.0F) try_scale(x, least_squares_scale(x, best), best);
  pack(best, group, scale);
  return true;
}

bool quantize_int4_row(const float* x, std::int64_t in, std::uint8_t* codes, Float16* scales) {
  for (std::int64_t g = 0; g < in / kInt4Group; ++g)
    if (!quantize_int4_group(x + g * kInt4Group, codes + g * kInt4GroupBytes, scales + g)) return false;
  return true;
}

// Calls f(row) for all rows.
template <typename F>
void for_rows(std::int64_t rows, F&& f) {
  const std::int64_t tasks = (rows + kRowsPerTask - 1) / kRowsPerTask;
  parallel_tasks(tasks, worker_count(tasks), [&](std::int64_t task, std::int64_t, int) {
    const std::int64_t end = std::min((task + 1) * kRowsPerTask, rows);
    for (std::int64_t row = task * kRowsPerTask; row < end; ++row) f(row);
  });
}

}  // namespace

std::optional<std::int64_t> quantize_weight(const QuantizeWeightParams& p) {
  std::atomic<std::int64_t> first_bad{p.out_size};
  for_rows(p.out_size, [&](std::int64_t row) {
    const float* x = p.weight + row * p.in;
    char* codes = static_cast<char*>(p.codes) + row * weight_row_bytes(p.format, DType::kFloat32, p.in);
    char* scale = static_cast<char*>(p.scale) + row * scale_row_bytes(p.format, p.in);
    const bool kept = p.format == WeightFormat::kInt8Rows
                          ? quantize_int8_row(x, p.in, reinterpret_cast<std::int8_t*>(codes),
                                              reinterpret_cast<float*>(scale))
                          : quantize_int4_row(x, p.in, reinterpret_cast<std::uint8_t*>(codes),
                                              reinterpret_cast<Float16*>(scale));
    std::int64_t known = first_bad.load(std::memory_order_relaxed);
    while (!kept && row < known && !first_bad.compare_exchange_weak(known, row)) {
    }
  });
  if (first_bad == p.out_size) return std::nullopt;
  return first_bad.load();
}

}  // namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE
