#include "benchmark/self_check.h"

#include <ATen/Parallel.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/scaled_dot_product_attention.h>
#include <ATen/ops/zeros.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>

#include <cstdio>
#include <functional>
#include <string>

#include "csrc/ops/build_info.h"
#include "csrc/ops/ops.h"
#include "kernels/head_dims.h"

namespace kvfuse::bench {
namespace {

constexpr std::int64_t kBatch = 2, kHeads = 3, kCapacity = 300, kHeadDim = 64, kTokens = 270;

// A float cache that holds kTokens - 1 tokens, one more to append, and what PyTorch makes of all of them.
struct Sample {
  at::Tensor q = at::randn({kBatch, kHeads, 1, kHeadDim});
  at::Tensor k = at::randn({kBatch, kHeads, kTokens, kHeadDim});
  at::Tensor v = at::randn({kBatch, kHeads, kTokens, kHeadDim});
  at::Tensor k_cache = at::zeros({kBatch, kHeads, kCapacity, kHeadDim});
  at::Tensor v_cache = at::zeros({kBatch, kHeads, kCapacity, kHeadDim});
  at::Tensor want = at::scaled_dot_product_attention(q, k, v);

  static at::Tensor lengths(std::int64_t tokens) {
    return at::full({kBatch}, tokens, at::TensorOptions().dtype(at::kInt));
  }
  at::Tensor first(const at::Tensor& x) const { return x.narrow(2, 0, kTokens - 1); }
  at::Tensor last(const at::Tensor& x) const { return x.narrow(2, kTokens - 1, 1); }
};

bool close(const at::Tensor& got, const at::Tensor& want, double tolerance) {
  return at::allclose(got, want, tolerance, tolerance);
}

bool check_float_cache() {
  Sample s;
  ops::kv_append(s.first(s.k), s.first(s.v), s.k_cache, s.v_cache, Sample::lengths(0), {}, {});
  const at::Tensor fused = ops::append_decode_attention(s.q, s.last(s.k), s.last(s.v), s.k_cache, s.v_cache,
                                                        Sample::lengths(kTokens - 1), {}, {}, {});
  const at::Tensor apart =
      ops::decode_attention(s.q, s.k_cache, s.v_cache, Sample::lengths(kTokens), {}, {}, {});
  return close(fused, s.want, 1e-4) && at::equal(fused, apart);
}

bool check_prefill() {
  Sample s;
  const at::Tensor q = at::randn({kBatch, kHeads, kTokens, kHeadDim});
  const at::Tensor want = at::scaled_dot_product_attention(q, s.k, s.v, {}, 0.0, true);
  return close(ops::prefill_attention(q, s.k, s.v, s.k_cache, s.v_cache, Sample::lengths(0), {}, {}, {}),
               want, 1e-4);
}

bool check_int8_cache() {
  Sample s;
  const auto [k_codes, k_scale] = ops::quantize_kv(s.k);
  const auto [v_codes, v_scale] = ops::quantize_kv(s.v);
  const at::Tensor got =
      ops::decode_attention(s.q, k_codes, v_codes, Sample::lengths(kTokens), k_scale, v_scale, {});
  const at::Tensor want =
      at::scaled_dot_product_attention(s.q, ops::dequantize_kv(k_codes, k_scale, at::kFloat),
                                       ops::dequantize_kv(v_codes, v_scale, at::kFloat));
  return close(got, want, 1e-3);
}

// Whole numbers of a few bits with one 127 a row, of x too: what codes hold exactly. Few rows, and many.
bool check_linear() {
  constexpr std::int64_t kIn = 64, kOut = 40;
  const at::Tensor bias = at::randn({kOut});
  const auto whole_numbers = [&](std::int64_t rows) {
    at::Tensor numbers = at::randint(-7, 8, {rows, kIn}, at::kFloat);
    numbers.select(1, 0).fill_(127);
    return numbers;
  };
  const at::Tensor weight = whole_numbers(kOut);
  const auto [codes, scale] = ops::quantize_weight(weight, "int8");
  const at::Tensor packed = ops::pack_weight(weight), packed_codes = ops::pack_weight(codes);
  bool good = true;
  constexpr double kUnits = 4e-3;  // two in the last place of results of 19,000
  for (const std::int64_t rows : {3, 30}) {
    const at::Tensor x = whole_numbers(rows), want = at::linear(x, weight, bias);
    good = good && close(ops::linear(x, weight, bias), want, kUnits) &&
           close(ops::linear(x, packed, bias, {}, {}, {}, 0, "none", false, /*packed=*/true), want, kUnits) &&
           close(ops::linear(x, codes, bias, scale), want, kUnits) &&
           close(ops::linear(x, packed_codes, bias, scale, {}, {}, 0, "none", false, /*packed=*/true), want,
                 kUnits);
  }
  return good;
}

bool report(const char* name, const std::function<bool()>& check) {
  std::string problem;
  bool good = false;
  try {
    good = check();
  } catch (const c10::Error& error) {
    problem = std::string(": ") + error.what_without_backtrace();
  }
  std::printf("%-52s %s%s\n", name, good ? "ok" : "FAILED", problem.c_str());
  return good;
}

}  // namespace

bool self_check() {
  const c10::InferenceMode inference;
  const ops::BuildInfo build = ops::build_info();
  std::string isas;
  for (const std::string& isa : build.available_isas) isas += " " + isa;
  std::printf("kvfuse %s, PyTorch %s, %s\n", build.version.c_str(), build.torch_version.c_str(),
              build.compiler.c_str());
  std::printf("CUDA operators: %s\n", build.cuda ? "built" : "not built");
  std::printf("instruction set: %s (available:%s)\n", build.active_isa.c_str(), isas.c_str());
  std::printf("threads: %d; head sizes: %s\n", at::get_num_threads(), to_text(HeadDims{}).c_str());
  bool good = report("kv_append, append_decode_attention, decode_attention", check_float_cache);
  good = report("prefill_attention", check_prefill) && good;
  good = report("quantize_kv, dequantize_kv, int8 decode_attention", check_int8_cache) && good;
  return report("linear, pack_weight, quantize_weight", check_linear) && good;
}

}  // namespace kvfuse::bench
