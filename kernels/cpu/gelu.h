// GELU of vectors, without branches.
#pragma once

#include "kernels/cpu/simd.h"

namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE {

// 1 / (1 + e^-z)
inline Vec sigmoid(Vec z) {
  const Vec one = splat(1.0F);
  const Vec t = exp_nonpositive(sub(zero(), absolute(z)));
  // z >= 0: 1 / (1 + t), else t / (1 + t)
  return div(add(keep_if_not_less(sub(one, t), z, zero()), t), add(one, t));
}

// x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2, by (1 + tanh(y)) / 2 = sigmoid(2y).
inline Vec gelu_tanh(Vec x) {
  const Vec cube = mul(mul(x, x), x);
  return mul(x, sigmoid(mul(splat(1.5957691216057308F), fma(splat(0.044715F), cube, x))));
}

// x * (1 + erf(x / sqrt(2))) / 2. The upper tail (1 - erf) / 2 is that of Abramowitz and Stegun, 7.1.26: off
// by 8e-8 at most.
inline Vec gelu_exact(Vec x) {
  const Vec y = mul(absolute(x), splat(0.70710678118654752F));
  const Vec t = div(splat(1.0F), fma(splat(0.3275911F), y, splat(1.0F)));
  Vec tail = splat(0.5F * 1.061405429F);
  tail = fma(tail, t, splat(0.5F * -1.453152027F));
  tail = fma(tail, t, splat(0.5F * 1.421413741F));
  tail = fma(tail, t, splat(0.5F * -0.284496736F));
  tail = fma(tail, t, splat(0.5F * 0.254829592F));
  tail = mul(mul(tail, t), exp_nonpositive(sub(zero(), mul(y, y))));
  // x >= 0: x * (1 - tail), else x * tail
  const Vec share = add(keep_if_not_less(sub(splat(1.0F), add(tail, tail)), x, zero()), tail);
  return mul(x, share);
}

}  // namespace kvfuse::cpu::KVFUSE_ISA_NAMESPACE
