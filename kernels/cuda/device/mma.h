// Tensor-core products of one warp and the shared-memory loads that feed them. Fragment layouts are those of
// the PTX ISA; with group = lane / 4 and column = lane % 4, register by register:
//   16-bit A (16 x 16): rows group, group + 8, group, group + 8; columns 2 * column + {0, 1}, from the third
//                       register on 8 further.
//   16-bit B (16 x 8):  rows 2 * column + {0, 1}, then 8 further; column group.
//   tf32 A (16 x 8):    rows group, group + 8, group, group + 8; column `column`, from the third on 4
//   further. tf32 B (8 x 8):     row `column`, then 4 further; column group. C (16 x 8):         row group,
//   columns 2 * column, 2 * column + 1; then the same in row group + 8.
#pragma once

#include <cstdint>

#include "kernels/cuda/device/platform.h"
#include "kernels/half.h"

#ifndef __CUDACC__
#include <cstring>
#include <type_traits>

#include "kernels/cuda/device/number.h"
#else
#include "kernels/cuda/device/memory.h"
#endif

namespace kvfuse::cuda {

#ifdef __CUDACC__

// c += a * b
KVFUSE_DEVICE void mma_16x8x16(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                               Float16, CallSite = CallSite::current()) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

KVFUSE_DEVICE void mma_16x8x16(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                               BFloat16, CallSite = CallSite::current()) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// a and b hold the bits of floats; only their upper 19 bits count (see round_to_tf32).
KVFUSE_DEVICE void mma_16x8x8_tf32(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                                   CallSite = CallSite::current()) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Four 8 x 8 matrices of 16-bit values. Lanes 8 * i ... 8 * i + 7 name the 16-byte rows of matrix i; of each
// matrix a lane gets row lane / 4, columns 2 * (lane % 4) + {0, 1}.
KVFUSE_DEVICE void ldmatrix_x4(std::uint32_t (&r)[4], const void* shared_row,
                               CallSite = CallSite::current()) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared_row))
               : "memory");
}

// The same with every matrix transposed.
KVFUSE_DEVICE void ldmatrix_x4_trans(std::uint32_t (&r)[4], const void* shared_row,
                                     CallSite = CallSite::current()) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(shared_row))
               : "memory");
}

// Two matrices: the addresses of lanes 16 to 31 do not matter.
KVFUSE_DEVICE void ldmatrix_x2_trans(std::uint32_t (&r)[2], const void* shared_row,
                                     CallSite = CallSite::current()) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(shared_row))
               : "memory");
}

#else

// One element of a packed register as a float: element 0 or 1 of a 16-bit pair, or a whole tf32.
struct Tf32 {};
template <class T>
float fragment_element(std::uint32_t bits, int element) {
  if constexpr (std::is_same_v<T, Tf32>) {
    return std::bit_cast<float>(bits & 0xffffe000U);
  } else {
    return element == 0 ? unpack_low<T>(bits) : unpack_high<T>(bits);
  }
}

struct MmaOperands {
  float* c;
  const std::uint32_t* a;
  const std::uint32_t* b;
};

// A register holds kPack neighbours along the depth; a fragment half is 4 * kPack deep. Sums run in double:
// the order of the hardware's is not specified.
template <class T>
void multiply_fragments(void* const* lanes) {
  constexpr int kPack = std::is_same_v<T, Tf32> ? 1 : 2;
  constexpr int kDepth = 8 * kPack;
  float a[16][kDepth];
  float b[8][kDepth];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& own = *static_cast<const MmaOperands*>(lanes[lane]);
    const int group = lane / 4;
    for (int half = 0; half < 2; ++half) {
      for (int element = 0; element < kPack; ++element) {
        const int k = half * 4 * kPack + lane % 4 * kPack + element;
        a[group][k] = fragment_element<T>(own.a[2 * half], element);
        a[group + 8][k] = fragment_element<T>(own.a[2 * half + 1], element);
        b[group][k] = fragment_element<T>(own.b[half], element);
      }
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    const auto& own = *static_cast<const MmaOperands*>(lanes[lane]);
    for (int i = 0; i < 4; ++i) {
      double sum = own.c[i];
      for (int k = 0; k < kDepth; ++k) sum += double{a[lane / 4 + i / 2 * 8][k]} * b[lane % 4 * 2 + i % 2][k];
      own.c[i] = static_cast<float>(sum);
    }
  }
}

template <class T>
void mma_16x8x16(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2], T,
                 CallSite site = CallSite::current()) {
  MmaOperands operands{c, a, b};
  emulation::meet_warp("mma_16x8x16", site, &operands, multiply_fragments<T>);
}

KVFUSE_DEVICE void mma_16x8x8_tf32(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                                   CallSite site = CallSite::current()) {
  MmaOperands operands{c, a, b};
  emulation::meet_warp("mma_16x8x8_tf32", site, &operands, multiply_fragments<Tf32>);
}

struct LdmatrixOperands {
  std::uint32_t* r;
  const void* row;
};

template <int kMatrices, bool kTranspose>
void load_matrices(void* const* lanes) {
  for (int matrix = 0; matrix < kMatrices; ++matrix) {
    std::uint16_t values[8][8];
    for (int row = 0; row < 8; ++row)
      std::memcpy(values[row], static_cast<const LdmatrixOperands*>(lanes[matrix * 8 + row])->row, 16);
    for (int lane = 0; lane < 32; ++lane) {
      const int i = lane / 4;
      const int j = lane % 4 * 2;
      const std::uint32_t low = kTranspose ? values[j][i] : values[i][j];
      const std::uint32_t high = kTranspose ? values[j + 1][i] : values[i][j + 1];
      static_cast<const LdmatrixOperands*>(lanes[lane])->r[matrix] = low | high << 16;
    }
  }
}

template <int kMatrices, bool kTranspose>
void ldmatrix(const char* name, std::uint32_t* r, const void* shared_row, CallSite site) {
  if (emulation::lane() < kMatrices * 8) emulation::access_shared(name, shared_row, site);
  LdmatrixOperands operands{r, shared_row};
  emulation::meet_warp(name, site, &operands, load_matrices<kMatrices, kTranspose>);
}

KVFUSE_DEVICE void ldmatrix_x4(std::uint32_t (&r)[4], const void* shared_row,
                               CallSite site = CallSite::current()) {
  ldmatrix<4, false>("ldmatrix_x4", r, shared_row, site);
}

KVFUSE_DEVICE void ldmatrix_x4_trans(std::uint32_t (&r)[4], const void* shared_row,
                                     CallSite site = CallSite::current()) {
  ldmatrix<4, true>("ldmatrix_x4_trans", r, shared_row, site);
}

KVFUSE_DEVICE void ldmatrix_x2_trans(std::uint32_t (&r)[2], const void* shared_row,
                                     CallSite site = CallSite::current()) {
  ldmatrix<2, true>("ldmatrix_x2_trans", r, shared_row, site);
}

#endif

}  // namespace kvfuse::cuda
