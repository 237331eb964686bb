"""Random calls of each operator: the reference's result or an exception, and no byte written elsewhere.

KVFUSE_FUZZ_CALLS says how many calls of each operator; ``make op-fuzz`` makes 10,000, with and without
AddressSanitizer.
"""

import os
import random

import kvfuse  # noqa: F401  registers the operators
import pytest
import reference
import torch
from op_inputs import FLOATS, one_thread
from torch import Tensor

OPS = torch.ops.kvfuse
ATTENTION = ("decode_attention", "append_decode_attention", "prefill_attention")

CALLS = int(os.environ.get("KVFUSE_FUZZ_CALLS", "1000"))
GUARD = 64  # bytes kept around every tensor of the fuzzer that an operator may write


class Fuzzer:
    """Random arguments: most calls are valid but for one or two of them."""

    def __init__(self, seed: int, device: str) -> None:
        self.device = device
        self.random = random.Random(seed)
        self.numbers = torch.Generator(device).manual_seed(seed)
        self.guarded: list[Tensor] = []

    def dimension(self, valid: int) -> int:
        return valid if self.random.random() < 0.985 else self.random.choice([0, 1, 2, 3, 7, 16, 65])

    def dtype(self, valid: torch.dtype) -> torch.dtype:
        others = [*FLOATS, torch.int8, torch.int32, torch.int64, torch.float64, torch.bool]
        return valid if self.random.random() < 0.985 else self.random.choice(others)

    def values(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if dtype.is_floating_point:
            return torch.randn(shape, generator=self.numbers, device=self.device).to(dtype)
        codes = torch.randint(-127, 128, shape, generator=self.numbers, device=self.device)
        return codes.to(dtype)

    def tensor(self, *shape: int, dtype: torch.dtype, strided: bool) -> Tensor:
        shape = tuple(self.dimension(size) for size in shape)
        dtype = self.dtype(dtype)
        size = torch.Size(shape).numel() * dtype.itemsize + 2 * GUARD
        memory = torch.full((size,), 0x11, dtype=torch.uint8, device=self.device)
        self.guarded.append(memory)
        x = memory[GUARD:-GUARD].view(dtype).view(shape)
        x.copy_(self.values(shape, dtype))
        if self.random.random() < (0.4 if strided else 0.01) and len(shape) > 1:
            a, b = self.random.sample(range(len(shape)), 2)
            return x.transpose(a, b).contiguous().transpose(a, b)
        if self.random.random() < 0.01:
            return x[..., None]
        return x

    def attention_arguments(self, op: str) -> dict:
        choose = self.random.choice
        batch, kv_heads, capacity = choose([0, 1, 2, 3]), choose([1, 2, 3]), choose([0, 1, 5, 300])
        heads, q_len, head_dim = (
            kv_heads * choose([1, 2]),
            choose([0, 1, 1, 2, 5, 66]),
            choose([16, 64, 80, 128]),
        )
        dtype, int8 = choose(FLOATS), choose([False, True])
        room = max(0, capacity - (q_len if op != "decode_attention" else 0))
        lengths = [self.random.randint(0, room) for _ in range(self.dimension(batch))]
        if self.random.random() < 0.03:
            lengths = [choose([-1, 301, 2**31 - 1]) for _ in lengths]
        cache = {"dtype": torch.int8 if int8 else dtype, "strided": False}
        given = {"q": self.tensor(batch, heads, q_len, head_dim, dtype=dtype, strided=True)}
        for name in ("k", "v"):
            given[name] = self.tensor(batch, kv_heads, q_len, head_dim, dtype=dtype, strided=True)
            given[f"{name}_cache"] = self.tensor(batch, kv_heads, capacity, head_dim, **cache)
            if int8 == (self.random.random() < 0.99):
                scale = self.tensor(batch, kv_heads, capacity, dtype=torch.float32, strided=False)
                # Values of size 1: larger scores would have no digits left.
                given[f"{name}_scale"] = scale.abs_().div_(100) if scale.is_floating_point() else scale
        given["cache_seqlens"] = torch.tensor(lengths).to(self.device, self.dtype(torch.int32))
        if op == "decode_workspace":
            return {"q": given["q"], "k_cache": given["k_cache"]}
        for name in {"kv_append": ("q",), "decode_attention": ("k", "v")}.get(op, ()):
            del given[name]
        if op != "kv_append" and choose([False, True]):
            given["softmax_scale"] = choose([0.1, 1.0, -1.0, 0.0, float("inf")])
        if op in ("decode_attention", "append_decode_attention") and choose([False, True]):
            given["softmax_lse"] = self.tensor(batch, heads, q_len, dtype=torch.float32, strided=False)
        tensors = [name for name, x in given.items() if isinstance(x, Tensor)]
        if self.random.random() < 0.01:
            given[choose(tensors)] = given[choose(tensors)]  # one tensor twice
        if self.random.random() < 0.03:
            name = choose(tensors)
            if given[name].is_floating_point():
                given[name] = given[name].detach().requires_grad_()
        if self.random.random() < 0.01:
            given[choose(list(given))] = choose([None, 1, torch.zeros((), device="meta")])
        return given

    def quantisation_arguments(self, op: str) -> dict:
        shape = [self.random.choice([0, 1, 3, 70]) for _ in range(self.random.randint(0, 3))]
        if op == "quantize_kv":
            return {"x": self.tensor(*shape, dtype=self.random.choice(FLOATS), strided=True)}
        return {
            "codes": self.tensor(*shape, dtype=torch.int8, strided=True),
            "scale": self.tensor(*shape[:-1], dtype=torch.float32, strided=True),
            "dtype": self.dtype(self.random.choice(FLOATS)),
        }

    def assert_guards(self) -> None:
        for memory in self.guarded:
            assert (memory[:GUARD] == 0x11).all() and (memory[-GUARD:] == 0x11).all()
        self.guarded.clear()


def expected_cache(given: dict, before: dict) -> dict[str, Tensor]:
    """The cache after the new tokens of a call have been appended, from what it was."""
    want = {name: x.clone() for name, x in before.items() if name.startswith(("k_", "v_"))}
    for name in ("k", "v"):
        rows, scales = given[name].detach(), None
        if f"{name}_scale" in want:
            rows, scales = reference.quantize(rows)
        for b, length in enumerate(before["cache_seqlens"].tolist()):
            end = length + rows.shape[2]
            want[f"{name}_cache"][b, :, length:end] = rows[b]
            if scales is not None:
                want[f"{name}_scale"][b, :, length:end] = scales[b]
    return want


def assert_attention(out: Tensor, given: dict, appended: int) -> None:
    """The result belongs to the cache as it is now."""
    q = given["q"].detach()
    assert out.shape == q.shape and out.dtype == q.dtype
    if out.numel() == 0:
        return
    k, v = given["k_cache"].double(), given["v_cache"].double()
    if given["k_cache"].dtype == torch.int8:
        k, v = k * given["k_scale"][..., None], v * given["v_scale"][..., None]
    scale = given.get("softmax_scale")
    scale = q.shape[3] ** -0.5 if scale is None else scale
    lengths = [length + appended for length in given["cache_seqlens"].tolist()]
    scaled = q.cpu().double() * scale * q.shape[3] ** 0.5  # the reference divides by the root
    want = reference.attention(scaled, k.cpu(), v.cpu(), lengths)
    # The first rows of a query that sees nothing are zeros; the reference has NaN there.
    want = want.nan_to_num(0)
    error = (out.detach().cpu().double() - want).abs().max()
    assert error <= (3e-3 + torch.finfo(out.dtype).eps) * want.abs().max(), f"error {error:.3g}"
    if given.get("softmax_lse") is not None:
        want = reference.softmax_lse(scaled, k.cpu(), lengths)
        torch.testing.assert_close(given["softmax_lse"].cpu().double(), want, rtol=1e-4, atol=5e-3)


def assert_right(op: str, given: dict, before: dict, out) -> None:
    """The result, and what was written, equal the reference's."""
    if op == "decode_workspace":
        assert out.dtype == torch.uint8 and not out.any()
    elif op == "quantize_kv":
        x = given["x"]
        codes, scale = reference.quantize(x) if x.shape[-1] else (x, torch.zeros(x.shape[:-1]))
        assert torch.equal(out[0].cpu(), codes.cpu().to(torch.int8)) and torch.equal(
            out[1].cpu(), scale.cpu()
        )
    elif op == "dequantize_kv":
        want = reference.dequantize(given["codes"].cpu(), given["scale"].cpu()).float().to(given["dtype"])
        assert torch.equal(out.cpu(), want)
    else:
        appends = op != "decode_attention"
        want = expected_cache(given, before) if appends else before
        for name in [name for name in want if name.startswith(("k_", "v_"))]:
            assert torch.equal(given[name], want[name]), name
        if op != "kv_append":
            assert_attention(out, given, given["k"].shape[2] if appends else 0)
            if out.requires_grad:
                out.sum().backward()


def call(op: str, given: dict) -> bool:
    """Whether it had a result; that, or the message, is as it should be."""
    before = {name: x.clone() for name, x in given.items() if isinstance(x, Tensor)}
    try:
        out = getattr(OPS, op)(**given)
    except (ValueError, TypeError, NotImplementedError) as error:
        assert str(error).startswith(f"kvfuse::{op}: expected ") and ", got " in str(error), error
    except RuntimeError as error:
        assert "kvfuse::" in str(error)
    else:
        if not any(x.is_meta for x in before.values()):
            assert_right(op, given, before, out)
        return True
    for name, x in before.items():
        assert x.is_meta or torch.equal(given[name], x), f"{name} was written by a call that failed"
    return False


@pytest.mark.parametrize("op", [*ATTENTION, "decode_workspace", "kv_append", "quantize_kv", "dequantize_kv"])
@one_thread()
def test_random_arguments_give_the_right_result_or_an_exception(op, device):
    fuzzer = Fuzzer(0, device)
    make = fuzzer.quantisation_arguments if op.endswith("quantize_kv") else fuzzer.attention_arguments
    results = 0
    for _ in range(CALLS):
        results += call(op, make(op))
        fuzzer.assert_guards()
    assert CALLS / 4 < results < CALLS  # both outcomes are exercised
