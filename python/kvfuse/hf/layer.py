"""One layer of a ``FusedCache``: when its tokens are stored, which of them, and how they are attended to."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

import kvfuse
from kvfuse.hf.cached_tokens import CachedTokens, Snapshot
from kvfuse.hf.mask import Padding, visible_tokens
from kvfuse.hf.stored_tokens import StoredTokens


class FusedLayer(CacheLayerMixin):
    """The cache of one layer of the model.

    ``update`` only takes the new tokens. The attention that follows appends them to ``tokens`` in the same
    pass in which it reads them; whatever else looks at the layer first has them appended by ``settle``.

    Tokens that the attention mask hides (the padding of a batch) are not stored, so the sequences of a batch
    have lengths of their own there. ``kept`` says which tokens they are.
    """

    is_sliding = False
    is_croppable = True

    def __init__(self, kv_cache_dtype: str, capacity: int | None, residual_length: int) -> None:
        # Not super().__init__(): it would assign keys and values, which are computed here.
        self.kv_cache_dtype = kv_cache_dtype
        self.fixed_capacity = capacity
        self.residual_length = residual_length
        self.is_initialized = False
        self.length = 0  # tokens that the model has passed in, hidden ones too
        self.version = 0  # changes with what the layer holds
        self.pending: tuple[Tensor, Tensor] | None = None
        self.kept: Tensor | None = None  # bool [batch, length]; None: every token is stored
        self.tokens: StoredTokens

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Makes room for tokens like these, [batch, kv_heads, any number, head_dim]."""
        _check_head_dim(key_states.shape[3], value_states.shape[3], key_states.device)
        self.tokens = StoredTokens(key_states, self.kv_cache_dtype, self.residual_length, self.fixed_capacity)
        self.is_initialized = True

    @torch.compiler.disable  # one graph break a layer, rather than one for each thing it does
    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Takes new tokens, [batch, kv_heads, tokens, head_dim]; returns all of them, as ``CachedTokens``.

        Raises:
            ValueError: more tokens than the capacity given, or other sizes than before.
            RuntimeError: the tokens require a gradient: a cache has none.
            NotImplementedError: a head_dim without a kernel.
        """
        if torch.is_grad_enabled() and (key_states.requires_grad or value_states.requires_grad):
            raise RuntimeError(
                "kvfuse.hf: a FusedCache records no gradients (call the model under torch.no_grad(), or "
                "train without past_key_values)"
            )
        self.settle()
        new = key_states.shape[2]
        if not self.is_initialized or (self.length == 0 and not self._has_room_like(key_states)):
            self.lazy_initialization(key_states, value_states)
        self._check_sizes(key_states, value_states)
        if self.fixed_capacity is not None and self.length + new > self.fixed_capacity:
            raise ValueError(
                f"kvfuse.hf: expected at most {self.fixed_capacity} tokens, the capacity of this FusedCache, "
                f"got {self.length + new} (give it a larger capacity, or none: then it grows)"
            )
        self.tokens.make_room(self.length, new)
        self.pending = key_states, value_states
        self.length += new
        self.version += 1
        shape = (*key_states.shape[:2], self.length, key_states.shape[3])
        kind = shape, self.tokens.store.dtype, key_states.device
        snapshot = Snapshot(self)
        return CachedTokens(snapshot, 0, *kind), CachedTokens(snapshot, 1, *kind)

    def can_attend(self, query: Tensor, padding: Padding | None) -> bool:
        """Whether ``attend`` computes what "sdpa" would."""
        if self.pending is None or query.shape[2] != self.pending[0].shape[2]:
            return False
        if query.dtype != self.pending[0].dtype:
            return False
        return self.kept is None if padding is None else padding.continues(self.kept)

    def attend(self, query: Tensor, padding: Padding | None, softmax_scale: float | None) -> Tensor:
        """Appends the new tokens and attends to all, causally: [batch, heads, tokens, head_dim]."""
        assert self.pending is not None
        k, v = self.pending
        stored: int | Tensor = k.shape[2]
        order = None
        if padding is not None and padding.hides_new:
            # Hidden tokens go last, where nothing that counts sees them and the next tokens overwrite them.
            stored = padding.new.sum(1, dtype=torch.int32)
            order = padding.order[:, None, :, None]
            query, k, v = (x.gather(2, order.expand_as(x)) for x in (query, k, v))
        out = self.tokens.attend(query, k, v, stored, softmax_scale)
        if order is not None:
            out = torch.empty_like(out).scatter_(2, order.expand_as(out), out)
        self.pending = None
        self.kept = None if padding is None or padding.is_empty else padding.tokens
        return out

    def settle(self) -> None:
        """Appends what ``update`` took and no attention has appended yet."""
        if self.pending is None:
            return
        k, v = self.pending
        self.tokens.append(k, v)
        self.pending = None
        if self.kept is not None:
            self.kept = torch.cat([self.kept, self.kept.new_ones(k.shape[0], k.shape[2])], dim=1)

    def dense(self) -> tuple[Tensor, Tensor]:
        """K and V [batch, kv_heads, length, head_dim] in transformers' order, hidden tokens as zeros."""
        self.settle()
        return self.tokens.dense(self.kept)

    def check_stored(self, mask: Tensor | None) -> None:
        """Raises ValueError if ``mask`` shows a token that was hidden, and so not stored, when it was new."""
        self.settle()
        if self.kept is None:
            return
        hidden = ~self.kept
        shown = hidden if mask is None else hidden & visible_tokens(mask)[:, : self.length]
        if shown.any():
            raise ValueError(
                "kvfuse.hf: expected the attention mask to go on hiding the tokens that it hid when they "
                f"were appended, got one that shows {int(shown.sum())} of them, which a FusedCache has not "
                "stored (pass the attention_mask of the whole sequence)"
            )

    @property
    def keys(self) -> Tensor | None:
        return self.dense()[0] if self.is_initialized else None

    @property
    def values(self) -> Tensor | None:
        return self.dense()[1] if self.is_initialized else None

    @property
    def nbytes(self) -> int:
        return self.tokens.nbytes if self.is_initialized else 0

    @property
    def bytes_in_use(self) -> int:
        if not self.is_initialized:
            return 0
        self.settle()
        return self.tokens.bytes_in_use

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        return self.fixed_capacity or -1

    def reset(self) -> None:
        """Forgets all tokens; the memory stays, for a batch of the same size."""
        self.length, self.pending, self.kept = 0, None, None
        self.version += 1
        if self.is_initialized:
            self.tokens.clear()

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the newest ``-tokens_to_remove`` tokens."""
        if not -self.length <= tokens_to_remove <= 0:
            raise ValueError(
                f"kvfuse.hf: expected crop(tokens_to_remove) in [{-self.length}, 0], minus the number of "
                f"newest tokens to forget, got {tokens_to_remove}"
            )
        if tokens_to_remove == 0:
            return
        self.settle()
        self.length += tokens_to_remove
        self.version += 1
        seqlens: int | Tensor = self.length
        if self.kept is not None:
            self.kept = self.kept[:, : self.length]
            seqlens = self.kept.sum(1, dtype=torch.int32)
        self.tokens.crop(seqlens)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        if self.length > 0:
            self.settle()
            self.tokens.select_(beam_idx)
            self.kept = None if self.kept is None else self.kept[beam_idx.to(self.kept.device)]
            self.version += 1

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.length > 0:
            self.reorder_cache(torch.arange(self.tokens.store.batch).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.length > 0:
            self.reorder_cache(torch.arange(self.tokens.store.batch, device=indices.device)[indices])

    def _has_room_like(self, key_states: Tensor) -> bool:
        batch, kv_heads, _, head_dim = self.tokens.store.k.shape
        kind = (self.tokens.store.dtype, self.tokens.store.k.device)
        wanted = (*key_states.shape[:2], key_states.shape[3]), (key_states.dtype, key_states.device)
        return ((batch, kv_heads, head_dim), kind) == wanted

    def _check_sizes(self, key_states: Tensor, value_states: Tensor) -> None:
        batch, kv_heads, _, head_dim = self.tokens.store.k.shape
        for name, x in (("keys", key_states), ("values", value_states)):
            if (*x.shape[:2], *x.shape[3:]) != (batch, kv_heads, head_dim):
                raise ValueError(
                    f"kvfuse.hf: expected {name} [{batch}, {kv_heads}, tokens, {head_dim}] like those in the "
                    f"FusedCache, got {list(x.shape)} (reset() it before another batch)"
                )


def _check_head_dim(head_dim: int, v_head_dim: int, device: torch.device) -> None:
    info = kvfuse.build_info()
    known = info["cuda_head_dims" if device.type == "cuda" else "supported_head_dims"]
    if head_dim not in known or head_dim != v_head_dim:
        got = f"{head_dim}" if head_dim == v_head_dim else f"{head_dim} for keys, {v_head_dim} for values"
        raise NotImplementedError(
            f"kvfuse.hf: expected a head_dim of {', '.join(map(str, known))}, got {got} (use transformers' "
            "DynamicCache; attn_implementation='kvfuse' takes it)"
        )
