// One row of a token tensor or of the cache: conversion to and from float32, quantisation, appending.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/attention.h"
#include "kernels/cpu/simd.h"
#include "kernels/half.h"

namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE {

// Calls f with a value of the C++ type that stands for `dtype`.
template <typename F>
void with_cache_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(float{});
    case DType::kBFloat16:
      return f(BFloat16{});
    case DType::kFloat16:
      return f(Float16{});
    case DType::kInt8:
      return f(std::int8_t{});
  }
}

template <typename T>
void convert_to_float(const T* src, std::int64_t count, float* dst) {
  const std::int64_t whole = count / kLanes * kLanes;
  for (std::int64_t i = 0; i < whole; i += kLanes) store(dst + i, load(src + i));
  for (std::int64_t i = whole; i < count; ++i) dst[i] = to_float(src[i]);
}

// `dtype` is a floating-point one.
inline void read_row(const void* src, DType dtype, std::int64_t count, float* dst) {
  if (dtype == DType::kFloat32) return convert_to_float(static_cast<const float*>(src), count, dst);
  if (dtype == DType::kBFloat16) return convert_to_float(static_cast<const BFloat16*>(src), count, dst);
  convert_to_float(static_cast<const Float16*>(src), count, dst);
}

template <typename T>
void convert_from_float(const float* src, std::int64_t count, T* dst) {
  std::int64_t whole = 0;
  if constexpr (std::is_same_v<T, float>) {  // a loop of elements becomes a call of memmove
    whole = count / kLanes * kLanes;
    for (std::int64_t i = 0; i < whole; i += kLanes) store(dst + i, load(src + i));
  }
  for (std::int64_t i = whole; i < count; ++i) dst[i] = from_float<T>(src[i]);
}

inline void write_row(const float* src, DType dtype, std::int64_t count, void* dst) {
  if (dtype == DType::kFloat32) return convert_from_float(src, count, static_cast<float*>(dst));
  if (dtype == DType::kBFloat16) return convert_from_float(src, count, static_cast<BFloat16*>(dst));
  convert_from_float(src, count, static_cast<Float16*>(dst));
}

template <typename Pointer>
auto* row_of(const TokenView<Pointer>& view, std::int64_t b, std::int64_t head, std::int64_t token) {
  const std::int64_t offset = (b * view.batch_stride + head * view.head_stride + token * view.token_stride) *
                              element_bytes(view.dtype);
  if constexpr (std::is_same_v<Pointer, void*>)
    return static_cast<char*>(view.data) + offset;
  else
    return static_cast<const char*>(view.data) + offset;
}

// Writes the codes of `x` and returns their scale. A row that holds a NaN or an infinity gets the scale NaN,
// so that it decodes to NaN rather than to plausible numbers.
inline float quantize_row(const float* x, std::int64_t count, std::int8_t* codes) {
  Vec most = zero();
  Vec spoilt = zero();  // stays 0 unless an element is not finite
  const std::int64_t whole = count / kLanes * kLanes;
  for (std::int64_t i = 0; i < whole; i += kLanes) {
    const Vec value = load(x + i);
    most = max(most, absolute(value));
    spoilt = fma(value, zero(), spoilt);
  }
  float absmax = reduce_max(most);
  float spoilt_sum = reduce_add(spoilt);
  for (std::int64_t i = whole; i < count; ++i) {
    absmax = std::fabs(x[i]) > absmax ? std::fabs(x[i]) : absmax;
    spoilt_sum += x[i] * 0.0F;
  }
  const float scale = absmax / 127.0F + spoilt_sum;
  if (!(scale > 0.0F)) {
    std::memset(codes, 0, static_cast<std::size_t>(count));
    return scale;
  }
  for (std::int64_t i = 0; i < whole; i += kLanes) quantize(div(load(x + i), splat(scale)), codes + i);
  if (whole < count) {
    float rest[kLanes] = {};
    std::int8_t rest_codes[kLanes];
    std::memcpy(rest, x + whole, static_cast<std::size_t>(count - whole) * sizeof(float));
    quantize(div(load(rest), splat(scale)), rest_codes);
    std::memcpy(codes + whole, rest_codes, static_cast<std::size_t>(count - whole));
  }
  return scale;
}

// Copies or quantises new row `token` of K and V of (b, kv_head) into cache position `position`.
inline void append_row(const ConstTokenView& k_new, const ConstTokenView& v_new, const CacheView& cache,
                       std::int64_t b, std::int64_t kv_head, std::int64_t token, std::int64_t position) {
  const std::int64_t row = (b * cache.kv_heads + kv_head) * cache.capacity + position;
  const auto write = [&](const ConstTokenView& source, void* data, float* scale) {
    char* target = static_cast<char*>(data) + row * cache.head_dim * element_bytes(cache.dtype);
    const char* from = row_of(source, b, kv_head, token);
    if (source.dtype == cache.dtype) {
      std::memcpy(target, from, static_cast<std::size_t>(cache.head_dim * element_bytes(cache.dtype)));
      return;
    }
    float values[256];  // HeadDims ends below
    read_row(from, source.dtype, cache.head_dim, values);
    if (cache.dtype == DType::kInt8)
      scale[row] = quantize_row(values, cache.head_dim, reinterpret_cast<std::int8_t*>(target));
    else
      write_row(values, cache.dtype, cache.head_dim, target);
  };
  write(k_new, cache.k, cache.k_scale);
  write(v_new, cache.v, cache.v_scale);
}

}  // namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE
