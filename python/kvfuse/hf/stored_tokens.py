"""The tokens that one layer of a ``FusedCache`` stores, and attention to them."""

import torch
from torch import Tensor

from kvfuse import ops
from kvfuse.layer_cache import LayerCache

# A cache that grows does so by this many tokens: more copy less often, and leave more of the memory empty.
GROWTH = 128


class StoredTokens:
    """Of a sequence ``cache_seqlens`` tokens in ``store``; behind them ``recent_seqlens`` in ``recent``.

    With a ``residual_length`` the newest tokens are in ``recent``, which holds values of the model's dtype:
    those that come one at a time, and of several the last ones, half as many. When it is full its older half
    moves on to ``store``; all of it, when several tokens come.
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

        def layer(rows: int, kv_cache_dtype: str) -> LayerCache:
            return LayerCache(
                batch,
                kv_heads,
                rows,
                head_dim,
                kv_cache_dtype=kv_cache_dtype,
                dtype=like.dtype,
                device=like.device,
            )

        self.store = layer(self._store_rows(tokens), kv_cache_dtype)
        self.recent: LayerCache | None = None
        if residual_length > 0:
            self.recent = layer(min(residual_length, fixed_capacity or residual_length), "model")
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
        if self.recent is None:
            self._grow_store(self._store_rows(length + tokens))
        elif tokens > 1:
            self._move_on(0)
            self._grow_store(self._store_rows(length + tokens))
        elif tokens == 1 and self.recent_count == self.recent.capacity:
            self._move_on(self.residual_length // 2)

    def append(self, k: Tensor, v: Tensor) -> None:
        """Appends tokens [batch, kv_heads, tokens, head_dim], for which there is room."""
        tokens = k.shape[2]
        if self.recent is not None and tokens == 1:
            ops.kv_append(k, v, cache_seqlens=self.recent_seqlens, **self.recent.arguments)
        else:
            ops.kv_append(k, v, cache_seqlens=self.cache_seqlens, **self.store.arguments)
        self._count(k, v, tokens)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, stored: int | Tensor, softmax_scale: float | None
    ) -> Tensor:
        """Appends tokens, for which there is room, and attends to all: [batch, heads, tokens, head_dim].

        ``stored``: how many of them to keep, the first ones; int32 [batch] if sequences differ.
        """
        with ops.trust_lengths():
            if self.recent is not None and k.shape[2] == 1:
                out = self._attend_to_both(q, k, v, self.recent, softmax_scale)
            else:
                attention = ops.append_decode_attention if k.shape[2] == 1 else ops.prefill_attention
                scale = {"softmax_scale": softmax_scale}
                out = attention(q, k, v, cache_seqlens=self.cache_seqlens, **scale, **self.store.arguments)
        self._count(k, v, stored)
        return out

    def dense(self, kept: Tensor | None) -> tuple[Tensor, Tensor]:
        """K and V [batch, kv_heads, length, head_dim]; of tokens that are not ``kept`` zeros.

        ``kept``: bool [batch, length], of each sequence as many as it has; None if it has all.
        """
        rows = int(self.cache_seqlens.max())
        if kept is not None:
            rows = max(rows, 1)  # where all are hidden, there is a row to look at
        k, v = self.store.retrieve(rows)
        if self.recent is not None:
            recent = self.recent.retrieve(self.recent_count)
            k, v = (torch.cat(parts, dim=2) for parts in zip((k, v), recent, strict=True))
        if kept is None:
            return k, v
        place = (kept.cumsum(1) - 1).clamp(min=0)
        in_store = self.cache_seqlens[:, None]
        place = torch.where(place < in_store, place, place - in_store + rows)
        hidden = ~kept[:, None, :, None]
        place = place.clamp(max=k.shape[2] - 1)
        return _rows_at(k, place).masked_fill(hidden, 0), _rows_at(v, place).masked_fill(hidden, 0)

    def crop(self, seqlens: int | Tensor) -> None:
        """Forgets all but the first ``seqlens`` tokens (int32 [batch] if sequences differ)."""
        total = torch.zeros_like(self.cache_seqlens) + seqlens
        self.cache_seqlens = self.cache_seqlens.minimum(total)
        self.recent_seqlens = total - self.cache_seqlens
        self.recent_count = int(self.recent_seqlens.max())

    def select_(self, index: Tensor) -> None:
        """Sequence i becomes what ``index[i]`` was: int64 or int32 [any number >= 1]."""
        index = index.to(self.cache_seqlens.device)
        self.store.select_(index)
        if self.recent is not None:
            self.recent.select_(index)
        self.cache_seqlens, self.recent_seqlens = self.cache_seqlens[index], self.recent_seqlens[index]

    def _attend_to_both(
        self, q: Tensor, k: Tensor, v: Tensor, recent: LayerCache, softmax_scale: float | None
    ) -> Tensor:
        lse, recent_lse = torch.empty(2, *q.shape[:3], dtype=torch.float32, device=q.device)
        older = ops.decode_attention(
            q,
            cache_seqlens=self.cache_seqlens,
            softmax_scale=softmax_scale,
            softmax_lse=lse,
            **self.store.arguments,
        )
        newest = ops.append_decode_attention(
            q,
            k,
            v,
            cache_seqlens=self.recent_seqlens,
            softmax_scale=softmax_scale,
            softmax_lse=recent_lse,
            **recent.arguments,
        )
        return torch.lerp(older, newest, torch.sigmoid(recent_lse - lse)[..., None].to(q.dtype))

    def _count(self, k: Tensor, v: Tensor, stored: int | Tensor) -> None:
        """After ``k`` and ``v`` were appended, the first ``stored`` of them to be kept."""
        tokens = k.shape[2]
        if self.recent is None:
            self.cache_seqlens = self.cache_seqlens + stored
        elif tokens == 1:
            self.recent_seqlens = self.recent_seqlens + stored
            self.recent_count += 1
        elif tokens > 1:
            # The last ones are in the store as well; there the next to move on overwrite them.
            count = min(self.residual_length // 2, tokens)
            stored = torch.zeros_like(self.cache_seqlens) + stored
            self.recent_seqlens = stored.clamp(max=count)
            self.recent_count = count
            self.cache_seqlens = self.cache_seqlens + stored - self.recent_seqlens
            _copy_rows(self.recent.k, k, stored - self.recent_seqlens, count)
            _copy_rows(self.recent.v, v, stored - self.recent_seqlens, count)

    def _move_on(self, keep: int) -> None:
        """From ``recent`` to ``store``: all but the newest ``keep`` tokens of each sequence."""
        if self.recent is None or self.recent_count <= keep:
            return
        count = self.recent_count - keep
        self._grow_store(int(self.cache_seqlens.max()) + count)
        # Of a sequence that moves fewer this appends what its next tokens overwrite.
        k, v = self.recent.k[:, :, :count], self.recent.v[:, :, :count]
        ops.kv_append(k, v, cache_seqlens=self.cache_seqlens, **self.store.arguments)
        moved = (self.recent_seqlens - keep).clamp(min=0)
        _copy_rows(self.recent.k, self.recent.k, moved, keep)
        _copy_rows(self.recent.v, self.recent.v, moved, keep)
        self.cache_seqlens = self.cache_seqlens + moved
        self.recent_seqlens = self.recent_seqlens - moved
        self.recent_count = keep

    def _grow_store(self, rows: int) -> None:
        if rows <= self.store.capacity:
            return
        if self.fixed_capacity is None:
            rows = -(-rows // GROWTH) * GROWTH
        self.store = self.store.grown(rows)

    def _store_rows(self, tokens: int) -> int:
        """Rows that ``store`` should have when ``tokens`` came, the newest of them together."""
        if self.fixed_capacity is None:
            return -(-max(tokens, 1) // GROWTH) * GROWTH
        if self.residual_length == 0:
            return self.fixed_capacity
        # If the others come one at a time: so many find no room in `recent`, where they make it by halves.
        kept = min(tokens, self.residual_length // 2)
        too_many = max(0, self.fixed_capacity - tokens - (self.residual_length - kept))
        half = self.residual_length - self.residual_length // 2
        return max(1, tokens, tokens - kept + -(-too_many // half) * half)


def _rows_at(x: Tensor, place: Tensor) -> Tensor:
    """Of x [batch, kv_heads, rows, head_dim] the rows ``place`` [batch, any number]."""
    return x.gather(2, place.long()[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def _copy_rows(to: Tensor, x: Tensor, first: Tensor, count: int) -> None:
    """``count`` rows of x from ``first`` [batch] on, as far as there are so many, to the start of ``to``."""
    place = first[:, None] + torch.arange(count, device=first.device)
    to[:, :, :count] = _rows_at(x, place.clamp(max=x.shape[2] - 1))
