"""What ``FusedCache.update`` returns for all keys, or all values: they are computed only if asked for."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

if TYPE_CHECKING:
    from kvfuse.hf.layer import FusedLayer


class Snapshot:
    """The keys and values that a cache layer holds until it changes again."""

    def __init__(self, layer: "FusedLayer") -> None:
        self._layer = layer
        self._version = layer.version
        self._dense: tuple[Tensor, Tensor] | None = None

    def layer(self) -> "FusedLayer":
        """The layer itself.

        Raises:
            RuntimeError: it has changed.
        """
        if self._version != self._layer.version:
            raise RuntimeError(
                "kvfuse.hf: expected keys and values to be read before the cache changes again, got them "
                "read after a later update, crop or reordering (clone what FusedCache.update returns)"
            )
        return self._layer

    def dense(self) -> tuple[Tensor, Tensor]:
        if self._dense is None:
            self._dense = self.layer().dense()
        return self._dense


class CachedTokens(Tensor):
    """Reads as the dense tensor [batch, kv_heads, length, head_dim]; the fused attention never reads it.

    Any operation dequantises the layer first, so that each attention implementation of transformers computes
    with a ``FusedCache`` what it should. It cannot be written to.
    """

    snapshot: Snapshot
    part: int  # 0: keys, 1: values

    # No overriding above the dispatcher.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(
        cls, snapshot: Snapshot, part: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> "CachedTokens":
        tokens = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)
        tokens.snapshot, tokens.part = snapshot, part
        return tokens

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func._schema.is_mutable:
            raise RuntimeError(f"kvfuse.hf: {func} would write to cached keys or values (clone them first)")
        args, kwargs = tree_map_only(CachedTokens, _dense, (args, kwargs or {}))
        return func(*args, **kwargs)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"CachedTokens({'values' if self.part else 'keys'}, {list(self.shape)}, dtype={self.dtype})"


def _dense(tokens: CachedTokens) -> Tensor:
    return tokens.snapshot.dense()[tokens.part]


def layer_of(key: Tensor, value: Tensor) -> "FusedLayer | None":
    """The cache layer that both come from, as one ``update`` returned them; None if they do not."""
    if not isinstance(key, CachedTokens) or not isinstance(value, CachedTokens):
        return None
    if key.snapshot is not value.snapshot or (key.part, value.part) != (0, 1):
        return None
    return key.snapshot.layer()
