// Rows of weights to panels: an order alone, so the same for every instruction set.
#include "kernels/weight_pack.h"

#include <omp.h>

#include <algorithm>
#include <vector>

#include "kernels/weight_format.h"

namespace kvfuse::cpu {
namespace {

// `rows` [width, in] -> [in, width], with the bits in `flipped` flipped; `scratch` holds as many.
template <typename Bits>
void transpose(Bits* rows, std::int64_t width, std::int64_t in, Bits flipped, Bits* scratch) {
  std::copy_n(rows, width * in, scratch);
  for (std::int64_t i = 0; i < in; ++i)
    for (std::int64_t o = 0; o < width; ++o) rows[i * width + o] = scratch[o * in + i] ^ flipped;
}

template <typename Bits>
void pack(Bits* weight, std::int64_t out_size, std::int64_t in, Bits flipped = 0) {
  const std::int64_t panels = (out_size + kPanelOutputs - 1) / kPanelOutputs;
  const std::int64_t size = kPanelOutputs * in;
  std::vector<Bits> scratch(static_cast<std::size_t>(omp_get_max_threads() * size));
#pragma omp parallel for
  for (std::int64_t panel = 0; panel < panels; ++panel) {
    const std::int64_t begin = panel * kPanelOutputs;
    transpose(weight + begin * in, std::min(kPanelOutputs, out_size - begin), in, flipped,
              scratch.data() + omp_get_thread_num() * size);
  }
}

template <typename Bits>
void unpack(const void* weight, const WeightRow& from, std::int64_t count, void* row) {
  for (std::int64_t i = 0; i < count; ++i)
    static_cast<Bits*>(row)[i] = static_cast<Bits>(static_cast<const Bits*>(weight)[from.at(i)] ^ from.zero);
}

}  // namespace

void pack_weight(void* weight, const PanelMatrix& m) {
  constexpr std::uint32_t kZeros = 0x01010101U * kPackedZero;
  if (m.panels == WeightFormat::kInt8Panels)
    pack(static_cast<std::uint32_t*>(weight), m.out_size, m.in / kQuadInputs, kZeros);
  else if (m.panels == WeightFormat::kInt4Panels)
    pack(static_cast<std::uint32_t*>(weight), m.out_size, m.in / 2 / kQuadInputs);
  else if (element_bytes(m.dtype) == 4)
    pack(static_cast<std::uint32_t*>(weight), m.out_size, m.in);
  else
    pack(static_cast<std::uint16_t*>(weight), m.out_size, m.in);
}

void unpack_row(const void* weight, const PanelMatrix& m, std::int64_t output, void* row) {
  const WeightRow from = weight_row(m.panels, m.out_size, m.in, output);
  if (m.panels == WeightFormat::kInt4Panels)
    unpack<std::uint8_t>(weight, from, m.in / 2, row);
  else if (m.panels == WeightFormat::kInt8Panels)
    unpack<std::uint8_t>(weight, from, m.in, row);
  else if (element_bytes(m.dtype) == 4)
    unpack<std::uint32_t>(weight, from, m.in, row);
  else
    unpack<std::uint16_t>(weight, from, m.in, row);
}

}  // namespace kvfuse::cpu
