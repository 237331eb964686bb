// Gradients: prefill_attention has them, the other operators say that they have none instead of returning
// results that silently lack one.
#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>

#include "csrc/ops/attention_gradient.h"
#include "csrc/ops/check.h"
#include "csrc/ops/ops.h"

namespace kvfuse::ops {
namespace {

constexpr char kNoGradient[] = "the operator has no gradient";
constexpr char kConstantCache[] = "the tokens in the cache are constants";

bool records_gradient(const at::Tensor& tensor) {
  return tensor.requires_grad() && at::GradMode::is_enabled();
}

void refuse_gradient(const std::string& op, const NamedTensor& arg, const char* reason) {
  TORCH_CHECK_NOT_IMPLEMENTED(!records_gradient(arg.tensor), op, ": expected ", arg.name,
                              " with requires_grad=False, got True (", reason,
                              ": call it under torch.no_grad(), or detach the tensor)");
}

// A graph that saved the tensor for its backward pass has to notice.
void note_written(const at::Tensor& tensor) {
  if (tensor.defined() && !tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
}

void without_gradients(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  const std::vector<c10::Argument>& arguments = op.schema().arguments();
  std::vector<at::Tensor> written;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const c10::IValue& value = stack->at(stack->size() - arguments.size() + i);
    if (!value.isTensor()) continue;
    refuse_gradient(op.schema().name(), {arguments[i].name().c_str(), value.toTensor()}, kNoGradient);
    const c10::AliasInfo* alias = arguments[i].alias_info();
    if (alias != nullptr && alias->isWrite()) written.push_back(value.toTensor());
  }
  op.redispatchBoxed(keys & c10::after_autograd_keyset, stack);
  for (const at::Tensor& tensor : written) note_written(tensor);
}

// Rows of the cache that some sequence has tokens in; all that may have if the lengths are not to be read.
c10::SymInt rows_in_use(const at::Tensor& cache, const at::Tensor& cache_seqlens, const at::Tensor& q) {
  const bool readable = cache_seqlens.is_cpu() && !at::areAnyTensorSubclassLike({cache_seqlens, cache});
  if (!readable) return cache.sym_size(2) - q.sym_size(2);
  const std::int32_t* lengths = cache_seqlens.const_data_ptr<std::int32_t>();
  const std::int64_t batch = cache_seqlens.size(0);
  return batch == 0 ? 0 : *std::max_element(lengths, lengths + batch);
}

class PrefillAttention : public torch::autograd::Function<PrefillAttention> {
 public:
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& q,
                            const at::Tensor& k, const at::Tensor& v, const at::Tensor& k_cache,
                            const at::Tensor& v_cache, const at::Tensor& cache_seqlens,
                            const std::optional<at::Tensor>& k_scale,
                            const std::optional<at::Tensor>& v_scale, std::optional<double> softmax_scale) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    at::Tensor out =
        prefill_attention(q, k, v, k_cache, v_cache, cache_seqlens, k_scale, v_scale, softmax_scale);
    const c10::SymInt rows = rows_in_use(k_cache, cache_seqlens, q);
    const auto prefix = [&](const at::Tensor& cache) { return cache.slice_symint(2, 0, rows).clone(); };
    context->save_for_backward({q, k, v, prefix(k_cache), prefix(v_cache), cache_seqlens.clone()});
    const double default_scale = 1.0 / std::sqrt(static_cast<double>(q.size(3)));
    context->saved_data["softmax_scale"] = softmax_scale.value_or(default_scale);
    return out;
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* context,
                                                 const torch::autograd::variable_list& grads) {
    const torch::autograd::variable_list saved = context->get_saved_variables();
    const AttentionGradients found =
        attention_gradients({.q = saved[0],
                             .k = saved[1],
                             .v = saved[2],
                             .k_prefix = saved[3],
                             .v_prefix = saved[4],
                             .lengths = saved[5],
                             .softmax_scale = context->saved_data["softmax_scale"].toDouble()},
                            grads[0]);
    return {found.q, found.k, found.v, {}, {}, {}, {}, {}, {}};
  }
};

at::Tensor prefill_attention_with_gradients(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                            const at::Tensor& k_cache, const at::Tensor& v_cache,
                                            const at::Tensor& cache_seqlens,
                                            const std::optional<at::Tensor>& k_scale,
                                            const std::optional<at::Tensor>& v_scale,
                                            std::optional<double> softmax_scale) {
  const at::Tensor none;
  const NamedTensor constants[] = {{"k_cache", k_cache},
                                   {"v_cache", v_cache},
                                   {"k_scale", k_scale ? *k_scale : none},
                                   {"v_scale", v_scale ? *v_scale : none}};
  for (const NamedTensor& constant : constants)
    if (constant.tensor.defined()) refuse_gradient(kPrefillAttention, constant, kConstantCache);
  at::Tensor out;
  if (records_gradient(q) || records_gradient(k) || records_gradient(v)) {
    TORCH_CHECK_NOT_IMPLEMENTED(!k_cache.defined() || k_cache.scalar_type() != at::kChar, kPrefillAttention,
                                ": expected a k_cache of the dtype of q where gradients are recorded, got "
                                "int8 (rounding has no gradient: call it under torch.no_grad(), or detach "
                                "q, k and v)");
    out = PrefillAttention::apply(q, k, v, k_cache, v_cache, cache_seqlens, k_scale, v_scale, softmax_scale);
  } else {
    const at::AutoDispatchBelowADInplaceOrView guard;
    out = prefill_attention(q, k, v, k_cache, v_cache, cache_seqlens, k_scale, v_scale, softmax_scale);
  }
  for (const NamedTensor& written : constants) note_written(written.tensor);
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(kvfuse, Autograd, m) {
  m.impl("prefill_attention", &prefill_attention_with_gradients);
  for (const char* name : {"kv_append", "decode_attention", "append_decode_attention", "quantize_kv",
                           "dequantize_kv", "linear", "pack_weight", "quantize_weight"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&without_gradients>());
}

}  // namespace kvfuse::ops
