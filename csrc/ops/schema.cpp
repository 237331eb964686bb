// Every operator's signature. Names and order of the arguments follow flash_attn_with_kvcache.
#include <torch/library.h>

TORCH_LIBRARY(kvfuse, m) {
  const auto define = [&m](const char* signature) { m.def(signature, {at::Tag::pt2_compliant_tag}); };
  define(
      "kv_append(Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor cache_seqlens, *, "
      "Tensor(c!)? k_scale=None, Tensor(d!)? v_scale=None) -> ()");
  define("decode_workspace(Tensor q, Tensor k_cache) -> Tensor");
  define(
      "decode_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor cache_seqlens, *, "
      "Tensor? k_scale=None, Tensor? v_scale=None, float? softmax_scale=None, "
      "Tensor(e!)? workspace=None, Tensor(f!)? softmax_lse=None) -> Tensor");
  define(
      "append_decode_attention(Tensor q, Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, "
      "Tensor cache_seqlens, *, Tensor(c!)? k_scale=None, Tensor(d!)? v_scale=None, "
      "float? softmax_scale=None, Tensor(e!)? workspace=None, Tensor(f!)? softmax_lse=None) -> Tensor");
  define(
      "prefill_attention(Tensor q, Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, "
      "Tensor cache_seqlens, *, Tensor(c!)? k_scale=None, Tensor(d!)? v_scale=None, "
      "float? softmax_scale=None) -> Tensor");
  define("quantize_kv(Tensor x) -> (Tensor, Tensor)");
  define("dequantize_kv(Tensor codes, Tensor scale, ScalarType dtype) -> Tensor");
  define(
      "linear(Tensor x, Tensor weight, Tensor? bias=None, *, Tensor? weight_scale=None, "
      "Tensor? norm_weight=None, Tensor? norm_bias=None, float norm_epsilon=1e-05, str gelu=\"none\", "
      "bool fine_activations=False, bool packed=False) -> Tensor");
  define("pack_weight(Tensor weight) -> Tensor");
  define("quantize_weight(Tensor weight, str format) -> (Tensor, Tensor)");
}
