"""Exercises each operator once against plain PyTorch: proves that what was built runs on this machine."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kvfuse import ops

BATCH, HEADS, KV_HEADS, HEAD_DIM, CAPACITY = 2, 4, 2, 64, 300
LENGTHS = (257, 40)  # more than one of the kernels' chunks, and a part of one
WEIGHTS = ("float32", "float32 packed", "int8", "int8 packed", "int4", "int4 packed")
LIMIT = 1e-4  # float32 sums of a few hundred terms of size 1; int8 codes are compared as they are


@dataclass(frozen=True)
class Check:
    """One operator with one kind of cache: the largest difference from PyTorch, or why it did not run."""

    name: str
    error: float
    reason: str = ""

    @property
    def passed(self) -> bool:
        return self.error <= LIMIT  # false for NaN


def self_check() -> None:
    """Raises RuntimeError naming every operator whose result is wrong."""
    failed = [check for check in run_checks() if not check.passed]
    if failed:
        raise RuntimeError(f"kvfuse: self-check failed: {'; '.join(describe(check) for check in failed)}")


def describe(check: Check) -> str:
    return f"{check.name}: {check.reason or f'largest error {check.error:.1e} (limit {LIMIT:.0e})'}"


def run_checks() -> list[Check]:
    """Every operator, with a float32 and an int8 cache, and weights of each format."""
    checks = [_measure("quantize_kv, dequantize_kv", _quantize_error)]
    for weights in WEIGHTS:
        checks.append(_measure(f"linear ({weights} weights)", partial(_linear_error, weights)))
    for name, run in CASES.items():
        for is_int8 in (False, True):
            cache = "int8" if is_int8 else "float32"
            checks.append(_measure(f"{name} ({cache} cache)", partial(_run_with_cache, run, is_int8)))
    return checks


def _run_with_cache(run: "Callable[[_Cache], float]", is_int8: bool) -> float:
    return run(_Cache(is_int8))


def _measure(name: str, run: Callable[[], float]) -> Check:
    try:
        return Check(name, run())
    except Exception as error:  # the report goes on with the next operator
        return Check(name, float("nan"), f"{type(error).__name__}: {error}")


class _Cache:
    """A filled cache, its lengths, and the values that it stands for. What lies past a length is NaN."""

    def __init__(self, is_int8: bool) -> None:
        self.random = torch.Generator().manual_seed(0)
        self.seqlens = torch.tensor(LENGTHS, dtype=torch.int32)
        self.k, self.v = (self.normal(KV_HEADS, CAPACITY) for _ in range(2))
        self.scales: dict[str, Any] = {}
        if is_int8:
            self.scales = {"k_scale": self.k.abs().amax(-1) / 127, "v_scale": self.v.abs().amax(-1) / 127}
            self.k, self.v = (
                (x / scale[..., None]).round().to(torch.int8)
                for x, scale in zip((self.k, self.v), self.scales.values(), strict=True)
            )
        for tensor in self.scales.values() if is_int8 else (self.k, self.v):
            for b, length in enumerate(LENGTHS):
                tensor[b, :, length:] = float("nan")

    def normal(self, heads: int, tokens: int) -> Tensor:
        return torch.randn(BATCH, heads, tokens, HEAD_DIM, generator=self.random)

    def values(self, b: int, length: int) -> list[Tensor]:
        """K and V of one sequence in float64, [HEADS, length, HEAD_DIM]."""
        found = [tensor[b, :, :length].double() for tensor in (self.k, self.v)]
        if self.scales:
            found = [
                x * scale[b, :, :length, None].double()
                for x, scale in zip(found, self.scales.values(), strict=True)
            ]
        return [x.repeat_interleave(HEADS // KV_HEADS, 0) for x in found]

    def attention_error(self, q: Tensor, out: Tensor, appended: int) -> float:
        """The largest difference from attention to what the cache holds now."""
        errors = []
        for b, old in enumerate(LENGTHS):
            length = old + appended
            k, v = self.values(b, length)
            mask = torch.ones(q.shape[2], length, dtype=torch.bool).tril(length - q.shape[2])
            scores = (q[b].double() @ k.mT / HEAD_DIM**0.5).masked_fill(~mask, float("-inf"))
            errors.append((out[b].double() - scores.softmax(-1) @ v).abs().max())
        return float(torch.stack(errors).max())


def _quantize_error() -> float:
    x = torch.randn(8, HEAD_DIM, generator=torch.Generator().manual_seed(0))
    codes, scale = ops.quantize_kv(x)
    return _beyond_rounding(ops.dequantize_kv(codes, scale, torch.float32), x, x.abs().amax(-1, True) / 127)


def _beyond_rounding(found: Tensor, want: Tensor, step: Tensor) -> float:
    """The largest difference, less the half step that quantising may cost."""
    return float(((found - want).abs() - step / 2).max().clamp(min=0))


def _linear_error(weights: str) -> float:
    """Of whole numbers that the formats hold exactly: every group of 32 of weights holds a 7, or every row of
    weights and of ``x`` a 127 in int8."""
    random = torch.Generator().manual_seed(0)
    name, packed = weights.removesuffix(" packed"), weights.endswith(" packed")
    most = 7 if name == "int4" else 127
    x, weight = (torch.randint(-7, 8, (rows, 64), generator=random).float() for rows in (3, 40))
    x[:, ::32] = 127
    weight[:, ::32] = most
    bias = torch.randn(40, generator=random)
    want = x.double() @ weight.double().T + bias
    scale = None
    if name != "float32":
        weight, scale = ops.quantize_weight(weight, "int8" if name == "int8" else "int4")
    if packed:
        weight = ops.pack_weight(weight)
        if scale is not None and name == "int4":
            scale = ops.pack_scales(scale)
    found = ops.linear(x, weight, bias, weight_scale=scale, packed=packed)
    return float(((found - want).abs() / want.abs().amax()).max())


def _append_error(cache: _Cache) -> float:
    k, v = cache.normal(KV_HEADS, 2), cache.normal(KV_HEADS, 2)
    ops.kv_append(k, v, cache.k, cache.v, cache.seqlens, **cache.scales)
    errors = []
    for b, length in enumerate(LENGTHS):
        for rows, held in zip((k[b], v[b]), cache.values(b, length + 2), strict=True):
            step = rows.abs().amax(-1, True) / 127 if cache.scales else torch.zeros(())
            errors.append(_beyond_rounding(held[:: HEADS // KV_HEADS, length:], rows, step))
    return float(torch.tensor(errors).max())


def _decode_error(cache: _Cache) -> float:
    q = cache.normal(HEADS, 1)
    out = ops.decode_attention(q, cache.k, cache.v, cache.seqlens, **cache.scales)
    return cache.attention_error(q, out, 0)


def _appending_error(op: Callable[..., Tensor], tokens: int) -> Callable[[_Cache], float]:
    def run(cache: _Cache) -> float:
        q, k, v = (cache.normal(heads, tokens) for heads in (HEADS, KV_HEADS, KV_HEADS))
        out = op(q, k, v, cache.k, cache.v, cache.seqlens, **cache.scales)
        return cache.attention_error(q, out, tokens)

    return run


CASES: dict[str, Callable[[_Cache], float]] = {
    "kv_append": _append_error,
    "decode_attention": _decode_error,
    "append_decode_attention": _appending_error(ops.append_decode_attention, 1),
    "prefill_attention": _appending_error(ops.prefill_attention, 33),
}
