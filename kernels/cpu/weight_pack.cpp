// Rows of weights to panels: an order alone, so the same for every instruction set.
#include "kernels/weight_pack.h"

#include <omp.h>

#include <algorithm>
#include <vector>

#include "kernels/weight_format.h"

namespace kvfuse::cpu {
namespace {

// `rows` [width, in] -> [in, width]; `scratch` holds as many.
template <typename Bits>
void transpose(Bits* rows, std::int64_t width, std::int64_t in, Bits* scratch) {
  std::copy_n(rows, width * in, scratch);
  for (std::int64_t i = 0; i < in; ++i)
    for (std::int64_t o = 0; o < width; ++o) rows[i * width + o] = scratch[o * in + i];
}

template <typename Bits>
void pack(Bits* weight, std::int64_t out_size, std::int64_t in) {
  const std::int64_t panels = (out_size + kFloatPanelOutputs - 1) / kFloatPanelOutputs;
  const std::int64_t size = kFloatPanelOutputs * in;
  std::vector<Bits> scratch(static_cast<std::size_t>(omp_get_max_threads() * size));
#pragma omp parallel for
  for (std::int64_t panel = 0; panel < panels; ++panel) {
    const std::int64_t begin = panel * kFloatPanelOutputs;
    transpose(weight + begin * in, std::min(kFloatPanelOutputs, out_size - begin), in,
              scratch.data() + omp_get_thread_num() * size);
  }
}

}  // namespace

void pack_weight(void* weight, DType dtype, std::int64_t out_size, std::int64_t in) {
  if (element_bytes(dtype) == 4)
    pack(static_cast<std::uint32_t*>(weight), out_size, in);
  else
    pack(static_cast<std::uint16_t*>(weight), out_size, in);
}

}  // namespace kvfuse::cpu
