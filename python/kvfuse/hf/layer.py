"""One layer of a ``FusedCache``: when its tokens are stored, which of them, and how they are attended to."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

import kvfuse
from kvfuse import ops
from kvfuse.hf.cached_tokens import CachedTokens, Snapshot
from kvfuse.hf.mask import Padding, visible_tokens
from kvfuse.layer_cache import LayerCache

# A cache that grows does so by this many tokens: more copy less often, and leave more of the memory empty.
GROWTH = 128


class FusedLayer(CacheLayerMixin):
    """The cache of one layer of the model.

    ``update`` only takes the new tokens. The attention that follows appends them to the store in the same
    pass in which it reads it; whatever else looks at the layer first has them appended by ``settle``.

    Tokens that the attention mask hides (the padding of a batch) are not stored, so the sequences of a batch
    have lengths of their own: ``cache_seqlens``. ``kept`` says which tokens they are.
    """

    is_sliding = False
    is_croppable = True

    def __init__(self, kv_cache_dtype: str, capacity: int | None) -> None:
        # Not super().__init__(): it would assign keys and values, which are computed here.
        self.kv_cache_dtype = kv_cache_dtype
        self.fixed_capacity = capacity
        self.is_initialized = False
        self.length = 0  # tokens that the model has passed in, hidden ones too
        self.version = 0  # changes with what the layer holds
        self.pending: tuple[Tensor, Tensor] | None = None
        self.kept: Tensor | None = None  # bool [batch, length]; None: every token is stored
        self.store: LayerCache
        self.cache_seqlens: Tensor

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocates the store for tokens like these, [batch, kv_heads, any number, head_dim]."""
        batch, kv_heads, tokens, head_dim = key_states.shape
        _check_head_dim(head_dim, value_states.shape[3], key_states.device)
        self.store = LayerCache(
            batch,
            kv_heads,
            self.fixed_capacity or _rounded_up(max(tokens, 1)),
            head_dim,
            kv_cache_dtype=self.kv_cache_dtype,
            dtype=key_states.dtype,
            device=key_states.device,
        )
        self.cache_seqlens = torch.zeros(batch, dtype=torch.int32, device=key_states.device)
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
        if not self.is_initialized or (self.length == 0 and not self._has_room_like(key_states)):
            self.lazy_initialization(key_states, value_states)
        self._check_sizes(key_states, value_states)
        self._reserve(self.length + key_states.shape[2])
        self.pending = key_states, value_states
        self.length += key_states.shape[2]
        self.version += 1
        shape = (*key_states.shape[:2], self.length, key_states.shape[3])
        kind = shape, self.store.dtype, key_states.device
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
        tokens = k.shape[2]
        stored: int | Tensor = tokens
        order = None
        if padding is not None and padding.hides_new:
            # Hidden tokens go last, where nothing that counts sees them and the next tokens overwrite them.
            stored = padding.new.sum(1, dtype=torch.int32)
            order = padding.order[:, None, :, None]
            query, k, v = (x.gather(2, order.expand_as(x)) for x in (query, k, v))
        attention = ops.append_decode_attention if tokens == 1 else ops.prefill_attention
        with ops.trust_lengths():  # update() has made room for all of them
            out = attention(
                query,
                k,
                v,
                cache_seqlens=self.cache_seqlens,
                softmax_scale=softmax_scale,
                **self.store.arguments,
            )
        if order is not None:
            out = torch.empty_like(out).scatter_(2, order.expand_as(out), out)
        self.pending = None
        self.cache_seqlens = self.cache_seqlens + stored
        self.kept = None if padding is None or padding.is_empty else padding.tokens
        return out

    def settle(self) -> None:
        """Appends what ``update`` took and no attention has appended yet."""
        if self.pending is None:
            return
        k, v = self.pending
        ops.kv_append(k, v, cache_seqlens=self.cache_seqlens, **self.store.arguments)
        self.pending = None
        self.cache_seqlens = self.cache_seqlens + k.shape[2]
        if self.kept is not None:
            self.kept = torch.cat([self.kept, self.kept.new_ones(k.shape[0], k.shape[2])], dim=1)

    def dense(self) -> tuple[Tensor, Tensor]:
        """K and V [batch, kv_heads, length, head_dim] in transformers' order, hidden tokens as zeros."""
        self.settle()
        if self.kept is None:
            return self.store.retrieve(self.length)
        place = (self.kept.cumsum(1) - 1).clamp(min=0)[:, None, :, None]
        hidden = ~self.kept[:, None, :, None]
        k, v = self.store.retrieve(self.length)
        place = place.expand(-1, k.shape[1], -1, k.shape[3])
        return k.gather(2, place).masked_fill(hidden, 0), v.gather(2, place).masked_fill(hidden, 0)

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
        return self.store.nbytes if self.is_initialized else 0

    @property
    def bytes_in_use(self) -> int:
        if not self.is_initialized:
            return 0
        self.settle()
        return self.store.nbytes // (self.store.batch * self.store.capacity) * int(self.cache_seqlens.sum())

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
            self.cache_seqlens = torch.zeros_like(self.cache_seqlens)

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
        if self.kept is None:
            self.cache_seqlens = self.cache_seqlens + tokens_to_remove
        else:
            self.kept = self.kept[:, : self.length]
            self.cache_seqlens = self.kept.sum(1, dtype=torch.int32)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        if self.length > 0:
            self.settle()
            index = beam_idx.to(self.cache_seqlens.device)
            self.store.select_(index)
            self.cache_seqlens = self.cache_seqlens[index]
            self.kept = None if self.kept is None else self.kept[index]
            self.version += 1

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.length > 0:
            self.reorder_cache(torch.arange(self.store.batch).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        if self.length > 0:
            self.reorder_cache(torch.arange(self.store.batch, device=self.cache_seqlens.device)[indices])

    def _has_room_like(self, key_states: Tensor) -> bool:
        batch, kv_heads, _, head_dim = self.store.k.shape
        kind = (self.store.dtype, self.store.k.device)
        wanted = (*key_states.shape[:2], key_states.shape[3]), (key_states.dtype, key_states.device)
        return ((batch, kv_heads, head_dim), kind) == wanted

    def _check_sizes(self, key_states: Tensor, value_states: Tensor) -> None:
        batch, kv_heads, _, head_dim = self.store.k.shape
        for name, x in (("keys", key_states), ("values", value_states)):
            if (*x.shape[:2], *x.shape[3:]) != (batch, kv_heads, head_dim):
                raise ValueError(
                    f"kvfuse.hf: expected {name} [{batch}, {kv_heads}, tokens, {head_dim}] like those in the "
                    f"FusedCache, got {list(x.shape)} (reset() it before another batch)"
                )

    def _reserve(self, tokens: int) -> None:
        if tokens <= self.store.capacity:
            return
        if self.fixed_capacity is not None:
            raise ValueError(
                f"kvfuse.hf: expected at most {self.fixed_capacity} tokens, the capacity of this FusedCache, "
                f"got {tokens} (give it a larger capacity, or none: then it grows)"
            )
        self.store = self.store.grown(_rounded_up(tokens))


def _rounded_up(tokens: int) -> int:
    return -(-tokens // GROWTH) * GROWTH


def _check_head_dim(head_dim: int, v_head_dim: int, device: torch.device) -> None:
    info = kvfuse.build_info()
    known = info["cuda_head_dims" if device.type == "cuda" else "supported_head_dims"]
    if head_dim not in known or head_dim != v_head_dim:
        got = f"{head_dim}" if head_dim == v_head_dim else f"{head_dim} for keys, {v_head_dim} for values"
        raise NotImplementedError(
            f"kvfuse.hf: expected a head_dim of {', '.join(map(str, known))}, got {got} (use transformers' "
            "DynamicCache; attn_implementation='kvfuse' takes it)"
        )
