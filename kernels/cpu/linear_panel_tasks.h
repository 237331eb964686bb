// Linear layers by panels of weights, as tasks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/linear_byte_panels.h"
#include "kernels/cpu/linear_float_panels.h"
#include "kernels/cpu/linear_inputs.h"
#include "kernels/cpu/linear_int4_panels.h"
#include "kernels/cpu/linear_int4_tiles.h"
#include "kernels/cpu/linear_outputs.h"
#include "kernels/cpu/linear_tiles.h"
#include "kernels/cpu/parallel.h"

namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE {

// Panels that a task goes through one behind the other, at most; TaskOutputs takes no more.
constexpr std::int64_t kPanelsOfTask = kOutputsPerTask / kPanelOutputs;
static_assert(panels_to_pack(1) <= kPanelsOfTask);

// Packed weights are floats of some type, the codes of kInt8Panels: std::uint8_t, or Int4Weights.
template <typename W>
constexpr bool kAreCodes = std::is_same_v<W, std::uint8_t>;
template <typename W>
constexpr bool kAreInt4 = std::is_same_v<W, Int4Weights>;
template <typename W>
using WeightsAt = std::conditional_t<kAreInt4<W>, Int4Weights, const W*>;
template <typename W>
using PanelSum = std::conditional_t<kAreCodes<W>, std::int32_t, float>;
// What a task packs weights in rows to.
template <typename W>
using Packed = std::conditional_t<std::is_same_v<W, std::int8_t>, std::uint8_t,
                                  std::conditional_t<kAreInt4<W>, Int4Weights, float>>;

// Rows that wait for memory rather than compute read several streams. Most hardware follows them best alone,
// two of codes and four of floats; Intel's leaves a core waiting, unless each is fetched a little ahead
// (kStreamAheadBytes).
constexpr std::int64_t kMostStreamRows = 2;
constexpr int kMostStreams = 4;
template <typename W, bool kFetched>
constexpr int kPanelStreams = (kAreCodes<W> || kAreInt4<W>)&&(!kFetched || kLanes < 16) ? 2 : kMostStreams;
// Inputs that several groups of rows go through in turn: a task's weights of so many stay in the second-level
// cache, a group's x in the first.
template <typename W>
constexpr std::int64_t kInputsOfBlock = kAreCodes<W> || kAreInt4<W> ? 3072 : 768;
// Rows that go through a panel together, and those that go through as many as kPanelsTogether.
template <typename W>
constexpr int kMostRowsOfPanel = kAreInt4<W> ? kMostInt4PanelRows : kMostPanelRows;
template <typename W>
constexpr int kMostRowsOfPanels = kAreInt4<W> ? kMostInt4PanelRows : kMostWidePanelRows;
template <typename W>
constexpr int kPanelsTogether = kAreInt4<W> ? 1 : kWidePanels;
// How far ahead weights of one stream are fetched.
constexpr std::int64_t kAheadBytes = 8 << 10;

// Whole panels, as streams of `region` panels each, of which a task takes kPanelsOfTask at most at once.
// There are as many tasks for each worker.
struct PanelTasks {
  std::int64_t panels, streams, region, count;

  static PanelTasks of(std::int64_t panels, std::int64_t most_streams) {
    const std::int64_t workers = std::max(worker_count(panels), 1);
    const std::int64_t streams = panels >= most_streams * workers ? most_streams : 1;
    const std::int64_t region = (panels + streams - 1) / streams;
    const std::int64_t least = std::max((region + kPanelsOfTask - 1) / kPanelsOfTask, 4 * workers);
    return {panels, streams, region, std::min((least + workers - 1) / workers * workers, region)};
  }

  // Those of a stream that belong to `task`.
  std::int64_t begin(std::int64_t stream, std::int64_t task) const {
    return std::min(stream * region + region * task / count, panels);
  }
};

// From output `begin` on.
template <typename W>
WeightsAt<W> weights_at(const LinearParams& p, std::int64_t begin) {
  if constexpr (kAreInt4<W>)
    return Int4Weights{static_cast<const std::uint8_t*>(p.weight),
                       static_cast<const Float16*>(p.weight_scale)} +
           begin * p.in;
  else
    return static_cast<const W*>(p.weight) + begin * p.in;
}

// What lies so many bytes behind the weights, or their codes.
template <typename W>
const char* ahead_of(const W* weight, std::int64_t bytes) {
  return reinterpret_cast<const char*>(weight) + bytes;
}
inline const char* ahead_of(const Int4Weights& weight, std::int64_t bytes) {
  return ahead_of(weight.codes, bytes);
}

template <typename W>
constexpr std::int64_t bytes_of(std::int64_t weights) {
  return kAreInt4<W> ? weights / 2 : weights * static_cast<std::int64_t>(sizeof(W));
}

template <typename W>
const auto& rows_beside(const LinearInputs& inputs) {
  if constexpr (kAreInt4<W>)
    return inputs.nibbles;
  else if constexpr (kAreCodes<W>)
    return inputs.bytes;
  else
    return inputs.floats;
}

// Whether a group goes panel by panel: both parts of all of x take the registers that a second panel would.
template <typename W>
bool takes_single_panels(const LinearInputs& inputs) {
  return kAreCodes<W> && inputs.bytes.fine;
}

// Few rows, which are one group, with a task's panels of all streams.
template <typename W, bool kFetched>
void run_streams(const LinearParams& p, const LinearInputs& inputs, const PanelTasks& tasks,
                 std::int64_t task) {
  constexpr int kStreams = kPanelStreams<W, kFetched>;
  constexpr Fetch kFetch = kFetched ? Fetch::kSoon : Fetch::kNothing;
  alignas(64) PanelSum<W> sums[kStreams][kMostStreamRows][kOutputsPerTask];
  constexpr std::int64_t kApart = kMostStreamRows * kOutputsPerTask;  // of the sums of streams
  const std::int64_t size = kPanelOutputs * p.in;                     // of a panel
  const auto x = rows_beside<W>(inputs).at(0, 0);
  const auto count = [&](std::int64_t stream) {
    return tasks.begin(stream, task + 1) - tasks.begin(stream, task);
  };
  with_rows<kMostStreamRows>(p.rows, [&](auto rows) {
    const auto add = [&](auto streams, std::int64_t first, std::int64_t i) {
      const WeightsAt<W> weight = weights_at<W>(p, (tasks.begin(first, task) + i) * kPanelOutputs);
      add_panel_products<rows, streams, kFetch>(
          weight, tasks.region * size, ahead_of(weight, kStreamAheadBytes), x, p.in, true,
          {sums[first][0] + i * kPanelOutputs, kOutputsPerTask, kApart});
    };
    const std::int64_t together = count(kStreams - 1);  // the last stream has the fewest
    for (std::int64_t i = 0; i < together; ++i) add(std::integral_constant<int, kStreams>{}, 0, i);
    for (std::int64_t s = 0; s < kStreams; ++s)
      for (std::int64_t i = together; i < count(s); ++i) add(std::integral_constant<int, 1>{}, s, i);
  });
  for (std::int64_t s = 0; s < kStreams; ++s) {
    if (count(s) == 0) continue;
    const TaskOutputs outputs(p, inputs, tasks.begin(s, task) * kPanelOutputs, count(s) * kPanelOutputs);
    for (std::int64_t row = 0; row < p.rows; ++row) outputs.finish(row, sums[s][row]);
  }
}

// sums[row] = the products of all rows with `panels` panels.
template <typename W, Fetch kFetch>
void sum_panels(const LinearParams& p, const LinearInputs& inputs, WeightsAt<W> weight, const char* fetched,
                std::int64_t panels, PanelSum<W> (*sums)[kOutputsPerTask]) {
  if constexpr (kHasTiles && kAreCodes<W>)
    if (goes_by_tiles(p)) return sum_tiles(inputs.bytes, p.in, weight, fetched, panels, sums);
  if constexpr (kHasTiles && kAreInt4<W>)
    if (goes_by_int4_tiles(p)) return sum_tiles(inputs.nibbles, p.in, weight, fetched, panels, sums);
  const auto& x = rows_beside<W>(inputs);
  const RowGroups& groups = x.groups;
  const std::int64_t size = kPanelOutputs * p.in;
  const std::int64_t most = groups.count == 1 ? p.in : kInputsOfBlock<W>;
  const auto add = [&](auto rows, auto together, std::int64_t group, std::int64_t first, std::int64_t panel) {
    const std::int64_t from = panel * size + first * kPanelOutputs;
    add_panel_products<rows, together, kFetch>(
        weight + from, size, fetched + bytes_of<W>(from), x.at(group, first), std::min(most, p.in - first),
        first == 0, {sums[groups.begin(group)] + panel * kPanelOutputs, kOutputsPerTask, kPanelOutputs});
  };
  constexpr std::integral_constant<int, 1> kOne;
  if (groups.count == 1) {
    constexpr int kMost = kMostRowsOfPanel<W>;
    // Fewer do not pack weights, but for 4-bit ones.
    constexpr int kLeast = kFetch == Fetch::kSoon || kAreInt4<W> ? 1 : std::min(kMostRowsUnpacked + 1, kMost);
    with_rows<kMost, kLeast>(p.rows, [&](auto rows) {
      for (std::int64_t panel = 0; panel < panels; ++panel) add(rows, kOne, 0, 0, panel);
    });
    return;
  }
  for (std::int64_t first = 0; first < p.in; first += most)
    for (std::int64_t group = 0; group < groups.count; ++group)
      with_rows<kMostRowsOfPanels<W>, (kMostRowsOfPanels<W> + 1) / 2>(groups.size(group), [&](auto rows) {
        constexpr int kTogether = kPanelsTogether<W>;
        std::int64_t panel = 0;
        const std::int64_t wide = takes_single_panels<W>(inputs) ? 0 : panels;
        for (; panel + kTogether <= wide; panel += kTogether)
          add(rows, std::integral_constant<int, kTogether>{}, group, first, panel);
        for (; panel < panels; ++panel) add(rows, kOne, group, first, panel);
      });
}

// All rows with `panels` panels at `weight`, the weights of `count` outputs from `begin` on.
template <typename W, Fetch kFetch>
void run_panels(const LinearParams& p, const LinearInputs& inputs, WeightsAt<W> weight, const char* fetched,
                std::int64_t panels, std::int64_t begin, std::int64_t count) {
  alignas(64) PanelSum<W> sums[kMostRows][kOutputsPerTask];
  expect_outputs(p, 0, p.rows, begin, begin + count);
  sum_panels<W, kFetch>(p, inputs, weight, fetched, panels, sums);
  const TaskOutputs outputs(p, inputs, begin, count);
  for (std::int64_t row = 0; row < p.rows; ++row) outputs.finish(row, sums[row]);
}

// `count` elements of each of `width` outputs, `together` of them side by side, as a whole panel.
template <typename Element>
void widen(const Element* from, std::int64_t width, std::int64_t count, std::int64_t together, Element* to) {
  for (std::int64_t i = 0; i < count; i += together) {
    Element* end = std::copy_n(from + i * width, together * width, to + i * kPanelOutputs);
    std::fill(end, to + (i + together) * kPanelOutputs, Element{});
  }
}

// A worker's room for `weights` weights of type W.
template <typename W>
auto room_at(char* memory, std::int64_t weights) {
  if constexpr (kAreInt4<W>)
    return Int4Room{reinterpret_cast<std::uint8_t*>(memory),
                    reinterpret_cast<Float16*>(memory + bytes_of<W>(weights))};
  else
    return reinterpret_cast<W*>(memory);
}

// The last panel, if it is less wide than the others, as wide as those.
template <typename W>
WeightsAt<W> widened_last_panel(const LinearParams& p, const LinearInputs& inputs, std::int64_t begin) {
  const std::int64_t width = p.out_size - begin;
  const WeightsAt<W> from = weights_at<W>(p, begin);
  const auto to = room_at<W>(inputs.panels, kPanelOutputs * p.in);
  if constexpr (kAreInt4<W>) {
    widen(from.codes, width, p.in / 2, kQuadInputs, to.codes);
    widen(from.scales, width, p.in / kInt4Group, 1, to.scales);
  } else {
    widen(from, width, p.in, kAreCodes<W> ? kQuadInputs : 1, to);
  }
  return to;
}

template <typename W>
void multiply_by_packed_weights(const LinearParams& p, const LinearInputs& inputs) {
  const std::int64_t whole = p.out_size / kPanelOutputs;
  const bool fetched = is_intel();
  const int streams = fetched ? kPanelStreams<W, true> : kPanelStreams<W, false>;
  const PanelTasks tasks = PanelTasks::of(whole, p.rows <= kMostStreamRows ? streams : 1);
  const bool rest = p.out_size % kPanelOutputs != 0;
  const std::int64_t bytes = bytes_of<W>(p.out_size * p.in);
  const std::int64_t count = tasks.count + (rest ? 1 : 0);
  const int workers = worker_count(std::min(count, bytes / kBytesPerWorker));
  const auto run = [&](WeightsAt<W> weight, std::int64_t panels, std::int64_t begin, std::int64_t outputs) {
    run_panels<W, Fetch::kSoon>(p, inputs, weight, ahead_of(weight, kAheadBytes), panels, begin, outputs);
  };
  parallel_tasks(count, workers, [&](std::int64_t task, std::int64_t, int) {
    if (task == tasks.count) {
      const std::int64_t begin = whole * kPanelOutputs;
      return run(widened_last_panel<W>(p, inputs, begin), 1, begin, p.out_size - begin);
    }
    if (tasks.streams > 1)
      return fetched ? run_streams<W, true>(p, inputs, tasks, task)
                     : run_streams<W, false>(p, inputs, tasks, task);
    const std::int64_t first = tasks.begin(0, task), panels = tasks.begin(0, task + 1) - first;
    const std::int64_t begin = first * kPanelOutputs;
    run(weights_at<W>(p, begin), panels, begin, panels * kPanelOutputs);
  });
}

// Weights in rows, which each task packs for itself and fetches for the next.
template <typename W>
void multiply_by_weights_in_rows(const LinearParams& p, const LinearInputs& inputs) {
  const std::int64_t size = kPanelOutputs * p.in, together = panels_to_pack(packed_row_bytes(p));
  const std::int64_t outputs = together * kPanelOutputs;
  const std::int64_t tasks = (p.out_size + outputs - 1) / outputs;
  parallel_tasks(tasks, worker_count(tasks), [&](std::int64_t task, std::int64_t next, int worker) {
    const std::int64_t begin = task * outputs, count = std::min(outputs, p.out_size - begin);
    const std::int64_t panels = (count + kPanelOutputs - 1) / kPanelOutputs;
    const auto packed = room_at<Packed<W>>(inputs.panels + worker * packed_bytes(p), panels * size);
    for (std::int64_t i = 0; i < panels; ++i) {
      const std::int64_t output = begin + i * kPanelOutputs;
      pack_rows(weights_at<W>(p, output), p.in, std::min(kPanelOutputs, p.out_size - output),
                packed + i * size);
    }
    run_panels<Packed<W>, Fetch::kLater>(p, inputs, packed, ahead_of(weights_at<W>(p, next * outputs), 0),
                                         panels, begin, count);
  });
}

inline void multiply_by_float_panels(const LinearParams& p, const LinearInputs& inputs) {
  with_cache_type(p.dtype, [&](auto element) {
    using W = decltype(element);
    if constexpr (!std::is_same_v<W, std::int8_t>) {
      if (lies_in_panels(p.weight_format))
        multiply_by_packed_weights<W>(p, inputs);
      else
        multiply_by_weights_in_rows<W>(p, inputs);
    }
  });
}

inline void multiply_by_int4_panels(const LinearParams& p, const LinearInputs& inputs) {
  if (lies_in_panels(p.weight_format))
    multiply_by_packed_weights<Int4Weights>(p, inputs);
  else
    multiply_by_weights_in_rows<Int4Weights>(p, inputs);
}

#if defined(KVFUSE_VNNI)
inline void multiply_by_byte_panels(const LinearParams& p, const LinearInputs& inputs) {
  if (lies_in_panels(p.weight_format))
    multiply_by_packed_weights<std::uint8_t>(p, inputs);
  else
    multiply_by_weights_in_rows<std::int8_t>(p, inputs);
}
#endif

}  // namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE
