"""Thousands of random calls of each operator: a result or an exception, and no byte written elsewhere."""

import random

import kvfuse  # noqa: F401  registers the operators
import pytest
import torch
from op_inputs import FLOATS, one_thread
from torch import Tensor

OPS = torch.ops.kvfuse
ATTENTION = ("decode_attention", "append_decode_attention", "prefill_attention")

GUARD = 64  # bytes kept around every tensor of the fuzzer that an operator may write


class Fuzzer:
    """Random arguments: most calls are valid but for one or two of them."""

    def __init__(self, seed: int, device: str) -> None:
        self.device = device
        self.random = random.Random(seed)
        self.guarded: list[Tensor] = []

    def dimension(self, valid: int) -> int:
        return valid if self.random.random() < 0.985 else self.random.choice([0, 1, 2, 3, 7, 16, 65])

    def dtype(self, valid: torch.dtype) -> torch.dtype:
        others = [*FLOATS, torch.int8, torch.int32, torch.int64, torch.float64, torch.bool]
        return valid if self.random.random() < 0.985 else self.random.choice(others)

    def tensor(self, *shape: int, dtype: torch.dtype, strided: bool) -> Tensor:
        shape = tuple(self.dimension(size) for size in shape)
        dtype = self.dtype(dtype)
        size = torch.Size(shape).numel() * dtype.itemsize + 2 * GUARD
        memory = torch.full((size,), 0x11, dtype=torch.uint8, device=self.device)
        self.guarded.append(memory)
        x = memory[GUARD:-GUARD].view(dtype).view(shape)
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
                given[f"{name}_scale"] = scale
        given["cache_seqlens"] = torch.tensor(lengths).to(self.device, self.dtype(torch.int32))
        for name in {"kv_append": ("q",), "decode_attention": ("k", "v")}.get(op, ()):
            del given[name]
        if op != "kv_append" and choose([False, True]):
            given["softmax_scale"] = choose([0.1, 1.0, -1.0, 0.0, float("inf")])
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


@pytest.mark.parametrize("op", [*ATTENTION, "kv_append", "quantize_kv", "dequantize_kv"])
@one_thread()
def test_random_arguments_give_a_result_or_an_exception(op, device):
    fuzzer = Fuzzer(0, device)
    make = fuzzer.quantisation_arguments if op.endswith("quantize_kv") else fuzzer.attention_arguments
    results = 0
    for _ in range(3000):
        given = make(op)
        try:
            out = getattr(OPS, op)(**given)
        except (ValueError, TypeError, NotImplementedError) as error:
            assert str(error).startswith(f"kvfuse::{op}: expected ") and ", got " in str(error), error
        except RuntimeError as error:
            assert "kvfuse::" in str(error)
        else:
            results += 1
            if op in ATTENTION and out.device.type == device:
                assert out.shape == given["q"].shape and out.dtype == given["q"].dtype
        fuzzer.assert_guards()
    assert 750 < results < 3000  # both outcomes are exercised
