// Several rows of x times the weights of a task: in groups that share a weight in a register, and fetch the
// next task's weights on the way.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <type_traits>

#include "kernels/cpu/linear_inputs.h"
#include "kernels/cpu/linear_outputs.h"
#include "kernels/cpu/linear_products.h"
#include "kernels/cpu/row_groups.h"

namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE {
namespace {  // of linear.cpp, which alone includes this: otherwise 16 rows take 1.05 to 1.1 times as long
             // (GCC 12)

// At most, that share a weight in a register; beside INT4, and beside float32 from the caches, one more.
constexpr int kRowsAtOnce = kLanes == 16 ? 5 : 4;
constexpr int kMostRowsAtOnce = kLanes == 16 ? 6 : 4;
// Of rows; with more than these most products come from the caches, and streams gain nothing.
constexpr std::int64_t kMostRowsByStreams = 12;
// Weight rows at once beside kRowsAtOnce rows of x, by how many registers there are.
constexpr int kOutputsAtOnce = kLanes == 16 ? 4 : 2;
// Of a group of rows of x, that the first-level cache holds beside weights. Longer ones are gone through in
// stretches of so many inputs, each with all outputs of a task and up to so many groups of rows.
constexpr std::int64_t kMostInputsAtOnce = 1536;
constexpr std::int64_t kStretchInputs = 96;
constexpr std::int64_t kStretchGroups = 3;
constexpr std::int64_t kStretchRows = kStretchGroups * kMostRowsAtOnce;

// The rows of x that the products with weights of type W take.
template <typename W>
const float* rows_for(const W*, const LinearInputs& inputs) {
  return inputs.values;
}
const std::int16_t* rows_for(const std::int8_t*, const LinearInputs& inputs) { return inputs.rounded.codes; }

// The groups of rows of x beside weights of type W.
template <typename W>
RowGroups groups_of(std::int64_t rows) {
  const bool floats_from_caches = std::is_same_v<W, float> && rows > kMostRowsByStreams;
  const bool most = std::is_same_v<W, Int4Weight> || floats_from_caches;
  return {rows, most ? kMostRowsAtOnce : kRowsAtOnce};
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
  if (group < 0 || group % every != 0) return {data, 0};
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
      if (kMostLines <= 2 || ahead.step <= kCacheLine)
        products(rows, x, inputs.stride, p.in, LinesAhead<1>{ahead.data, ahead.step}, tile);
      else
        products(rows, x, inputs.stride, p.in, LinesAhead<2>{ahead.data, ahead.step}, tile);
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

// The same, scales included.
template <int kRows>
void multiply_int4(const LinearParams& p, const LinearInputs& inputs, std::int64_t first, std::int64_t begin,
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

// Which of the two, and how.
template <int kRows, typename W>
void multiply(const LinearParams& p, const LinearInputs& inputs, const RowGroups& groups, std::int64_t group,
              std::int64_t begin, std::int64_t end, float (*sums)[kOutputsPerTask]) {
  if constexpr (std::is_same_v<W, Int4Weight>)
    multiply_int4<kRows>(p, inputs, groups.begin(group), begin, end, sums);
  else if constexpr (kRows == 1)
    multiply<kRows, 1, false, W>(p, inputs, groups, group, begin, end, sums);
  else if (p.rows <= kMostRowsByStreams)
    multiply<kRows, kOutputsAtOnce, true, W>(p, inputs, groups, group, begin, end, sums);
  else
    multiply<kRows, kOutputsAtOnce, false, W>(p, inputs, groups, group, begin, end, sums);
}

template <typename W>
void run_task(const LinearParams& p, const LinearInputs& inputs, std::int64_t begin, std::int64_t end) {
  alignas(64) float sums[kMostRowsAtOnce][kOutputsPerTask] = {};
  // For all groups but the first the weights come from the caches.
  const auto groups = groups_of<W>(p.rows);
  for (std::int64_t group = 0; group < groups.count; ++group) {
    const std::int64_t first = groups.begin(group), last = groups.begin(group + 1);
    expect_outputs(p, first, last, begin, end);
    with_rows<kMostRowsAtOnce>(
        last - first, [&](auto rows) { multiply<rows, W>(p, inputs, groups, group, begin, end, sums); });
    for (std::int64_t row = first; row < last; ++row)
      finish(p, inputs, row, begin, end - begin, sums[row - first]);
  }
}

// Whether rows of x go by stretches of their inputs. With shorter vectors products take longer than x does.
bool goes_by_stretches(const LinearParams& p) {
  return kLanes == 16 && p.weight_format == WeightFormat::kFloat && p.rows > kMostRowsByStreams &&
         p.in > kMostInputsAtOnce && p.in % kLanes == 0;
}

// A task whose sums are put by and taken up again from stretch to stretch of the inputs, so that x stays in
// the first-level cache: the same chains of sums as without.
template <typename W>
void run_task_by_stretches(const LinearParams& p, const LinearInputs& inputs, std::int64_t begin,
                           std::int64_t end) {
  Vec chains[kOutputsPerTask / kOutputsAtOnce][kStretchRows][kOutputsAtOnce];
  alignas(64) float sums[kStretchRows][kOutputsPerTask];
  const W* weight = static_cast<const W*>(p.weight) + begin * p.in;
  const std::int64_t count = end - begin, tiles = count / kOutputsAtOnce;
  const auto groups = groups_of<W>(p.rows);
  // Of three groups the first, whose products miss the most, fetches nothing.
  const std::int64_t idle = groups.count == kStretchGroups ? 1 : 0;
  for (std::int64_t first_group = 0; first_group < groups.count; first_group += kStretchGroups) {
    const std::int64_t last_group = std::min(first_group + kStretchGroups, groups.count);
    const std::int64_t first = groups.begin(first_group), last = groups.begin(last_group);
    expect_outputs(p, first, last, begin, end);
    std::fill_n(chains[0][0], tiles * kStretchRows * kOutputsAtOnce, zero());
    struct Group {
      std::int64_t first;
      std::int64_t rows;
      Ahead share;  // as beside the first tile's first stretch
    } parts[kStretchGroups];
    for (std::int64_t g = first_group; g < last_group; ++g)
      parts[g - first_group] = {groups.begin(g) - first, groups.begin(g + 1) - groups.begin(g), {}};
    for (std::int64_t i = 0; i < p.in; i += kStretchInputs) {
      const std::int64_t stretch = std::min(kStretchInputs, p.in - i);
      if (i == 0 || stretch < kStretchInputs)  // seldom: divisions take as long as products
        for (std::int64_t g = first_group; g < last_group; ++g)
          parts[g - first_group].share = share_of_next_task(groups.count - idle, g - idle, kOutputsAtOnce,
                                                            weight + count * p.in, stretch * kOutputsAtOnce);
      for (std::int64_t t = 0; t < tiles; ++t) {
        const std::int64_t tile = t * kOutputsAtOnce * p.in;
        const std::int64_t fetched = (tile + i * kOutputsAtOnce) * static_cast<std::int64_t>(sizeof(W));
        const W* w = weight + tile + i;
        const float* x = inputs.values + first * inputs.stride + i;
        for (const Group& part : std::span(parts, last_group - first_group))
          with_rows<kMostRowsAtOnce>(part.rows, [&](auto rows) {
            go_on<rows>(w, p.in, x + part.first * inputs.stride, inputs.stride, stretch,
                        LinesAhead<2>{part.share.data + fetched, part.share.step}, chains[t] + part.first);
          });
      }
    }
    for (std::int64_t t = 0; t < tiles; ++t) {
      float tile[kStretchRows][kOutputsAtOnce];
      sum_lanes(chains[t], tile);
      for (std::int64_t row = first; row < last; ++row)
        std::copy_n(tile[row - first], kOutputsAtOnce, sums[row - first] + t * kOutputsAtOnce);
    }
    for (std::int64_t row = first; row < last; ++row) {
      for (std::int64_t o = tiles * kOutputsAtOnce; o < count; ++o) {
        float sum[1][1];
        products(weight + o * p.in, inputs.values + row * inputs.stride, inputs.stride, p.in, NothingAhead{},
                 sum);
        sums[row - first][o] = sum[0][0];
      }
      finish(p, inputs, row, begin, count, sums[row - first]);
    }
  }
}

}  // namespace
}  // namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE
