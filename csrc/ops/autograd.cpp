// The operators have no gradient: says so instead of returning results that silently lack one.
#include <ATen/core/grad_mode.h>
#include <torch/library.h>

namespace kvfuse::ops {
namespace {

void refuse_gradients(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack) {
  const std::vector<c10::Argument>& arguments = op.schema().arguments();
  std::vector<at::Tensor> written;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const c10::IValue& value = stack->at(stack->size() - arguments.size() + i);
    if (!value.isTensor()) continue;
    TORCH_CHECK_NOT_IMPLEMENTED(!(value.toTensor().requires_grad() && at::GradMode::is_enabled()),
                                op.schema().name(), ": expected ", arguments[i].name(),
                                " with requires_grad=False, got True (the operator has no gradient: "
                                "call it under torch.no_grad(), or detach the tensor)");
    const c10::AliasInfo* alias = arguments[i].alias_info();
    if (alias != nullptr && alias->isWrite()) written.push_back(value.toTensor());
  }
  op.redispatchBoxed(keys & c10::after_autograd_keyset, stack);
  // A graph that saved one of these for its backward pass has to notice.
  for (const at::Tensor& tensor : written)
    if (tensor.defined() && !tensor.is_inference()) tensor.unsafeGetTensorImpl()->bump_version();
}

}  // namespace

TORCH_LIBRARY_IMPL(kvfuse, Autograd, m) {
  for (const char* name : {"kv_append", "decode_attention", "append_decode_attention", "prefill_attention",
                           "quantize_kv", "dequantize_kv"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&refuse_gradients>());
}

}  // namespace kvfuse::ops
