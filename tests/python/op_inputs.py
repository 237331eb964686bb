"""Inputs of the operator tests: caches with NaN past the lengths, and rows with an outlier channel."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import reference
import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@contextmanager
def one_thread() -> Iterator[None]:
    """For thousands of small calls, where threads that wait for each other are slow on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass
class Layer:
    """One layer's cache, filled to `lengths`, and new tokens for it."""

    q: Tensor
    k: Tensor
    v: Tensor
    k_cache: Tensor
    v_cache: Tensor
    cache_seqlens: Tensor
    scales: dict[str, Tensor] = field(default_factory=dict)

    @property
    def lengths(self) -> list[int]:
        return self.cache_seqlens.tolist()

    @property
    def cache(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.k_cache, self.v_cache, self.cache_seqlens

    @property
    def mutable(self) -> list[Tensor]:
        return [self.k_cache, self.v_cache, *self.scales.values()]

    def to(self, device: str) -> "Layer":
        scales = {name: x.to(device) for name, x in self.scales.items()}
        return Layer(*(x.to(device) for x in (self.q, self.k, self.v, *self.cache)), scales)

    def values(self) -> tuple[Tensor, Tensor]:
        """K and V that the cache stands for, in float64."""
        if not self.scales:
            return self.k_cache.double(), self.v_cache.double()
        return (
            reference.dequantize(self.k_cache, self.scales["k_scale"]),
            reference.dequantize(self.v_cache, self.scales["v_scale"]),
        )

    def clone(self, sequences: slice = slice(None)) -> "Layer":
        scales = {name: x[sequences].clone() for name, x in self.scales.items()}
        return Layer(*(x[sequences].clone() for x in (self.q, self.k, self.v, *self.cache)), scales)


def make_layer(
    lengths=(5, 3),
    *,
    heads=4,
    kv_heads=2,
    head_dim=64,
    q_len=1,
    dtype=torch.float32,
    int8=False,
    spare=3,
    seed=0,
    device="cpu",
) -> Layer:
    """A cache of max(lengths) + q_len + spare rows, and tokens.

    Past a sequence's length it holds NaN (int8: in the scales).
    """
    random = torch.Generator().manual_seed(seed)
    batch, capacity = len(lengths), max(lengths, default=0) + q_len + spare

    def cached(tokens: int) -> Tensor:
        x = torch.randn(batch, kv_heads, tokens, head_dim, generator=random)
        x[..., 3] *= 50  # an outlier channel
        x[..., 5] += 1  # a constant bias
        return x.to(dtype)

    q = torch.randn(batch, heads, q_len, head_dim, generator=random).to(dtype)
    k, v = cached(q_len), cached(q_len)
    caches, scales = [cached(capacity) for _ in range(2)], {}
    if int8:
        (k_codes, k_scale), (v_codes, v_scale) = (reference.quantize(x) for x in caches)
        caches, scales = [k_codes, v_codes], {"k_scale": k_scale, "v_scale": v_scale}
    for tensor in scales.values() if int8 else caches:
        for b, length in enumerate(lengths):
            tensor[b, :, length:] = float("nan")
    return Layer(q, k, v, *caches, torch.tensor(lengths, dtype=torch.int32), scales).to(device)


def run(op: Callable[..., Tensor], layer: Layer) -> Tensor:
    """Appends and attends; the cache of `layer` changes."""
    return op(layer.q, layer.k, layer.v, *layer.cache, **layer.scales)
