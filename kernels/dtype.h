// Element types that queries and KV caches come in.
#pragma once

#include <cstdint>

namespace kvfuse {

enum class DType : std::uint8_t { kFloat32, kBFloat16, kFloat16, kInt8 };

constexpr std::int64_t element_bytes(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return 4;
    case DType::kBFloat16:
    case DType::kFloat16:
      return 2;
    case DType::kInt8:
      return 1;
  }
  return 0;
}

constexpr const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "float32";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kFloat16:
      return "float16";
    case DType::kInt8:
      return "int8";
  }
  return "unknown";
}

}  // namespace kvfuse
