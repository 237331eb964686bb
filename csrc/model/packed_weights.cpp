#include "csrc/model/packed_weights.h"

#include <ATen/Parallel.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <map>
#include <vector>

#include "csrc/ops/cpu_step.h"
#include "csrc/ops/dtype.h"
#include "csrc/ops/panel_matrix.h"
#include "kernels/weight_format.h"

namespace kvfuse {
namespace {

// Those whose order is another: the scales of 4-bit codes lie beside these.
std::vector<at::Tensor*> packed_tensors(Gpt2Weights& weights) {
  std::vector<at::Tensor*> tensors;
  if (weights.packed_tokens) tensors.push_back(&weights.token_embedding);
  const bool grouped = weights.weight_dtype() == WeightDtype::kInt4;
  for (LayerWeights& layer : weights.layers) {
    for (at::Tensor* tensor :
         {&layer.qkv_weight, &layer.attn_proj_weight, &layer.fc_weight, &layer.mlp_proj_weight})
      tensors.push_back(tensor);
    if (!grouped) continue;
    for (at::Tensor* scales :
         {&layer.qkv_scale, &layer.attn_proj_scale, &layer.fc_scale, &layer.mlp_proj_scale})
      tensors.push_back(scales);
  }
  return tensors;
}

void pack(at::Tensor& weight) { ops::cpu_pack_weight(weight.mutable_data_ptr(), ops::panel_matrix(weight)); }

// Of tensors that begin at one address, the longest takes the others along: its first panels are theirs, if
// those end with a panel.
void pack_together(std::vector<at::Tensor*>& tensors) {
  const auto longer = [](const at::Tensor* a, const at::Tensor* b) { return a->size(0) > b->size(0); };
  std::stable_sort(tensors.begin(), tensors.end(), longer);
  const std::int64_t longest = tensors.front()->size(0);
  for (at::Tensor* tensor : tensors) {
    if (tensor->size(0) == longest || tensor->size(0) % kPanelOutputs == 0) continue;
    *tensor = tensor->clone();
    pack(*tensor);
  }
  pack(*tensors.front());
}

}  // namespace

bool packs(at::ScalarType dtype, at::Device device) {
  if (!device.is_cpu()) return false;
  if (dtype == at::kByte) return true;
  if (dtype == at::kChar) return ops::cpu_multiplies_bytes();
  return ops::to_dtype(dtype).has_value() && !(dtype == at::kBFloat16 && ops::cpu_multiplies_bfloat16());
}

bool suits_packing(const Gpt2Weights& weights) {
  return !weights.packed && packs(weights.layers.front().qkv_weight.scalar_type(), weights.device());
}

void pack_weights(std::span<Gpt2Weights* const> models) {
  std::map<const void*, std::vector<at::Tensor*>> by_address;
  for (Gpt2Weights* model : models) {
    if (!suits_packing(*model)) continue;
    model->packed = true;
    model->packed_tokens = packs(model->token_embedding.scalar_type(), model->device());
    for (at::Tensor* tensor : packed_tensors(*model)) by_address[tensor->const_data_ptr()].push_back(tensor);
  }
  for (auto& [address, tensors] : by_address) pack_together(tensors);
}

void unpack_weights(Gpt2Weights& weights) {
  for (at::Tensor* tensor : packed_tensors(weights))
    *tensor = packed_rows(*tensor, at::arange(tensor->size(0), at::kLong));
  weights.packed = weights.packed_tokens = false;
}

at::Tensor packed_rows(const at::Tensor& weight, const at::Tensor& indices) {
  const at::Tensor contiguous = indices.contiguous();
  std::vector<std::int64_t> shape = indices.sizes().vec();
  shape.push_back(weight.size(1));
  at::Tensor out = at::empty(shape, weight.options());
  const auto* index = contiguous.const_data_ptr<std::int64_t>();
  auto* to = static_cast<char*>(out.mutable_data_ptr());
  const std::int64_t row_bytes = weight.size(1) * weight.element_size();
  const PanelMatrix matrix = ops::panel_matrix(weight);
  at::parallel_for(0, indices.numel(), /*grain_size=*/8, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t r = first; r < last; ++r)
      ops::cpu_unpack_row(weight.const_data_ptr(), matrix, index[r], to + r * row_bytes);
  });
  return out;
}

}  // namespace kvfuse
