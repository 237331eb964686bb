"""Every message of the operators' argument rules."""

import re

import kvfuse  # noqa: F401  registers the operators
import pytest
import torch
from op_error_cases import ALL, APPENDING, BAD_ARGUMENTS, BAD_SCALES, BAD_WORKSPACES, DECODING, QUANTISATION
from op_inputs import make_layer
from torch import Tensor

OPS = torch.ops.kvfuse
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


@pytest.mark.parametrize("other", ["q", "k_cache", "v_scale"])
@pytest.mark.parametrize("op", DECODING)
def test_a_softmax_lse_inside_another_tensor(op, other, device):
    given = arguments(op, int8=True, device=device)
    memory = torch.zeros(given[other].numel() + 4, dtype=given[other].dtype, device=device)
    given[other] = memory[: given[other].numel()].view(given[other].shape)
    given["softmax_lse"] = memory.view(torch.float32)[:8].view(2, 4, 1)
    message = f"expected softmax_lse and {other} in separate memory, got tensors that overlap"
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


@pytest.mark.parametrize("case", QUANTISATION)
def test_bad_quantisation_arguments(case, device):
    op, args, error, message = QUANTISATION[case]
    message = message.replace("DEVICE", str(torch.zeros(0, device=device).device))
    with pytest.raises(error, match=re.escape(f"kvfuse::{op}: {message}")):
        getattr(OPS, op)(*(moved(x, device) for x in args))


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
