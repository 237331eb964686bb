"""Every message of the operators' argument rules."""

import re

import kvfuse  # noqa: F401  registers the operators
import pytest
import torch
from op_inputs import make_layer
from torch import Tensor

OPS = torch.ops.kvfuse
ATTENTION = ("decode_attention", "append_decode_attention", "prefill_attention")
APPENDING = ("append_decode_attention", "prefill_attention", "kv_append")
DECODING = ("decode_attention", "append_decode_attention")
ALL = (*ATTENTION, "kv_append")
HEAD_DIMS = {"cpu": "16, 32, 48, 64, 80, 96, 128 on cpu", "cuda": "64, 80, 96, 128 on cuda"}


def arguments(op: str, int8: bool = False, **options) -> dict[str, Tensor]:
    """Valid arguments by name: batch 2, 4 heads, 2 kv_heads, capacity 9, head_dim 64, lengths 5 and 3."""
    layer = make_layer(int8=int8, **options)
    found = {"q": layer.q, "k": layer.k, "v": layer.v}
    found |= {"k_cache": layer.k_cache, "v_cache": layer.v_cache, "cache_seqlens": layer.cache_seqlens}
    if op == "kv_append":
        del found["q"]
    if op == "decode_attention":
        del found["k"], found["v"]
    return found | layer.scales


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


def moved(x, device: str):
    """A tensor on `device`, with the strides and offset it had; others and meta tensors as they are."""
    if device == "cpu" or not isinstance(x, Tensor) or x.device.type == "meta":
        return x
    whole = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage()).to(device)
    return whole.as_strided(x.shape, x.stride(), x.storage_offset())


def assert_refused(op: str, given: dict, error: type[Exception], message: str) -> None:
    tensors = {name: x for name, x in given.items() if isinstance(x, Tensor) and x.device.type != "meta"}
    before = {name: x.clone() for name, x in tensors.items()}
    with pytest.raises(error, match=re.escape(f"kvfuse::{op}: {message}")):
        getattr(OPS, op)(**given)
    torch.testing.assert_close(tensors, before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("op", "case"), [(op, name) for name, case in BAD_ARGUMENTS.items() for op in case[0]]
)
def test_bad_arguments(op, case, device):
    _, changed, error, message = BAD_ARGUMENTS[case]
    valid = arguments(op, device=device)
    given = valid | {name: moved(x, device) for name, x in changed.items()}
    if "WORKSPACE" in message:
        message = message.replace(
            "WORKSPACE", str(OPS.decode_workspace(valid["q"], valid["k_cache"]).numel())
        )
    message = message.replace("HEAD_DIMS", HEAD_DIMS[device]).replace("DEVICE", str(valid["v_cache"].device))
    assert_refused(op, given, error, message.replace("FIRST", "k" if op == "kv_append" else "q"))


@pytest.mark.parametrize("case", BAD_SCALES)
@pytest.mark.parametrize("op", ALL)
def test_bad_scales(op, case, device):
    changed, error, message = BAD_SCALES[case]
    valid = arguments(op, int8=True, device=device)
    given = valid | {name: moved(x, device) for name, x in changed.items()}
    assert_refused(op, given, error, message.replace("DEVICE", str(valid["k_cache"].device)))


OVERLAPS = (
    ("k_cache", "v_cache"),
    ("k_cache", "k"),
    ("v_cache", "v"),
    ("k_scale", "v_scale"),
    ("k_cache", "q"),
)


@pytest.mark.parametrize(
    ("op", "first", "second"),
    [(op, *pair) for op in APPENDING for pair in OVERLAPS if not (op == "kv_append" and "q" in pair)],
)
def test_overlapping_memory(op, first, second, device):
    given = arguments(op, int8="scale" in first, device=device)
    written, read = given[first], given[second]
    shared = 16 // written.element_size()  # as few elements as leave both aligned
    memory = torch.zeros(written.numel() + read.numel() - shared, dtype=written.dtype, device=device)
    given[first] = memory[: written.numel()].view(written.shape)
    given[second] = memory[-read.numel() :].view(read.shape)
    message = f"expected {first} and {second} in separate memory, got tensors that overlap"
    assert_refused(op, given, ValueError, message)


@pytest.mark.parametrize("op", DECODING)
def test_a_workspace_inside_the_cache(op, device):
    given = arguments(op, int8=True, device=device)
    needed = OPS.decode_workspace(given["q"], given["k_cache"]).numel()
    if needed == 0:
        pytest.skip(f"the workspace is empty on {device}")
    memory = torch.zeros(max(needed, given["k_cache"].numel()), dtype=torch.int8, device=device)
    given["k_cache"] = memory[: given["k_cache"].numel()].view(given["k_cache"].shape)
    given["workspace"] = memory[:needed].view(torch.uint8)
    message = "expected workspace and k_cache in separate memory, got tensors that overlap"
    assert_refused(op, given, ValueError, message)


@pytest.mark.parametrize("name", ["k_cache", "v_cache", "k_scale", "v_scale"])
@pytest.mark.parametrize("op", ALL)
def test_caches_that_are_misaligned_are_refused_by_cuda_alone(op, name, device):
    given = arguments(op, int8=True, device=device)
    memory = torch.zeros(given[name].numel() + 1, dtype=given[name].dtype, device=device)
    given[name] = memory[1:].view(given[name].shape)
    past = memory.element_size()
    message = f"expected {name} to start at a multiple of 16 bytes, got an address that is {past} past one"
    if device == "cuda":
        assert_refused(op, given, ValueError, message)
    else:
        getattr(OPS, op)(**given)


@pytest.mark.parametrize("op", APPENDING)
def test_neighbours_in_memory_are_accepted(op, device):
    given = arguments(op, device=device)
    given["k_cache"], given["v_cache"] = torch.stack([given["k_cache"], given["v_cache"]])
    getattr(OPS, op)(**given)


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


@pytest.mark.parametrize("case", QUANTISATION)
def test_bad_quantisation_arguments(case, device):
    op, args, error, message = QUANTISATION[case]
    message = message.replace("DEVICE", str(torch.zeros(0, device=device).device))
    with pytest.raises(error, match=re.escape(f"kvfuse::{op}: {message}")):
        getattr(OPS, op)(*(moved(x, device) for x in args))


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


@pytest.mark.parametrize("case", BAD_WORKSPACES)
def test_bad_arguments_of_decode_workspace(case, device):
    changed, error, message = BAD_WORKSPACES[case]
    layer = make_layer(device=device)
    given = {"q": layer.q, "k_cache": layer.k_cache}
    given |= {name: moved(x, device) for name, x in changed.items()}
    assert_refused("decode_workspace", given, error, message)


def test_tensors_on_two_devices(device):
    if device == "cpu":
        pytest.skip("one device only")
    for op in ALL:
        valid = arguments(op, device=device)
        first = next(iter(valid))
        for name in [name for name in valid if name != first]:
            message = f"expected {name} on the device of {first} ({valid[first].device}), got cpu"
            assert_refused(op, valid | {name: valid[name].cpu()}, ValueError, message)
