"""The keys and values of the tokens seen so far, of all layers of a model."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kvfuse import ops
from kvfuse.layer_cache import LayerCache, check


class KVCache:
    """The cache of a model: pre-allocated for ``capacity`` tokens of ``batch`` sequences.

    A step appends to every owning layer, by ``update`` or by an operator that takes ``layer(i).arguments``
    and ``cache_seqlens``, and then counts the tokens once, by ``advance``. No result depends on what lies
    past a sequence's length.

    Attributes:
        layers: what the owning layers keep. With ``sharing_group`` g, layers 0, g, 2g... own one each, and
            those between attend to their owner's.
        cache_seqlens: int32 [batch], the tokens of each sequence.
        lengths: the same on the host, so that nothing waits for the device.
    """

    def __init__(
        self,
        n_layer: int,
        kv_heads: int,
        head_dim: int,
        *,
        batch: int,
        capacity: int,
        kv_cache_dtype: str = "model",
        sharing_group: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """An empty cache.

        Raises:
            ValueError: a size below 1, or a ``kv_cache_dtype`` other than "model" and "int8".
            TypeError: a ``dtype`` other than float32, bfloat16 and float16.
        """
        check(n_layer >= 1, "n_layer >= 1", n_layer)
        check(sharing_group >= 1, "sharing_group >= 1", sharing_group)
        self.n_layer, self.sharing_group = n_layer, sharing_group
        self.layers = [
            LayerCache(
                batch,
                kv_heads,
                capacity,
                head_dim,
                kv_cache_dtype=kv_cache_dtype,
                dtype=dtype,
                device=device,
            )
            for _ in range(0, n_layer, sharing_group)
        ]
        self.lengths = [0] * batch
        with torch.inference_mode(False):
            self.cache_seqlens = torch.zeros(batch, dtype=torch.int32, device=device)

    @property
    def batch(self) -> int:
        return len(self.lengths)

    @property
    def capacity(self) -> int:
        """Tokens of each sequence that there is room for."""
        return self.layers[0].capacity

    @property
    def length(self) -> int:
        """Tokens of the longest sequence."""
        return max(self.lengths)

    @property
    def kv_cache_dtype(self) -> str:
        """What is stored: "model" or "int8"."""
        return self.layers[0].kv_cache_dtype

    @property
    def nbytes(self) -> int:
        """Bytes that the layers hold, whether or not tokens fill them."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def bytes_in_use(self) -> int:
        """Bytes of the tokens that are counted."""
        return self.nbytes // (self.batch * self.capacity) * sum(self.lengths)

    def owns(self, index: int) -> bool:
        """Whether layer ``index`` of the model has keys and values of its own."""
        self._check_index(index)
        return index % self.sharing_group == 0

    def layer(self, index: int) -> LayerCache:
        """That which layer ``index`` of the model attends to: its own, or its owner's.

        Raises:
            IndexError: no such layer.
        """
        self._check_index(index)
        return self.layers[index // self.sharing_group]

    def update(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Appends ``k`` and ``v`` [batch, kv_heads, tokens, head_dim] of ``dtype`` to an owning layer.

        ``advance`` counts them, once for all layers.

        Raises:
            ValueError: a layer that borrows; tokens past the capacity; all else as ``kvfuse.ops.kv_append``.
            IndexError: no such layer.
        """
        check(self.owns(layer), f"a layer that owns its keys and values, one in {self.sharing_group}", layer)
        ops.kv_append(k, v, cache_seqlens=self.cache_seqlens, **self.layer(layer).arguments)

    def advance(self, tokens: int | Sequence[int]) -> None:
        """Counts tokens that every layer has appended: the same number of each sequence, or one for each.

        Raises:
            ValueError: a negative number, a length past the capacity, or not one number for each sequence.
        """
        added = [tokens] * self.batch if isinstance(tokens, int) else list(tokens)
        check(len(added) == self.batch, f"tokens for {self.batch} sequences", len(added))
        for length, more in zip(self.lengths, added, strict=True):
            check(more >= 0, "tokens >= 0 to advance by", more)
            if length + more > self.capacity:
                raise ValueError(
                    f"KVCache: expected length {length} + {more} <= capacity {self.capacity}, got "
                    f"{length + more} (make the cache larger, or trim it)"
                )
        self.lengths = [length + more for length, more in zip(self.lengths, added, strict=True)]
        if isinstance(tokens, int):
            self.cache_seqlens.add_(tokens)
        else:
            self._write_lengths()

    def retrieve(self, layer: int) -> tuple[Tensor, Tensor]:
        """K and V that layer ``layer`` attends to, [batch, kv_heads, ``length``, head_dim] of ``dtype``.

        For sequences of one length views of the cache (of an int8 cache the dequantised values); else copies,
        with zeros behind the shorter ones.
        """
        k, v = self.layer(layer).retrieve(self.length)
        if min(self.lengths) == self.length:
            return k, v
        positions = torch.arange(self.length, device=k.device)
        unused = (positions >= self.cache_seqlens[:, None])[:, None, :, None]
        return k.masked_fill(unused, 0), v.masked_fill(unused, 0)

    def trim(self, keep: int) -> None:
        """Forgets the oldest tokens of each sequence that has more than ``keep``, so that these are left.

        The newest move to the front, with the positions that they were computed for: a model with absolute
        positions should rather compute the kept tokens anew. ``crop`` forgets the newest.

        Raises:
            ValueError: a negative number.
        """
        check(keep >= 0, "keep >= 0 to trim to", keep)
        for b, length in enumerate(self.lengths):
            if length <= keep:
                continue
            for layer in self.layers:
                for tensor in layer.tensors():
                    # A copy first: what moves up may overlap where it goes.
                    tensor[b, :, :keep].copy_(tensor[b, :, length - keep : length].clone())
        self.lengths = [min(length, keep) for length in self.lengths]
        self.cache_seqlens.clamp_(max=keep)

    def crop(self, length: int) -> None:
        """Forgets all but the first ``length`` tokens of each sequence.

        Raises:
            ValueError: a negative length, or one that a sequence does not have.
        """
        shortest = min(self.lengths)
        check(0 <= length <= shortest, f"0 <= length <= {shortest} to crop to", length)
        self.lengths = [length] * self.batch
        self.cache_seqlens.fill_(length)

    def reset(self) -> None:
        """Forgets all tokens; the memory stays."""
        self.crop(0)

    def quantize(self) -> None:
        """Turns the cache into int8 codes and scales, layer by layer; one that is int8 stays as it is."""
        for layer in self.layers:
            layer.quantize_()

    def dequantize(self) -> None:
        """Turns int8 codes into values of the model's dtype; one that holds values stays as it is."""
        for layer in self.layers:
            layer.dequantize_()

    def _check_index(self, index: int) -> None:
        if not 0 <= index < self.n_layer:
            raise IndexError(f"KVCache: expected a layer in [0, {self.n_layer - 1}], got {index}")

    def _write_lengths(self) -> None:
        self.cache_seqlens.copy_(torch.tensor(self.lengths, dtype=torch.int32))
