// Several rows of x times the weights of a task: in groups that share a weight in a register, and fetch the
// next task's weights on the way.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/cpu/linear_inputs.h"
#include "kernels/cpu/linear_outputs.h"
#include "kernels/cpu/linear_products.h"
#include "kernels/cpu/row_groups.h"

namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE {

// At most, that share a weight in a register.
constexpr int kRowsAtOnce = kLanes == 16 ? 5 : 4;
// Of rows beside int8 codes; with more than these most products come from the caches, and streams gain
// nothing.
constexpr std::int64_t kMostRowsByStreams = 12;
// Weight rows at once beside kRowsAtOnce rows of x, by how many registers there are.
constexpr int kOutputsAtOnce = kLanes == 16 ? 4 : 2;

// The rows of x that the products with weights of type W take.
template <typename W>
const float* rows_for(const W*, const LinearInputs& inputs) {
  return inputs.values;
}
inline const std::int16_t* rows_for(const std::int8_t*, const LinearInputs& inputs) {
  return inputs.rounded.codes;
}

// Whether groups of rows fetch the next task's weights. Where there is but one, four streams of float32 are
// left to the hardware, which reads them faster; not so streams half as long.
template <typename W>
bool fetches(const RowGroups& groups) {
  return groups.count > 1 || kOutputsAtOnce < 4 || !std::is_same_v<W, float>;
}

// What a group of rows fetches of the next task's weights: of `count` from `next` on, with as many of its
// own, `outputs` at once; half a line or more in each step of the products. Groups take shares, so that
// memory is read all the while.
template <typename W>
Ahead share_of_next_task(std::int64_t groups, std::int64_t group, int outputs, const W* next,
                         std::int64_t count) {
  const auto* data = reinterpret_cast<const char*>(next);
  constexpr auto kElement = static_cast<std::int64_t>(sizeof(W));
  const std::int64_t step = outputs * kStepElements<W> * kElement;
  const std::int64_t most_shares = std::max<std::int64_t>(step / (kCacheLine / 2), 1);
  const std::int64_t every = (groups + most_shares - 1) / most_shares;  // of the groups one fetches
  if (group % every != 0) return {data, 0};
  const std::int64_t shares = (groups + every - 1) / every, share = group / every;
  return {data + count * kElement * share / shares, step / shares};
}

// Outputs [begin, end) of a group of kRows rows, without bias and the scales of codes:
// sums[row][output - begin]. kStreams: read as kOutputs streams far from each other, each in the order of
// memory; else weight rows that are neighbours share a tile.
template <int kRows, int kOutputs, bool kStreams, typename W>
void multiply(const LinearParams& p, const LinearInputs& inputs, const RowGroups& groups, std::int64_t group,
              std::int64_t begin, std::int64_t end, float (*sums)[kOutputsPerTask]) {
  const W* weight = static_cast<const W*>(p.weight) + begin * p.in;
  const auto* x = rows_for(weight, inputs) + groups.begin(group) * inputs.stride;
  const std::int64_t count = end - begin, tiles = count / kOutputs;
  constexpr int kStepBytes = kOutputs * static_cast<int>(kStepElements<W> * sizeof(W));
  constexpr int kMostLines = std::max(kStepBytes / static_cast<int>(kCacheLine), 1);
  Ahead ahead;
  if (kOutputs > 1 && fetches<W>(groups))
    ahead = share_of_next_task(groups.count, group, kOutputs, weight + count * p.in, kOutputs * p.in);
  for (std::int64_t t = 0; t < tiles; ++t) {
    float tile[kRows][kOutputs];
    if constexpr (kStreams) {
      const W* rows = weight + t * p.in;
      const LinesAhead<kMostLines> lines{ahead.data, ahead.step};
      if (kMostLines > 2 && ahead.step == 0)
        products_apart(rows, tiles * p.in, x, inputs.stride, p.in, NothingAhead{}, tile);
      else
        products_apart(rows, tiles * p.in, x, inputs.stride, p.in, lines, tile);
    } else {
      const W* rows = weight + t * kOutputs * p.in;
      products(rows, x, inputs.stride, p.in, LinesAhead<1>{ahead.data, ahead.step}, tile);
    }
    if (kOutputs > 1) ahead.data += kOutputs * p.in * static_cast<std::int64_t>(sizeof(W));
    for (int row = 0; row < kRows; ++row)
      for (int i = 0; i < kOutputs; ++i)
        sums[row][kStreams ? t + i * tiles : t * kOutputs + i] = tile[row][i];
  }
  for (std::int64_t o = tiles * kOutputs; o < count; ++o) {
    float column[kRows][1];
    products(weight + o * p.in, x, inputs.stride, p.in, NothingAhead{}, column);
    for (int row = 0; row < kRows; ++row) sums[row][o] = column[row][0];
  }
}

// Which of the two, and how.
template <int kRows, typename W>
void multiply(const LinearParams& p, const LinearInputs& inputs, const RowGroups& groups, std::int64_t group,
              std::int64_t begin, std::int64_t end, float (*sums)[kOutputsPerTask]) {
  if constexpr (kRows == 1)
    multiply<kRows, 1, false, W>(p, inputs, groups, group, begin, end, sums);
  else if (!std::is_same_v<W, std::int8_t> || p.rows <= kMostRowsByStreams)
    multiply<kRows, kOutputsAtOnce, true, W>(p, inputs, groups, group, begin, end, sums);
  else if constexpr (std::is_same_v<W, std::int8_t>)
    multiply<kRows, kOutputsAtOnce, false, W>(p, inputs, groups, group, begin, end, sums);
}

template <typename W>
void run_task(const LinearParams& p, const LinearInputs& inputs, std::int64_t begin, std::int64_t end) {
  alignas(64) float sums[kRowsAtOnce][kOutputsPerTask] = {};
  // For all groups but the first the weights come from the caches.
  const RowGroups groups = {p.rows, kRowsAtOnce};
  const TaskOutputs outputs(p, inputs, begin, end - begin);
  for (std::int64_t group = 0; group < groups.count; ++group) {
    const std::int64_t first = groups.begin(group), last = groups.begin(group + 1);
    expect_outputs(p, first, last, begin, end);
    with_rows<kRowsAtOnce>(last - first,
                           [&](auto rows) { multiply<rows, W>(p, inputs, groups, group, begin, end, sums); });
    for (std::int64_t row = first; row < last; ++row) outputs.finish(row, sums[row - first]);
  }
}

}  // namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE
