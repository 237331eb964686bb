// New rows of K and V on their way into the cache: read by the lanes of a warp, quantised, written. Scale and
// codes have the same bits as those of the CPU backend: both divide, and round to nearest with ties to even.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "kernels/attention.h"
#include "kernels/cuda/device/block.h"
#include "kernels/cuda/device/number.h"
#include "kernels/cuda/device/platform.h"
#include "kernels/cuda/device/warp.h"

namespace kvfuse::cuda {

// |x| as an integer. Larger values give larger integers, infinity and NaN the largest: one integer maximum
// finds the largest magnitude of a row and whether the row is spoilt.
KVFUSE_DEVICE int magnitude_bits(float x) {
  return static_cast<int>(std::bit_cast<std::uint32_t>(x) & 0x7fffffffU);
}

// The scale of a row from the largest magnitude_bits of its elements: NaN when the row is not finite.
KVFUSE_DEVICE float scale_of_magnitude(int largest_bits) {
  constexpr int kInfinityBits = 0x7f800000;
  if (largest_bits >= kInfinityBits) return std::numeric_limits<float>::quiet_NaN();
  return std::bit_cast<float>(largest_bits) / 127.0F;
}

// The same for a row that lies in an aligned group of kLanes lanes. All lanes of the warp call it.
template <int kLanes>
KVFUSE_DEVICE float row_scale(int largest_bits_of_lane) {
  return scale_of_magnitude(group_max<kLanes>(largest_bits_of_lane));
}

// The code of one element; 0 in an all-zero row and in one whose scale is NaN.
KVFUSE_DEVICE int quantise(float x, float scale) {
  if (!(scale > 0.0F)) return 0;
  const int code = round_to_int(x / scale);
  return code > 127 ? 127 : (code < -127 ? -127 : code);  // a subnormal scale is itself rounded
}

KVFUSE_DEVICE std::uint32_t pack_codes(int a, int b, int c, int d) {
  return (static_cast<std::uint32_t>(a) & 0xffU) | (static_cast<std::uint32_t>(b) & 0xffU) << 8 |
         (static_cast<std::uint32_t>(c) & 0xffU) << 16 | static_cast<std::uint32_t>(d) << 24;
}

// A row in the hands of a warp: lane i holds the elements from kPartWidth * i on, lanes past the end zeros.
inline constexpr int kPartWidth = 4;
struct RowPart {
  float x[kPartWidth];
};

template <class T>
struct alignas(kPartWidth * sizeof(T)) Packed {
  T x[kPartWidth];
};

KVFUSE_DEVICE bool holds_part(int head_dim) { return lane_id() * kPartWidth < head_dim; }

// A bias (may be null) is added in float and the sum rounded to T, as if a kernel before had stored it.
template <class T>
KVFUSE_DEVICE RowPart read_part(const T* row, const T* bias, int head_dim) {
  RowPart part{};
  if (!holds_part(head_dim)) return part;
  const auto values = reinterpret_cast<const Packed<T>*>(row)[lane_id()];
  Packed<T> offsets{};
  if (bias != nullptr) offsets = reinterpret_cast<const Packed<T>*>(bias)[lane_id()];
  KVFUSE_UNROLL
  for (int i = 0; i < kPartWidth; ++i) {
    part.x[i] = to_f32(values.x[i]);
    if (bias != nullptr) part.x[i] = to_f32(from_f32<T>(part.x[i] + to_f32(offsets.x[i])));
  }
  return part;
}

template <class T>
KVFUSE_DEVICE void write_part(T* row, const RowPart& part, int head_dim) {
  if (!holds_part(head_dim)) return;
  Packed<T> values;
  KVFUSE_UNROLL
  for (int i = 0; i < kPartWidth; ++i) values.x[i] = from_f32<T>(part.x[i]);
  reinterpret_cast<Packed<T>*>(row)[lane_id()] = values;
}

KVFUSE_DEVICE void write_codes(std::int8_t* row, std::uint32_t codes, int head_dim) {
  if (holds_part(head_dim)) reinterpret_cast<std::uint32_t*>(row)[lane_id()] = codes;
}

// A lane's part of a row as the cache holds it: values are codes if the cache is int8.
struct NewRow {
  RowPart values;
  std::uint32_t codes = 0;
  float scale = 1.0F;  // of the whole row
};

// All lanes of the warp call it.
KVFUSE_DEVICE NewRow quantise_part(const RowPart& part) {
  int largest = 0;
  KVFUSE_UNROLL
  for (float x : part.x) largest = maximum(largest, magnitude_bits(x));
  NewRow row;
  row.scale = row_scale<32>(largest);
  int codes[kPartWidth];
  KVFUSE_UNROLL
  for (int i = 0; i < kPartWidth; ++i) {
    codes[i] = quantise(part.x[i], row.scale);
    row.values.x[i] = static_cast<float>(codes[i]);
  }
  row.codes = pack_codes(codes[0], codes[1], codes[2], codes[3]);
  return row;
}

// Calls f with a value of the C++ type that stands for `dtype`, a floating-point one.
template <typename F>
KVFUSE_DEVICE void with_float_type(DType dtype, F&& f) {
  if (dtype == DType::kFloat32) return f(float{});
  if (dtype == DType::kBFloat16) return f(BFloat16{});
  f(Float16{});
}

// Every row at a multiple of 16 bytes. Host code.
template <class Pointer>
bool has_aligned_rows(const TokenView<Pointer>& view) {
  const std::int64_t elements = 16 / element_bytes(view.dtype);
  return reinterpret_cast<std::uintptr_t>(view.data) % 16 == 0 && view.batch_stride % elements == 0 &&
         view.head_stride % elements == 0 && view.token_stride % elements == 0;
}

// Row `token` of head `head` of sequence `b`; T is the view's dtype.
template <class T, class Pointer>
KVFUSE_DEVICE auto* row_of(const TokenView<Pointer>& view, std::int64_t b, std::int64_t head,
                           std::int64_t token) {
  using Element = std::conditional_t<std::is_same_v<Pointer, const void*>, const T, T>;
  return static_cast<Element*>(view.data) + b * view.batch_stride + head * view.head_stride +
         token * view.token_stride;
}

}  // namespace kvfuse::cuda
