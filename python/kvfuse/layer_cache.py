"""What one layer of a model keeps of the tokens seen so far.

These are plain tensors that the operators write in place. They are never inference tensors, so that a cache
made under ``torch.inference_mode()`` also serves outside it.
"""

from typing import TypedDict

import torch
from torch import Tensor

from kvfuse import ops

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KV_CACHE_DTYPES = ("model", "int8")


class CacheArguments(TypedDict):
    """A layer's tensors by the names that ``kvfuse.ops`` gives them."""

    k_cache: Tensor
    v_cache: Tensor
    k_scale: Tensor | None
    v_scale: Tensor | None


class LayerCache:
    """What one owning layer keeps; the layout that ``kvfuse.ops`` describes. It does not count its tokens.

    Attributes:
        k, v: [batch, kv_heads, capacity, head_dim], of ``dtype`` or int8 codes.
        k_scale, v_scale: float32 [batch, kv_heads, capacity] with int8 codes, else None.
        dtype: that of the model: of the new tokens and of what ``retrieve`` gives.
    """

    def __init__(
        self,
        batch: int,
        kv_heads: int,
        capacity: int,
        head_dim: int,
        *,
        kv_cache_dtype: str = "model",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Zeros.

        Raises:
            ValueError: a size below 1, or a ``kv_cache_dtype`` other than "model" and "int8".
            TypeError: a ``dtype`` other than float32, bfloat16 and float16.
        """
        sizes = {"batch": batch, "kv_heads": kv_heads, "capacity": capacity, "head_dim": head_dim}
        for name, size in sizes.items():
            check(size >= 1, f"{name} >= 1", size)
        known = " or ".join(KV_CACHE_DTYPES)
        check(kv_cache_dtype in KV_CACHE_DTYPES, f"a kv_cache_dtype of {known}", kv_cache_dtype)
        if dtype not in DTYPES:
            raise TypeError(f"KVCache: expected a dtype of float32, bfloat16 or float16, got {dtype}")
        self.dtype = dtype
        stored = torch.int8 if kv_cache_dtype == "int8" else dtype
        # Zeros rather than empty: the pages exist before the first token comes.
        with torch.inference_mode(False):
            self.k, self.v = (
                torch.zeros(batch, kv_heads, capacity, head_dim, dtype=stored, device=device)
                for _ in range(2)
            )
            self.k_scale: Tensor | None = None
            self.v_scale: Tensor | None = None
            if stored == torch.int8:
                self.k_scale, self.v_scale = (
                    torch.zeros(batch, kv_heads, capacity, device=device, dtype=torch.float32)
                    for _ in range(2)
                )

    @property
    def arguments(self) -> CacheArguments:
        """The tensors, to be passed to ``kvfuse.ops`` as keywords."""
        return {"k_cache": self.k, "v_cache": self.v, "k_scale": self.k_scale, "v_scale": self.v_scale}

    @property
    def batch(self) -> int:
        return self.k.shape[0]

    @property
    def capacity(self) -> int:
        """Tokens that there is room for."""
        return self.k.shape[2]

    @property
    def kv_cache_dtype(self) -> str:
        """What is stored: "model" (values of ``dtype``) or "int8"."""
        return "model" if self.k_scale is None else "int8"

    @property
    def nbytes(self) -> int:
        """Bytes held, whether or not tokens fill them."""
        return sum(tensor.nbytes for tensor in self.tensors())

    def retrieve(self, length: int) -> tuple[Tensor, Tensor]:
        """K and V of the first ``length`` tokens, [batch, kv_heads, length, head_dim] of ``dtype``.

        Views of the cache, or of an int8 cache the dequantised values.

        Raises:
            ValueError: a length that is negative or exceeds the capacity.
        """
        check(0 <= length <= self.capacity, f"0 <= length <= capacity {self.capacity} to retrieve", length)
        k, v = self.k[:, :, :length], self.v[:, :, :length]
        if self.k_scale is None or self.v_scale is None:
            return k, v
        return (
            ops.dequantize_kv(k, self.k_scale[:, :, :length], self.dtype),
            ops.dequantize_kv(v, self.v_scale[:, :, :length], self.dtype),
        )

    def select_(self, index: Tensor) -> None:
        """Sequence i becomes what sequence ``index[i]`` was, as beam search and batch selection need it.

        ``index`` is int64 or int32 [any number >= 1]. As many sequences as before are copied within the
        tensors, another number gets new ones.
        """
        check(index.dim() == 1 and index.numel() >= 1, "an index [batch >= 1]", list(index.shape))
        if index.numel() == self.batch:
            for tensor in self.tensors():
                tensor.copy_(tensor.index_select(0, index))
        else:
            self._replace([tensor.index_select(0, index) for tensor in self.tensors()])

    def grown(self, capacity: int) -> "LayerCache":
        """A cache of another capacity that begins with what this one holds.

        Raises:
            ValueError: a capacity below this one's.
        """
        check(capacity >= self.capacity, f"capacity >= {self.capacity} to grow to", capacity)
        batch, kv_heads, _, head_dim = self.k.shape
        larger = LayerCache(
            batch,
            kv_heads,
            capacity,
            head_dim,
            kv_cache_dtype=self.kv_cache_dtype,
            dtype=self.dtype,
            device=self.k.device,
        )
        for tensor, old in zip(larger.tensors(), self.tensors(), strict=True):
            tensor[:, :, : self.capacity].copy_(old)
        return larger

    def quantize_(self) -> None:
        """Turns the cache into int8 codes and scales; one that is int8 stays as it is."""
        if self.k_scale is None:
            (k, k_scale), (v, v_scale) = ops.quantize_kv(self.k), ops.quantize_kv(self.v)
            self._replace([k, v, k_scale, v_scale])

    def dequantize_(self) -> None:
        """Turns int8 codes into values of ``dtype``; one that holds values stays as it is."""
        if self.k_scale is not None:
            self._replace(list(self.retrieve(self.capacity)))

    def tensors(self) -> list[Tensor]:
        """What it holds: k, v and, of an int8 cache, k_scale and v_scale."""
        return [x for x in (self.k, self.v, self.k_scale, self.v_scale) if x is not None]

    def _replace(self, tensors: list[Tensor]) -> None:
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False):
                tensors = [x.clone() for x in tensors]
        self.k, self.v = tensors[:2]
        self.k_scale, self.v_scale = tensors[2:] or (None, None)


def check(holds: bool, rule: str, got: object) -> None:
    """Raises ValueError unless the rule holds."""
    if not holds:
        raise ValueError(f"KVCache: expected {rule}, got {got}")
