// What kvfuse.roofline.calibrate takes the time of, as kvfuse._C.measure: the products and attentions of the
// runner, each over many weights or caches in turn, as a model has them.
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "csrc/bindings/bindings.h"
#include "csrc/bindings/computing.h"
#include "csrc/bindings/json.h"
#include "csrc/model/linear.h"
#include "csrc/model/packed_weights.h"
#include "csrc/ops/cpu_step.h"
#include "csrc/ops/dtype.h"
#include "csrc/ops/ops.h"
#include "csrc/records/machine.h"
#include "csrc/records/read_bandwidth.h"

namespace py = pybind11;

namespace kvfuse {
namespace {

using Cache = std::tuple<at::Tensor, at::Tensor, std::optional<at::Tensor>, std::optional<at::Tensor>>;

at::Tensor buffer() {
  const std::span<std::byte> bytes = large_buffer();
  return at::from_blob(bytes.data(), {static_cast<std::int64_t>(bytes.size())}, at::kByte);
}

void check_product(const at::Tensor& x, const at::Tensor& weight) {
  if (x.dim() == 2 && weight.dim() == 2 && x.size(1) == weight.size(1) && x.is_contiguous() &&
      weight.is_contiguous() && x.scalar_type() == weight.scalar_type() && x.device() == weight.device())
    return;
  throw std::invalid_argument("measure: expected x [rows, in] and weights [out, in], contiguous and alike");
}

// The products of a forward pass of many rows, with weights in the order in which models have them.
void run_products(const at::Tensor& x, const std::vector<at::Tensor>& weights) {
  for (const at::Tensor& weight : weights) {
    check_product(x, weight);
    linear(x, {.values = weight, .packed = packs(x.scalar_type(), x.device())}, {});
  }
}

// The products of a decode step on the CPU.
void run_step_products(const at::Tensor& x, const std::vector<at::Tensor>& weights) {
  const std::optional<DType> dtype = ops::to_dtype(x.scalar_type());
  if (!x.is_cpu() || !x.is_floating_point() || !dtype || weights.empty() || x.size(1) % 8 != 0)
    throw std::invalid_argument(
        "measure: expected weights on the CPU, of a dtype with kernels and a multiple of 8 wide");
  const at::Tensor out = at::empty({x.size(0), weights.front().size(0)}, x.options());
  for (const at::Tensor& weight : weights) {
    check_product(x, weight);
    ops::cpu_linear({.x = x.const_data_ptr(),
                     .weight = weight.const_data_ptr(),
                     .out = out.mutable_data_ptr(),
                     .dtype = *dtype,
                     .out_dtype = *dtype,
                     .weight_format = packs(x.scalar_type(), x.device()) ? WeightFormat::kFloatPanels
                                                                         : WeightFormat::kFloat,
                     .rows = x.size(0),
                     .in = x.size(1),
                     .out_size = weight.size(0)});
  }
}

// One new token in each sequence, or a prompt; the caches' lengths stay.
void run_attentions(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                    const std::vector<Cache>& caches, const at::Tensor& cache_seqlens) {
  for (const auto& [k_cache, v_cache, k_scale, v_scale] : caches) {
    if (q.size(2) == 1)
      ops::append_decode_attention(q, k, v, k_cache, v_cache, cache_seqlens, k_scale, v_scale);
    else
      ops::prefill_attention(q, k, v, k_cache, v_cache, cache_seqlens, k_scale, v_scale);
  }
}

}  // namespace

void bind_measure(py::module_& module) {
  py::module_ measure = module.def_submodule("measure");
  measure.def("buffer", &buffer);
  measure.def("machine_context", [](at::Device device) { return machine_context(device); });
  measure.def("read_bandwidth", &measure_read_bandwidth, Computing());
  measure.def("run_products", &run_products, Computing());
  measure.def("run_step_products", &run_step_products, Computing());
  measure.def("run_attentions", &run_attentions, Computing());
}

}  // namespace kvfuse
