"""The tokens that one layer of a ``FusedCache`` stores, and attention to them."""

import torch
from torch import Tensor

from kvfuse import ops
from kvfuse.layer_cache import LayerCache

# A cache that grows does so by this many tokens: more copy less often, and leave more of the memory empty.
GROWTH = 128


class StoredTokens:
    """Of a sequence ``cache_seqlens`` tokens in ``store``; behind them ``recent_seqlens`` in ``recent``.

    With a ``residual_length`` tokens that come one at a time go to ``recent``, which holds values of the
    model's dtype. When it is full the older half of it moves on to ``store``; all, when several tokens come.
    """

    def __init__(
        self, like: Tensor, kv_cache_dtype: str, residual_length: int, fixed_capacity: int | None
    ) -> None:
        """Empty, with room for tokens like these, [batch, kv_heads, tokens, head_dim].

        ``fixed_capacity`` is the most tokens that will come, None if that is not known.
        """
        self.residual_length = residual_length
        self.fixed_capacity = fixed_capacity
        batch, kv_heads, tokens, head_dim = like.shape
        self.store = LayerCache(
            batch,
            kv_heads,
            self._store_capacity(0 if self._goes_to_recent(tokens) else tokens),
            head_dim,
            kv_cache_dtype=kv_cache_dtype,
            dtype=like.dtype,
            device=like.device,
        )
        self.recent: LayerCache | None = None
        self.clear()

    def clear(self) -> None:
        """Forgets all tokens; the memory stays."""
        self.cache_seqlens = torch.zeros(self.store.batch, dtype=torch.int32, device=self.store.k.device)
        self.recent_seqlens = self.cache_seqlens
        self.recent_count = 0  # the most that any sequence has in `recent`

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self.store, self.recent) if part is not None)

    @property
    def bytes_in_use(self) -> int:
        parts = (self.store, self.cache_seqlens), (self.recent, self.recent_seqlens)
        return sum(
            part.nbytes // (part.batch * part.capacity) * int(seqlens.sum())
            for part, seqlens in parts
            if part is not None
        )

    def make_room(self, length: int, tokens: int) -> None:
        """For ``tokens`` more of each sequence, of which ``length`` at most are there."""
        if self._goes_to_recent(tokens):
            if self.recent is None:
                self.recent = self._new_recent(length)
            if self.recent_count == self.recent.capacity:
                self._move_on(self.residual_length // 2, length)
        else:
            self._move_on(0, length)
            self._grow_store(length + tokens)

    def append(self, k: Tensor, v: Tensor) -> None:
        """Appends tokens [batch, kv_heads, tokens, head_dim], for which there is room."""
        part, seqlens = self._part_for(k.shape[2])
        ops.kv_append(k, v, cache_seqlens=seqlens, **part.arguments)
        self._advance(k.shape[2], k.shape[2])

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, stored: int | Tensor, softmax_scale: float | None
    ) -> Tensor:
        """Appends tokens, for which there is room, and attends to all: [batch, heads, tokens, head_dim].

        ``stored``: how many of them to keep, the first ones; int32 [batch] if sequences differ.
        """
        tokens = k.shape[2]
        with ops.trust_lengths():
            if self._goes_to_recent(tokens):
                out = self._attend_to_both(q, k, v, softmax_scale)
            else:
                attention = ops.append_decode_attention if tokens == 1 else ops.prefill_attention
                scale = {"softmax_scale": softmax_scale}
                out = attention(q, k, v, cache_seqlens=self.cache_seqlens, **scale, **self.store.arguments)
        self._advance(tokens, stored)
        return out

    def dense(self, length: int, kept: Tensor | None) -> tuple[Tensor, Tensor]:
        """K and V [batch, kv_heads, length, head_dim]; of tokens that are not ``kept`` zeros.

        ``kept``: bool [batch, length], of each sequence as many as it has; None keeps all.
        """
        older = length - self.recent_count  # no sequence has more in the store
        k, v = self.store.retrieve(older)
        if self.recent is not None:
            recent = self.recent.retrieve(self.recent_count)
            k, v = (torch.cat(parts, dim=2) for parts in zip((k, v), recent, strict=True))
        if kept is None:
            return k, v
        place = (kept.cumsum(1) - 1).clamp(min=0)
        in_store = self.cache_seqlens[:, None]
        place = torch.where(place < in_store, place, place - in_store + older)
        place = place[:, None, :, None].expand(-1, k.shape[1], -1, k.shape[3])
        hidden = ~kept[:, None, :, None]
        return k.gather(2, place).masked_fill(hidden, 0), v.gather(2, place).masked_fill(hidden, 0)

    def crop(self, removed: int, seqlens: int | Tensor) -> None:
        """Leaves ``seqlens`` tokens (int32 [batch] if sequences differ): the newest ``removed`` are gone."""
        total = self.cache_seqlens * 0 + seqlens
        self.cache_seqlens = self.cache_seqlens.minimum(total)
        self.recent_seqlens = total - self.cache_seqlens
        self.recent_count = max(0, self.recent_count - removed)

    def select_(self, index: Tensor) -> None:
        """Sequence i becomes what ``index[i]`` was: int64 or int32 [any number >= 1]."""
        index = index.to(self.cache_seqlens.device)
        self.store.select_(index)
        if self.recent is not None:
            self.recent.select_(index)
        self.cache_seqlens, self.recent_seqlens = self.cache_seqlens[index], self.recent_seqlens[index]

    def _goes_to_recent(self, tokens: int) -> bool:
        return self.residual_length > 0 and tokens == 1

    def _part_for(self, tokens: int) -> tuple[LayerCache, Tensor]:
        if self._goes_to_recent(tokens):
            assert self.recent is not None
            return self.recent, self.recent_seqlens
        return self.store, self.cache_seqlens

    def _attend_to_both(self, q: Tensor, k: Tensor, v: Tensor, softmax_scale: float | None) -> Tensor:
        part, seqlens = self._part_for(1)
        lse, recent_lse = torch.empty(2, *q.shape[:3], dtype=torch.float32, device=q.device)
        older = ops.decode_attention(
            q,
            cache_seqlens=self.cache_seqlens,
            softmax_scale=softmax_scale,
            softmax_lse=lse,
            **self.store.arguments,
        )
        recent = ops.append_decode_attention(
            q,
            k,
            v,
            cache_seqlens=seqlens,
            softmax_scale=softmax_scale,
            softmax_lse=recent_lse,
            **part.arguments,
        )
        return torch.lerp(older, recent, torch.sigmoid(recent_lse - lse)[..., None].to(q.dtype))

    def _advance(self, tokens: int, stored: int | Tensor) -> None:
        if self._goes_to_recent(tokens):
            self.recent_seqlens = self.recent_seqlens + stored
            self.recent_count += 1
        else:
            self.cache_seqlens = self.cache_seqlens + stored

    def _move_on(self, keep: int, length: int) -> None:
        """From ``recent`` to ``store``: all but the newest ``keep`` tokens of each sequence."""
        if self.recent is None or self.recent_count <= keep:
            return
        self._grow_store(length - keep)
        moved = (self.recent_seqlens - keep).clamp(min=0)
        # Of a sequence that moves fewer this appends what its next tokens overwrite.
        k, v = (x[:, :, : self.recent_count - keep] for x in (self.recent.k, self.recent.v))
        ops.kv_append(k, v, cache_seqlens=self.cache_seqlens, **self.store.arguments)
        place = moved[:, None] + torch.arange(keep, device=moved.device)
        place = place.clamp(max=self.recent_count - 1)[:, None, :, None]
        for x in (self.recent.k, self.recent.v):
            x[:, :, :keep] = x.gather(2, place.expand(-1, x.shape[1], -1, x.shape[3]))
        self.cache_seqlens = self.cache_seqlens + moved
        self.recent_seqlens = self.recent_seqlens - moved
        self.recent_count = keep

    def _new_recent(self, length: int) -> LayerCache:
        batch, kv_heads, _, head_dim = self.store.k.shape
        left = self.residual_length if self.fixed_capacity is None else self.fixed_capacity - length
        return LayerCache(
            batch,
            kv_heads,
            min(self.residual_length, left),
            head_dim,
            dtype=self.store.dtype,
            device=self.store.k.device,
        )

    def _grow_store(self, tokens: int) -> None:
        if tokens > self.store.capacity:
            self.store = self.store.grown(self._store_capacity(tokens))

    def _store_capacity(self, tokens: int) -> int:
        """Rows to allocate when there are ``tokens`` for the store."""
        if self.fixed_capacity is None:
            return -(-max(tokens, 1) // GROWTH) * GROWTH
        if self.residual_length == 0:
            return self.fixed_capacity
        # If the others come one at a time, so many do not fit in `recent`, which makes room by halves.
        too_many = max(0, self.fixed_capacity - tokens - self.residual_length)
        half = self.residual_length - self.residual_length // 2
        return max(1, tokens + -(-too_many // half) * half)
