"""What is wrong in the calls of test_op_errors.py, and what the operators then say.

In the messages FIRST stands for the operator's first argument, and DEVICE, HEAD_DIMS and WORKSPACE for what
depends on the device.
"""

import torch
from torch import Tensor

ATTENTION = ("decode_attention", "append_decode_attention", "prefill_attention")
APPENDING = ("append_decode_attention", "prefill_attention", "kv_append")
DECODING = ("decode_attention", "append_decode_attention")
ALL = (*ATTENTION, "kv_append")


def zeros(*shape: int, dtype=torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


# What is changed of valid arguments (None: left out), for which operators, and what they then say.
BAD_ARGUMENTS = {
    "no_query": (ATTENTION, {"q": None}, TypeError, "expected q to be a tensor, got None"),
    "no_v": (APPENDING, {"v": None}, TypeError, "expected v to be a tensor, got None"),
    "no_lengths": (
        ALL,
        {"cache_seqlens": None},
        TypeError,
        "expected cache_seqlens to be a tensor, got None",
    ),
    "rank": (
        ATTENTION,
        {"q": zeros(2, 64)},
        ValueError,
        "expected q of shape [batch, heads, q_len, head_dim], got [2, 64]",
    ),
    "rank_of_k": (
        ("kv_append",),
        {"k": zeros(2, 64)},
        ValueError,
        "expected k of shape [batch, kv_heads, tokens, head_dim], got [2, 64]",
    ),
    "rank_of_cache": (
        ALL,
        {"k_cache": zeros(2, 9, 64), "v_cache": zeros(2, 9, 64)},
        ValueError,
        "expected k_cache of shape [batch, kv_heads, capacity, head_dim], got [2, 9, 64]",
    ),
    "query_dtype": (
        ATTENTION,
        {"q": zeros(2, 4, 1, 64, dtype=torch.int64)},
        TypeError,
        "expected q of dtype float32, bfloat16 or float16, got int64",
    ),
    "query_dtype_int8": (
        ATTENTION,
        {"q": zeros(2, 4, 1, 64, dtype=torch.int8)},
        TypeError,
        "expected q of dtype float32, bfloat16 or float16, got int8",
    ),
    "new_dtype": (
        ("kv_append",),
        {"k": zeros(2, 2, 1, 64, dtype=torch.float64)},
        TypeError,
        "expected k of dtype float32, bfloat16 or float16, got float64",
    ),
    "dtype_of_k": (
        ("append_decode_attention", "prefill_attention"),
        {"k": zeros(2, 2, 1, 64, dtype=torch.float16)},
        TypeError,
        "expected k of dtype float32 (that of q), got float16",
    ),
    "dtype_of_v": (
        ("kv_append",),
        {"v": zeros(2, 2, 1, 64, dtype=torch.float16)},
        TypeError,
        "expected v of dtype float32 (that of k), got float16",
    ),
    "cache_dtype": (
        ATTENTION,
        {"k_cache": zeros(2, 2, 9, 64, dtype=torch.bfloat16)},
        TypeError,
        "expected k_cache of dtype float32 (that of q) or int8, got bfloat16",
    ),
    "caches_of_two_dtypes": (
        ALL,
        {"v_cache": zeros(2, 2, 9, 64, dtype=torch.int8)},
        TypeError,
        "expected v_cache of dtype float32 (that of k_cache), got int8",
    ),
    "lengths_dtype": (
        ALL,
        {"cache_seqlens": zeros(2, dtype=torch.int64)},
        TypeError,
        "expected cache_seqlens of dtype int32, got int64",
    ),
    "head_dim": (
        ATTENTION,
        {"q": zeros(2, 4, 1, 40)},
        NotImplementedError,
        "expected q with a head_dim of HEAD_DIMS, got 40",
    ),
    "head_dim_of_k": (
        ("kv_append",),
        {"k": zeros(2, 2, 1, 0)},
        NotImplementedError,
        "expected k with a head_dim of HEAD_DIMS, got 0",
    ),
    "batch_of_cache": (
        ATTENTION,
        {"k_cache": zeros(3, 2, 9, 64), "v_cache": zeros(3, 2, 9, 64)},
        ValueError,
        "expected k_cache with the batch of q (2), got 3",
    ),
    "head_dim_of_cache": (
        ("kv_append",),
        {"k_cache": zeros(2, 2, 9, 32), "v_cache": zeros(2, 2, 9, 32)},
        ValueError,
        "expected k_cache with the head_dim of k (64), got 32",
    ),
    "no_kv_head": (
        ALL,
        {"k_cache": zeros(2, 0, 9, 64), "v_cache": zeros(2, 0, 9, 64)},
        ValueError,
        "expected at least one head in k_cache, got shape [2, 0, 9, 64]",
    ),
    "caches_of_two_shapes": (
        ALL,
        {"v_cache": zeros(2, 2, 8, 64)},
        ValueError,
        "expected v_cache of shape [2, 2, 9, 64] (that of k_cache), got [2, 2, 8, 64]",
    ),
    "heads": (
        ATTENTION,
        {"q": zeros(2, 3, 1, 64)},
        ValueError,
        "expected heads of q to be a multiple of the 2 kv_heads of k_cache, got 3",
    ),
    "no_head": (
        ATTENTION,
        {"q": zeros(2, 0, 1, 64)},
        ValueError,
        "expected heads of q to be a multiple of the 2 kv_heads of k_cache, got 0",
    ),
    "shape_of_k": (
        ("append_decode_attention", "prefill_attention"),
        {"k": zeros(2, 2, 2, 64)},
        ValueError,
        "expected k of shape [2, 2, 1, 64] (batch, kv_heads, tokens, head_dim), got [2, 2, 2, 64]",
    ),
    "shape_of_v": (
        APPENDING,
        {"v": zeros(2, 4, 1, 64)},
        ValueError,
        "expected v of shape [2, 2, 1, 64] (batch, kv_heads, tokens, head_dim), got [2, 4, 1, 64]",
    ),
    "heads_of_k": (
        ("kv_append",),
        {"k": zeros(2, 4, 1, 64)},
        ValueError,
        "expected k of shape [2, 2, 1, 64] (batch, kv_heads, tokens, head_dim), got [2, 4, 1, 64]",
    ),
    "lengths_shape": (
        ALL,
        {"cache_seqlens": zeros(3, dtype=torch.int32)},
        ValueError,
        "expected cache_seqlens of shape [2] (batch of k_cache), got [3]",
    ),
    "strided_cache": (
        ALL,
        {"k_cache": zeros(2, 9, 2, 64).transpose(1, 2)},
        ValueError,
        "expected a contiguous k_cache, got strides [1152, 64, 128, 1]",
    ),
    "strided_v_cache": (
        ALL,
        {"v_cache": zeros(2, 1, 9, 64).expand(2, 2, 9, 64)},
        ValueError,
        "expected a contiguous v_cache, got strides [576, 0, 64, 1]",
    ),
    "strided_lengths": (
        ALL,
        {"cache_seqlens": zeros(1, dtype=torch.int32).expand(2)},
        ValueError,
        "expected a contiguous cache_seqlens, got strides [0]",
    ),
    "scale_without_int8": (
        ALL,
        {"k_scale": zeros(2, 2, 9)},
        ValueError,
        "expected no k_scale with a float32 cache (only int8 has scales), got a tensor",
    ),
    "device": (  # a meta tensor sends the call to the meta implementation, which has the same rules
        ALL,
        {"v_cache": torch.zeros(2, 2, 9, 64, device="meta")},
        ValueError,
        "expected v_cache on the device of FIRST (DEVICE), got meta",
    ),
    "workspace_device": (
        DECODING,
        {"workspace": zeros(64, dtype=torch.uint8).to("meta")},
        ValueError,
        "expected workspace on the device of q (DEVICE), got meta",
    ),
    "workspace_dtype": (
        DECODING,
        {"workspace": zeros(64)},
        TypeError,
        "expected workspace of dtype uint8, got float32",
    ),
    "strided_workspace": (
        DECODING,
        {"workspace": zeros(64, dtype=torch.uint8)[::2]},
        ValueError,
        "expected a contiguous workspace, got strides [2]",
    ),
    "misaligned_workspace": (
        DECODING,
        {"workspace": zeros(64, dtype=torch.uint8)[5:]},
        ValueError,
        "expected workspace to start at a multiple of 16 bytes, got an address that is 5 past one",
    ),
    "workspace_size": (
        DECODING,
        {"workspace": zeros(10**6, dtype=torch.uint8)},
        ValueError,
        "expected a workspace of WORKSPACE bytes (as kvfuse::decode_workspace makes for this q and k_cache), "
        "got 1000000",
    ),
    "softmax_lse_device": (
        DECODING,
        {"softmax_lse": zeros(2, 4, 1).to("meta")},
        ValueError,
        "expected softmax_lse on the device of q (DEVICE), got meta",
    ),
    "softmax_lse_dtype": (
        DECODING,
        {"softmax_lse": zeros(2, 4, 1, dtype=torch.bfloat16)},
        TypeError,
        "expected softmax_lse of dtype float32, got bfloat16",
    ),
    "softmax_lse_shape": (
        DECODING,
        {"softmax_lse": zeros(2, 4)},
        ValueError,
        "expected softmax_lse of shape [2, 4, 1] (batch, heads, q_len of q), got [2, 4]",
    ),
    "strided_softmax_lse": (
        DECODING,
        {"softmax_lse": zeros(2, 4, 2)[..., :1]},
        ValueError,
        "expected a contiguous softmax_lse, got strides [8, 2, 1]",
    ),
    "negative_length": (
        ALL,
        {"cache_seqlens": torch.tensor([0, -1], dtype=torch.int32)},
        ValueError,
        "expected cache_seqlens[1] >= 0, got -1",
    ),
    "length": (
        ("decode_attention",),
        {"cache_seqlens": torch.tensor([10, 0], dtype=torch.int32)},
        ValueError,
        "expected cache_seqlens[0] <= 9 (capacity of k_cache), got 10",
    ),
    "capacity": (
        APPENDING,
        {"cache_seqlens": torch.tensor([0, 2**31 - 1], dtype=torch.int32)},
        ValueError,
        "expected cache_seqlens[1] + 1 <= 9 (capacity of k_cache), got 2147483648",
    ),
    "softmax_scale": (
        ATTENTION,
        {"softmax_scale": float("nan")},
        ValueError,
        "expected a finite softmax_scale, got nan",
    ),
    "softmax_scale_beyond_float32": (
        ATTENTION,
        {"softmax_scale": 1e300},
        ValueError,
        "expected a finite softmax_scale, got 1e+300",
    ),
}
BAD_SCALES = {
    "no_scale": ({"v_scale": None}, ValueError, "expected v_scale with an int8 cache, got None"),
    "scale_dtype": (
        {"k_scale": zeros(2, 2, 9, dtype=torch.float16)},
        TypeError,
        "expected k_scale of dtype float32, got float16",
    ),
    "scale_shape": (
        {"v_scale": zeros(2, 2, 8)},
        ValueError,
        "expected v_scale of shape [2, 2, 9] (batch, kv_heads, capacity of k_cache), got [2, 2, 8]",
    ),
    "strided_scale": (
        {"k_scale": zeros(2, 9, 2).mT},
        ValueError,
        "expected a contiguous k_scale, got strides [18, 1, 2]",
    ),
    "scale_device": (
        {"k_scale": torch.zeros(2, 2, 9, device="meta")},
        ValueError,
        "expected k_scale on the device of k_cache (DEVICE), got meta",
    ),
}

QUANTISATION = {
    "no_codes": (
        "dequantize_kv",
        (None, zeros(2), torch.float32),
        TypeError,
        "expected codes to be a tensor, got None",
    ),
    "quantize_dtype": (
        "quantize_kv",
        (zeros(2, 3, dtype=torch.int32),),
        TypeError,
        "expected x of dtype float32, bfloat16 or float16, got int32",
    ),
    "quantize_rank": ("quantize_kv", (zeros(),), ValueError, "expected x of shape [..., width], got []"),
    "codes_dtype": (
        "dequantize_kv",
        (zeros(2, 3), zeros(2), torch.float32),
        TypeError,
        "expected codes of dtype int8, got float32",
    ),
    "scale_dtype": (
        "dequantize_kv",
        (zeros(2, 3, dtype=torch.int8), zeros(2, dtype=torch.float64), torch.float32),
        TypeError,
        "expected scale of dtype float32, got float64",
    ),
    "scale_shape": (
        "dequantize_kv",
        (zeros(2, 3, dtype=torch.int8), zeros(2, 1), torch.float32),
        ValueError,
        "expected scale of shape [2] (that of codes without its last dimension), got [2, 1]",
    ),
    "codes_rank": (
        "dequantize_kv",
        (zeros(dtype=torch.int8), zeros(), torch.float32),
        ValueError,
        "expected codes of shape [..., width], got []",
    ),
    "result_dtype": (
        "dequantize_kv",
        (zeros(2, 3, dtype=torch.int8), zeros(2), torch.int8),
        TypeError,
        "expected a result of dtype float32, bfloat16 or float16, got int8",
    ),
    "device": (
        "dequantize_kv",
        (zeros(2, 3, dtype=torch.int8), torch.zeros(2, device="meta"), torch.float32),
        ValueError,
        "expected scale on the device of codes (DEVICE), got meta",
    ),
}

BAD_WORKSPACES = {
    "no_cache": ({"k_cache": None}, TypeError, "expected k_cache to be a tensor, got None"),
    "heads": (
        {"q": zeros(2, 3, 1, 64)},
        ValueError,
        "expected heads of q to be a multiple of the 2 kv_heads of k_cache, got 3",
    ),
    "batch": ({"q": zeros(1, 4, 1, 64)}, ValueError, "expected k_cache with the batch of q (1), got 2"),
    "dtype": (
        {"q": zeros(2, 4, 1, 64, dtype=torch.float16)},
        TypeError,
        "expected k_cache of dtype float16 (that of q) or int8, got float32",
    ),
    "rank": (
        {"q": zeros(2, 64)},
        ValueError,
        "expected q of shape [batch, heads, q_len, head_dim], got [2, 64]",
    ),
}
