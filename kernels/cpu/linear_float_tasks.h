// Linear layers by panels of float weights, as tasks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/cpu/linear_float_panels.h"
#include "kernels/cpu/linear_inputs.h"
#include "kernels/cpu/linear_outputs.h"
#include "kernels/cpu/parallel.h"

namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE {

// Panels that a task goes through one behind the other, at most; finish() takes no more outputs at once.
constexpr std::int64_t kPanelsOfTask = kOutputsPerTask / kFloatPanelOutputs;
static_assert(panels_to_pack(1) <= kPanelsOfTask);
// Rows that wait for memory rather than compute read so many streams, and leave them to the hardware.
constexpr std::int64_t kMostStreamRows = 2;
constexpr int kPanelStreams = 4;
// Inputs that several groups of rows go through in turn: a task's weights of so many stay in the second-level
// cache, a group's x in the first.
constexpr std::int64_t kInputsOfBlock = 768;
// How far ahead weights are fetched.
constexpr std::int64_t kAheadBytes = 8 << 10;

// Whole panels, as streams of `region` panels each, of which a task takes `stretch` at once.
struct PanelTasks {
  std::int64_t panels, streams, region, stretch, count;

  static PanelTasks of(std::int64_t panels, bool by_streams) {
    const std::int64_t workers = std::max(worker_count(panels), 1);
    const std::int64_t streams = by_streams && panels >= kPanelStreams * workers ? kPanelStreams : 1;
    const std::int64_t region = (panels + streams - 1) / streams;
    const std::int64_t stretch = std::clamp<std::int64_t>(region / (4 * workers), 1, kPanelsOfTask);
    return {panels, streams, region, stretch, (region + stretch - 1) / stretch};
  }

  // Those of a stream that belong to `task`.
  std::int64_t begin(std::int64_t stream, std::int64_t task) const {
    return std::min(stream * region + std::min(task * stretch, region), panels);
  }
};

// Few rows, which are one group, with a task's panels of all streams.
template <typename W>
void run_streams(const LinearParams& p, const LinearInputs& inputs, const PanelTasks& tasks,
                 std::int64_t task) {
  alignas(64) float sums[kPanelStreams][kMostStreamRows][kOutputsPerTask];
  constexpr std::int64_t kApart = kMostStreamRows * kOutputsPerTask;  // of the sums of streams
  const W* weight = static_cast<const W*>(p.weight);
  const std::int64_t size = kFloatPanelOutputs * p.in;  // of a panel
  const float* x = inputs.side_by_side.at(0, 0);
  const auto count = [&](std::int64_t stream) {
    return tasks.begin(stream, task + 1) - tasks.begin(stream, task);
  };
  with_rows<kMostStreamRows>(p.rows, [&](auto rows) {
    const std::int64_t together = count(kPanelStreams - 1);  // the last has the fewest
    for (std::int64_t i = 0; i < together; ++i)
      add_panel_products<rows, kPanelStreams, Fetch::kNothing>(
          weight + (tasks.begin(0, task) + i) * size, tasks.region * size, nullptr, x, p.in, true,
          {sums[0][0] + i * kPanelWidth, kOutputsPerTask, kApart});
    for (std::int64_t s = 0; s < kPanelStreams; ++s)
      for (std::int64_t i = together; i < count(s); ++i)
        add_panel_products<rows, 1, Fetch::kNothing>(weight + (tasks.begin(s, task) + i) * size, 0, nullptr,
                                                     x, p.in, true,
                                                     {sums[s][0] + i * kPanelWidth, kOutputsPerTask, 0});
  });
  for (std::int64_t s = 0; s < kPanelStreams; ++s)
    if (count(s) > 0)
      for (std::int64_t row = 0; row < p.rows; ++row)
        finish(p, inputs, row, tasks.begin(s, task) * kFloatPanelOutputs, count(s) * kFloatPanelOutputs,
               sums[s][row]);
}

// All rows with `panels` panels at `weight`, the weights of `count` outputs from `begin` on.
template <Fetch kFetch, typename W>
void run_panels(const LinearParams& p, const LinearInputs& inputs, const W* weight, const char* fetched,
                std::int64_t panels, std::int64_t begin, std::int64_t count) {
  alignas(64) float sums[kMostRows][kOutputsPerTask];
  const RowGroups& groups = inputs.side_by_side.groups;
  const std::int64_t size = kFloatPanelOutputs * p.in;
  const std::int64_t most = groups.count == 1 ? p.in : kInputsOfBlock;
  expect_outputs(p, 0, p.rows, begin, begin + count);
  const auto add = [&](auto rows, auto together, std::int64_t group, std::int64_t first, std::int64_t panel) {
    const std::int64_t from = panel * size + first * kFloatPanelOutputs;
    add_panel_products<rows, together, kFetch>(
        weight + from, size, fetched + from * static_cast<std::int64_t>(sizeof(W)),
        inputs.side_by_side.at(group, first), std::min(most, p.in - first), first == 0,
        {sums[groups.begin(group)] + panel * kPanelWidth, kOutputsPerTask, kPanelWidth});
  };
  constexpr std::integral_constant<int, 1> kOne;
  if (groups.count == 1) {
    // Fewer rows do not pack weights.
    constexpr int kLeast = kFetch == Fetch::kSoon ? 1 : std::min(kMostRowsUnpacked + 1, kMostFloatPanelRows);
    with_rows<kMostFloatPanelRows, kLeast>(p.rows, [&](auto rows) {
      for (std::int64_t panel = 0; panel < panels; ++panel) add(rows, kOne, 0, 0, panel);
    });
  } else {
    for (std::int64_t first = 0; first < p.in; first += most)
      for (std::int64_t group = 0; group < groups.count; ++group)
        with_rows<kMostWidePanelRows, (kMostFloatPanelRows + 1) / 2>(groups.size(group), [&](auto rows) {
          std::int64_t panel = 0;
          for (; panel + kWidePanels <= panels; panel += kWidePanels)
            add(rows, std::integral_constant<int, kWidePanels>{}, group, first, panel);
          for (; panel < panels; ++panel) add(rows, kOne, group, first, panel);
        });
  }
  for (std::int64_t row = 0; row < p.rows; ++row) finish(p, inputs, row, begin, count, sums[row]);
}

// The last panel, if it is less wide than the others, as wide as those.
template <typename W>
const W* widened_last_panel(const LinearParams& p, const LinearInputs& inputs, std::int64_t begin) {
  const std::int64_t width = p.out_size - begin;
  const W* from = static_cast<const W*>(p.weight) + begin * p.in;
  W* to = reinterpret_cast<W*>(inputs.side_by_side.panels);
  for (std::int64_t i = 0; i < p.in; ++i)
    for (std::int64_t o = 0; o < kFloatPanelOutputs; ++o)
      to[i * kFloatPanelOutputs + o] = o < width ? from[i * width + o] : W{};
  return to;
}

template <typename W>
void multiply_by_packed_weights(const LinearParams& p, const LinearInputs& inputs) {
  const std::int64_t whole = p.out_size / kFloatPanelOutputs;
  const PanelTasks tasks = PanelTasks::of(whole, p.rows <= kMostStreamRows);
  const bool rest = p.out_size % kFloatPanelOutputs != 0;
  const std::int64_t bytes = p.out_size * p.in * static_cast<std::int64_t>(sizeof(W));
  const std::int64_t count = tasks.count + (rest ? 1 : 0);
  const int workers = worker_count(std::min(count, bytes / kBytesPerWorker));
  const auto run = [&](const W* weight, std::int64_t panels, std::int64_t begin, std::int64_t outputs) {
    const char* ahead = reinterpret_cast<const char*>(weight) + kAheadBytes;
    run_panels<Fetch::kSoon>(p, inputs, weight, ahead, panels, begin, outputs);
  };
  parallel_tasks(count, workers, [&](std::int64_t task, std::int64_t, int) {
    if (task == tasks.count) {
      const std::int64_t begin = whole * kFloatPanelOutputs;
      return run(widened_last_panel<W>(p, inputs, begin), 1, begin, p.out_size - begin);
    }
    if (tasks.streams > 1) return run_streams<W>(p, inputs, tasks, task);
    const std::int64_t first = tasks.begin(0, task), panels = tasks.begin(0, task + 1) - first;
    const std::int64_t begin = first * kFloatPanelOutputs;
    run(static_cast<const W*>(p.weight) + begin * p.in, panels, begin, panels * kFloatPanelOutputs);
  });
}

// Weights in rows, which each task packs for itself and fetches for the next.
template <typename W>
void multiply_by_weights_in_rows(const LinearParams& p, const LinearInputs& inputs) {
  const std::int64_t size = kFloatPanelOutputs * p.in, together = panels_to_pack(p.in);
  const std::int64_t outputs = together * kFloatPanelOutputs;
  const std::int64_t tasks = (p.out_size + outputs - 1) / outputs;
  const W* weight = static_cast<const W*>(p.weight);
  parallel_tasks(tasks, worker_count(tasks), [&](std::int64_t task, std::int64_t next, int worker) {
    const std::int64_t begin = task * outputs, count = std::min(outputs, p.out_size - begin);
    const std::int64_t panels = (count + kFloatPanelOutputs - 1) / kFloatPanelOutputs;
    float* packed = inputs.side_by_side.panels + worker * together * size;
    for (std::int64_t i = 0; i < panels; ++i) {
      const std::int64_t output = begin + i * kFloatPanelOutputs;
      pack_rows(weight + output * p.in, p.in, std::min(kFloatPanelOutputs, p.out_size - output),
                packed + i * size);
    }
    run_panels<Fetch::kLater>(p, inputs, packed,
                              reinterpret_cast<const char*>(weight + next * outputs * p.in), panels, begin,
                              count);
  });
}

inline void multiply_by_float_panels(const LinearParams& p, const LinearInputs& inputs) {
  with_cache_type(p.dtype, [&](auto element) {
    using W = decltype(element);
    if constexpr (!std::is_same_v<W, std::int8_t>) {
      if (p.weight_format == WeightFormat::kFloatPanels)
        multiply_by_packed_weights<W>(p, inputs);
      else
        multiply_by_weights_in_rows<W>(p, inputs);
    }
  });
}

}  // namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE
