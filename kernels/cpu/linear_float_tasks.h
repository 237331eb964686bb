// A linear layer whose float weights lie in panels, as tasks.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/linear_float_panels.h"
#include "kernels/cpu/linear_inputs.h"
#include "kernels/cpu/linear_outputs.h"
#include "kernels/cpu/parallel.h"

namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE {

// Panels that a task goes through one behind the other, at most; finish() takes no more outputs at once.
constexpr std::int64_t kPanelsOfTask = kOutputsPerTask / kFloatPanelOutputs;
// Rows that wait for memory rather than compute read so many streams, and leave them to the hardware.
constexpr std::int64_t kMostStreamRows = 2;
constexpr int kStreams = 4;
// Inputs that several groups of rows go through in turn: a task's weights of so many stay in the second-level
// cache, a group's x in the first.
constexpr std::int64_t kInputsOfBlock = 768;
constexpr std::int64_t kMostPanelRows = 256;

// Whole panels, as streams of `region` panels each, of which a task takes `stretch` at once.
struct PanelTasks {
  std::int64_t panels, streams, region, stretch, count;

  static PanelTasks of(std::int64_t panels, bool by_streams) {
    const std::int64_t workers = std::max(worker_count(panels), 1);
    const std::int64_t streams = by_streams && panels >= kStreams * workers ? kStreams : 1;
    const std::int64_t region = (panels + streams - 1) / streams;
    const std::int64_t stretch = std::clamp<std::int64_t>(region / (4 * workers), 1, kPanelsOfTask);
    return {panels, streams, region, stretch, (region + stretch - 1) / stretch};
  }

  // Those of a stream that belong to `task`.
  std::int64_t begin(std::int64_t stream, std::int64_t task) const {
    return std::min(stream * region + std::min(task * stretch, region), panels);
  }
};

inline void finish_panels(const LinearParams& p, const LinearInputs& inputs, std::int64_t begin,
                          std::int64_t count, float (*sums)[kOutputsPerTask]) {
  for (std::int64_t row = 0; row < p.rows; ++row) finish(p, inputs, row, begin, count, sums[row]);
}

// Few rows, which are one group, with a task's panels of all streams.
template <typename W>
void run_streams(const LinearParams& p, const LinearInputs& inputs, const PanelTasks& tasks,
                 std::int64_t task) {
  alignas(64) float sums[kStreams][kMostStreamRows][kOutputsPerTask];
  constexpr std::int64_t kApart = kMostStreamRows * kOutputsPerTask;  // of the sums of streams
  const W* weight = static_cast<const W*>(p.weight);
  const std::int64_t size = kFloatPanelOutputs * p.in;  // of a panel
  const float* x = inputs.side_by_side.at(0, 0);
  const auto count = [&](std::int64_t stream) {
    return tasks.begin(stream, task + 1) - tasks.begin(stream, task);
  };
  with_rows<kMostStreamRows>(p.rows, [&](auto rows) {
    const std::int64_t together = count(kStreams - 1);  // the last has the fewest
    for (std::int64_t i = 0; i < together; ++i)
      add_panel_products<rows, kStreams, false>(weight + (tasks.begin(0, task) + i) * size,
                                                tasks.region * size, x, p.in, true,
                                                {sums[0][0] + i * kPanelWidth, kOutputsPerTask, kApart});
    for (std::int64_t s = 0; s < kStreams; ++s)
      for (std::int64_t i = together; i < count(s); ++i)
        add_panel_products<rows, 1, true>(weight + (tasks.begin(s, task) + i) * size, 0, x, p.in, true,
                                          {sums[s][0] + i * kPanelWidth, kOutputsPerTask, 0});
  });
  for (std::int64_t s = 0; s < kStreams; ++s)
    if (count(s) > 0)
      finish_panels(p, inputs, tasks.begin(s, task) * kFloatPanelOutputs, count(s) * kFloatPanelOutputs,
                    sums[s]);
}

// All rows with `panels` panels at `weight`.
template <typename W>
void run_panels(const LinearParams& p, const LinearInputs& inputs, const W* weight, std::int64_t panels,
                std::int64_t begin, std::int64_t count) {
  alignas(64) float sums[kMostPanelRows][kOutputsPerTask];
  const RowGroups& groups = inputs.side_by_side.groups;
  const std::int64_t size = kFloatPanelOutputs * p.in;
  expect_outputs(p, 0, p.rows, begin, begin + count);
  if (groups.count == 1) {
    for (std::int64_t i = 0; i < panels; ++i)
      with_rows<kMostFloatPanelRows>(p.rows, [&](auto rows) {
        add_panel_products<rows, 1, true>(weight + i * size, 0, inputs.side_by_side.at(0, 0), p.in, true,
                                          {sums[0] + i * kPanelWidth, kOutputsPerTask, 0});
      });
  } else {
    for (std::int64_t first = 0; first < p.in; first += kInputsOfBlock)
      for (std::int64_t group = 0; group < groups.count; ++group)
        with_rows<kMostWidePanelRows>(groups.size(group), [&](auto rows) {
          const std::int64_t inputs_now = std::min(kInputsOfBlock, p.in - first);
          const float* x = inputs.side_by_side.at(group, first);
          const W* from = weight + first * kFloatPanelOutputs;
          float* to = sums[groups.begin(group)];
          std::int64_t i = 0;
          for (; i + kWidePanels <= panels; i += kWidePanels)
            add_panel_products<rows, kWidePanels, true>(from + i * size, size, x, inputs_now, first == 0,
                                                        {to + i * kPanelWidth, kOutputsPerTask, kPanelWidth});
          for (; i < panels; ++i)
            add_panel_products<rows, 1, true>(from + i * size, 0, x, inputs_now, first == 0,
                                              {to + i * kPanelWidth, kOutputsPerTask, 0});
        });
  }
  finish_panels(p, inputs, begin, count, sums);
}

// The last panel, if it is less wide than the others, as wide as those.
template <typename W>
const W* widened_last_panel(const LinearParams& p, const LinearInputs& inputs, std::int64_t begin) {
  const std::int64_t width = p.out_size - begin;
  const W* from = static_cast<const W*>(p.weight) + begin * p.in;
  W* to = reinterpret_cast<W*>(inputs.side_by_side.last_panel);
  for (std::int64_t i = 0; i < p.in; ++i)
    for (std::int64_t o = 0; o < kFloatPanelOutputs; ++o)
      to[i * kFloatPanelOutputs + o] = o < width ? from[i * width + o] : W{};
  return to;
}

template <typename W>
void multiply_by_float_panels(const LinearParams& p, const LinearInputs& inputs) {
  const std::int64_t whole = p.out_size / kFloatPanelOutputs;
  const PanelTasks tasks = PanelTasks::of(whole, p.rows <= kMostStreamRows);
  const bool rest = p.out_size % kFloatPanelOutputs != 0;
  const std::int64_t bytes = p.out_size * p.in * static_cast<std::int64_t>(sizeof(W));
  const std::int64_t count = tasks.count + (rest ? 1 : 0);
  const int workers = worker_count(std::min(count, bytes / kBytesPerWorker));
  parallel_tasks(count, workers, [&](std::int64_t task, std::int64_t, int) {
    if (task == tasks.count) {
      const std::int64_t begin = whole * kFloatPanelOutputs;
      return run_panels(p, inputs, widened_last_panel<W>(p, inputs, begin), 1, begin, p.out_size - begin);
    }
    if (tasks.streams > 1) return run_streams<W>(p, inputs, tasks, task);
    const std::int64_t first = tasks.begin(0, task), panels = tasks.begin(0, task + 1) - first;
    run_panels(p, inputs, static_cast<const W*>(p.weight) + first * kFloatPanelOutputs * p.in, panels,
               first * kFloatPanelOutputs, panels * kFloatPanelOutputs);
  });
}

}  // namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE
