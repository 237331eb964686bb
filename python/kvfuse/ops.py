"""The operators as typed functions: thin wrappers over ``torch.ops.kvfuse.*``.

One layer's cache, in all of them:

- ``k_cache``, ``v_cache``: [batch, kv_heads, capacity, head_dim], contiguous, of the dtype of ``q`` (``k``)
  or int8.
- ``k_scale``, ``v_scale``: [batch, kv_heads, capacity], float32, contiguous, none negative; given exactly
  with an int8 cache.
- ``cache_seqlens``: [batch], int32, contiguous: tokens in the cache. No operator advances it, the caller
  does.

New tokens:

- ``q``: [batch, heads, q_len, head_dim], float32, bfloat16 or float16, any strides. ``heads`` is a multiple
  of ``kv_heads``; query head h reads cache head h // (heads // kv_heads).
- ``k``, ``v``: [batch, kv_heads, q_len, head_dim], of the dtype of ``q``, any strides.

Scratch memory:

- ``workspace``: what ``decode_workspace`` gave for ``q`` and ``k_cache``. CUDA splits a long cache among
  blocks that meet there. Without it a call allocates one.

Attention to separate caches (a prompt that many sequences share, tokens in two dtypes):

- ``softmax_lse``: float32 [batch, heads, q_len], contiguous, written: the natural logarithm of each query's
  sum of exp(score), -infinity where it sees no token. Results ``a`` and ``b`` over two caches are merged by
  ``torch.lerp(a, b, torch.sigmoid(b_lse - a_lse)[..., None])``.

Attention is causal; ``softmax_scale`` is 1 / sqrt(head_dim) if None. The result has the shape and dtype of
``q`` and is laid out as [batch, q_len, heads, head_dim]: its ``transpose(1, 2)`` is contiguous.

All tensors of a call are on one device, and on CUDA caches and scales start at multiples of 16 bytes. Each
call looks at ``cache_seqlens``, for which CUDA has to wait: see ``trust_lengths``.

Errors, in all of them: TypeError for a dtype; NotImplementedError for a head_dim without a kernel, and for a
tensor that requires a gradient while gradients are recorded (``prefill_attention`` alone has one);
ValueError for all else. A call that fails leaves the cache as it was.
"""

from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor

from kvfuse import _C

_ops = torch.ops.kvfuse


def trust_lengths() -> AbstractContextManager[None]:
    """Inside ``with trust_lengths():`` CUDA operators called by this thread do not look at ``cache_seqlens``.

    The caller vouches for ``0 <= cache_seqlens[b]`` and ``cache_seqlens[b]`` + new tokens <= capacity.
    Otherwise each call copies the lengths to the host and waits for the device, except while a CUDA graph is
    captured. A sequence that breaks the promise gets a result of NaN, and nothing of it is written. The CPU
    always looks: it costs nothing. Enter it around a compiled function, not inside: ``torch.compile`` cannot
    trace it.
    """
    return _C.TrustLengths()


def decode_workspace(q: Tensor, k_cache: Tensor) -> Tensor:
    """Scratch memory for ``decode_attention`` and ``append_decode_attention``: uint8 zeros, none on the CPU.

    It serves one call at a time, with a ``q`` and ``k_cache`` of these shapes, on this device. A CUDA graph
    should be given one, so that it allocates nothing.
    """
    return _ops.decode_workspace.default(q, k_cache)


@torch.library.register_fake("kvfuse::decode_workspace")
def _decode_workspace_fake(q: Tensor, k_cache: Tensor) -> Tensor:
    """Of a size that is not known while tracing: it depends on the number of the GPU's multiprocessors."""
    return q.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.uint8)


def kv_append(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_seqlens: Tensor,
    *,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> None:
    """Writes ``k`` and ``v`` into the cache behind the tokens of each sequence, quantised if it is int8.

    Raises:
        ValueError: also if ``cache_seqlens[b]`` + new tokens exceeds the capacity, for any sequence b.
    """
    _ops.kv_append.default(k, v, k_cache, v_cache, cache_seqlens, k_scale=k_scale, v_scale=v_scale)


def decode_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_seqlens: Tensor,
    *,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    softmax_scale: float | None = None,
    workspace: Tensor | None = None,
    softmax_lse: Tensor | None = None,
) -> Tensor:
    """Attends to the first ``cache_seqlens[b]`` tokens of each sequence; the last q_len of them are ``q``'s.

    Query t sees the first ``cache_seqlens[b]`` - q_len + t + 1 tokens; one that sees none gives zeros. An
    int8 cache is attended on its codes, it is never dequantised into memory.

    Raises:
        ValueError: also if ``cache_seqlens[b]`` is not in [0, capacity], for any sequence b.
    """
    if workspace is None and torch.compiler.is_compiling():
        # Inductor cannot lower an operator that may write a tensor but is given none to write.
        workspace = decode_workspace(q, k_cache)
    return _ops.decode_attention.default(
        q,
        k_cache,
        v_cache,
        cache_seqlens,
        k_scale=k_scale,
        v_scale=v_scale,
        softmax_scale=softmax_scale,
        workspace=workspace,
        softmax_lse=softmax_lse,
    )


def append_decode_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_seqlens: Tensor,
    *,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    softmax_scale: float | None = None,
    workspace: Tensor | None = None,
    softmax_lse: Tensor | None = None,
) -> Tensor:
    """``kv_append``, then attention to all ``cache_seqlens[b]`` + q_len tokens, in one pass.

    Meant for a few query tokens. The new tokens too are attended to as the cache holds them, so that a replay
    gives the same bits.

    Raises:
        ValueError: also if ``cache_seqlens[b]`` + q_len exceeds the capacity, for any sequence b.
    """
    return _ops.append_decode_attention.default(
        q,
        k,
        v,
        k_cache,
        v_cache,
        cache_seqlens,
        k_scale=k_scale,
        v_scale=v_scale,
        softmax_scale=softmax_scale,
        workspace=workspace,
        softmax_lse=softmax_lse,
    )


def prefill_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    cache_seqlens: Tensor,
    *,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    softmax_scale: float | None = None,
) -> Tensor:
    """The same as ``append_decode_attention`` for many query tokens, such as a prompt.

    ``q``, ``k`` and ``v`` get gradients; the tokens that were in the cache before are constants. The backward
    pass needs q, k and v and, since the cache may be overwritten by then, a copy of those tokens: of as many
    as the longest sequence has, or on CUDA and in compiled code of capacity - q_len, so that a cache for
    training should have no more room than its sequences need. It takes [batch, heads, q_len, tokens] float32
    numbers several times.

    Raises:
        ValueError: also if ``cache_seqlens[b]`` + q_len exceeds the capacity, for any sequence b.
        NotImplementedError: also if gradients are recorded and the cache is int8 (rounding has none) or
            requires one itself.
    """
    return _ops.prefill_attention.default(
        q,
        k,
        v,
        k_cache,
        v_cache,
        cache_seqlens,
        k_scale=k_scale,
        v_scale=v_scale,
        softmax_scale=softmax_scale,
    )


def quantize_kv(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantises rows: ``x`` [..., width] -> int8 codes [..., width] in [-127, 127], float32 scales [...].

    The scale of a row is its absmax / 127; that of a row of zeros is 0, and that of a row that holds a NaN
    or an infinity is NaN.
    """
    return _ops.quantize_kv.default(x)


def dequantize_kv(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """int8 ``codes`` [..., width] times float32 ``scale`` [...], as ``dtype`` (a floating one)."""
    return _ops.dequantize_kv.default(codes, scale, dtype)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    weight_scale: Tensor | None = None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    norm_epsilon: float = 1e-5,
    gelu: Literal["none", "tanh", "exact"] = "none",
    fine_activations: bool = False,
    packed: bool = False,
) -> Tensor:
    """gelu(linear(layernorm(x))) in one pass over the weight, on the CPU.

    ``x`` [..., in] (float32, bfloat16 or float16, any strides) -> [..., out] of its dtype. ``bias`` [out],
    ``norm_weight`` and ``norm_bias`` [in] are of its dtype too; without ``norm_weight`` there is no norm.

    ``weight`` is [out, in] of the dtype of ``x``, or the codes that ``quantize_weight`` gave, with their
    scales as ``weight_scale``. Beside codes the rows of ``x`` are rounded as well: beside int8 each 64 inputs
    to eight bits, or to 13 to 15 where one stands out or ``fine_activations`` asks for it (products of many
    rows then take twice as long), beside int4 each 32 inputs to 127 steps.

    With ``packed`` the weight is what ``pack_weight`` gave, and scales of int4 codes what ``pack_scales``
    gave; that is faster, of floats from two rows on. More than 32 rows of bfloat16 beside another weight go
    to PyTorch's own products where the machine multiplies bfloat16.

    Raises:
        TypeError: a dtype.
        ValueError: another argument.
        NotImplementedError: a device other than the CPU, or an argument that requires a gradient.
    """
    return _ops.linear.default(
        x,
        weight,
        bias,
        weight_scale=weight_scale,
        norm_weight=norm_weight,
        norm_bias=norm_bias,
        norm_epsilon=norm_epsilon,
        gelu=gelu,
        fine_activations=fine_activations,
        packed=packed,
    )


def pack_weight(weight: Tensor) -> Tensor:
    """A weight [out, in] (float32, bfloat16, float16, or codes, on the CPU) packed for ``linear``.

    The shape is the same, the order is another: 16 outputs side by side for each input, [in, 16], the last of
    these panels as wide as outputs are left. Of int8 codes four inputs of an output stay together,
    [in / 4, 16, 4], each plus 128 modulo 256, of int4 codes four bytes, [in / 8, 16, 4]; the scales of the
    latter go through ``pack_scales``. Where the CPU has no products of bytes (VNNI)
    packed int8 codes are slower than others.

    Raises:
        TypeError, ValueError: a weight of another dtype or shape, or codes of which ``in`` is no multiple of
            4, of int4 of 32.
        NotImplementedError: a device other than the CPU, or a weight that requires a gradient.
    """
    return _ops.pack_weight.default(weight)


def pack_scales(scale: Tensor) -> Tensor:
    """Scales [out, in / 32] of int4 codes packed for ``linear`` beside packed codes: [out * in / 32].

    They lie as ``pack_weight`` orders float weights. Raises what it raises.
    """
    return pack_weight(scale).flatten()


def quantize_weight(weight: Tensor, format: Literal["int8", "int4"]) -> tuple[Tensor, Tensor]:
    """A weight [out, in] (float32, bfloat16 or float16, on the CPU) as codes and scales for ``linear``.

    - ``"int8"``: int8 codes [out, in] in [-127, 127] and float32 scales [out], a row's absmax / 127.
    - ``"int4"``: groups of 32 inputs share a float16 scale of either sign, [out, in / 32], chosen for the
      least squared error. Codes are in [-8, 7]; byte m of the 16 of a group, in uint8 [out, in / 2], holds
      those of inputs m (its low half) and 16 + m, each plus 8.

    Zeros have scale 0.

    Raises:
        ValueError: also if a value is NaN or infinite, or for int4 larger than about 680,000; and if ``in``
            is no multiple of 32 for int4.
    """
    return _ops.quantize_weight.default(weight, format)
