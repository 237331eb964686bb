"""nanoGPT's attention as a module of one's own, and attention to a cache with a nanoGPT layer's weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn import functional as F

from kvfuse import ops
from kvfuse.cache import KVCache
from kvfuse.nanogpt._linear import linear


class AttentionConfig(Protocol):
    """What ``CausalSelfAttention`` reads of nanoGPT's ``GPTConfig``."""

    n_embd: int
    n_head: int
    dropout: float
    bias: bool


class CausalSelfAttention(nn.Module):
    """nanoGPT's attention: the same constructor, parameters (``c_attn``, ``c_proj``) and ``forward(x)``.

    Its checkpoints load unchanged, those with the causal mask that nanoGPT once stored included. It computes
    what nanoGPT's module does, with dropout and gradients, and inside ``cached`` attends to a cache.
    """

    def __init__(self, config: AttentionConfig) -> None:
        """Raises ValueError unless ``n_embd`` is a multiple of ``n_head``."""
        super().__init__()
        if config.n_embd % config.n_head != 0:
            raise ValueError(
                f"CausalSelfAttention: expected n_embd to be a multiple of n_head {config.n_head}, "
                f"got {config.n_embd}"
            )
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)
        self.n_head, self.n_embd, self.dropout = config.n_head, config.n_embd, config.dropout
        self._cache: tuple[KVCache, int] | None = None
        self.register_load_state_dict_pre_hook(_drop_mask)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [batch, tokens, n_embd]; gives the same shape and dtype.

        Inside ``cached`` the tokens follow those that the cache counts, and are appended to it. The errors
        are then those of ``kvfuse.ops``, and RuntimeError for a model that is in training with dropout.
        """
        if self._cache is not None:
            if self.training and self.dropout > 0:
                raise RuntimeError(
                    "CausalSelfAttention: expected a model in evaluation, got one in training with dropout "
                    f"{self.dropout} (the cached attention has no dropout; call model.eval())"
                )
            return cached_attention(self, x, *self._cache, self)
        q, k, v = _heads(self.c_attn(x), 3, self.n_head)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        return self.resid_dropout(self.c_proj(y.transpose(1, 2).reshape(x.shape)))


def _drop_mask(_: nn.Module, state_dict: dict[str, Tensor], prefix: str, *__: Any) -> None:
    state_dict.pop(f"{prefix}bias", None)


@contextmanager
def cached(model: nn.Module, cache: KVCache) -> Iterator[None]:
    """Within it the ``CausalSelfAttention`` modules of ``model`` append to ``cache`` and attend to it.

    They are its layers in the order of ``model.modules()``. The caller gives new tokens their positions, and
    calls ``cache.advance`` after each pass. nanoGPT's own ``GPT`` counts positions from 0: ``patch`` it.

    Raises:
        ValueError: the cache is not for as many layers.
    """
    layers = [module for module in model.modules() if isinstance(module, CausalSelfAttention)]
    if len(layers) != cache.n_layer:
        raise ValueError(
            f"cached: expected a cache for the model's {len(layers)} CausalSelfAttention layers, "
            f"got one for {cache.n_layer}"
        )
    try:
        for index, layer in enumerate(layers):
            layer._cache = (cache, index)
        yield
    finally:
        for layer in layers:
            layer._cache = None


def cached_attention(attn: Any, x: Tensor, cache: KVCache, layer: int, queries_of: Any) -> Tensor:
    """The attention of layer ``layer``, which appends to the cache unless it borrows from its owner."""
    tokens, width = x.shape[1:]
    kv, seqlens = cache.layer(layer).arguments, cache.cache_seqlens
    if not cache.owns(layer):
        (q,) = _heads(linear(queries_of.c_attn, x, features=width), 1, attn.n_head)
        y = ops.decode_attention(q, cache_seqlens=seqlens + tokens, **kv)
    else:
        q, k, v = _heads(linear(attn.c_attn, x), 3, attn.n_head)
        attend = ops.append_decode_attention if tokens == 1 else ops.prefill_attention
        y = attend(q, k, v, cache_seqlens=seqlens, **kv)
    return linear(attn.c_proj, y.transpose(1, 2).reshape(x.shape))


def _heads(projected: Tensor, parts: int, n_head: int) -> tuple[Tensor, ...]:
    """[batch, tokens, parts * n_embd] -> ``parts`` views [batch, n_head, tokens, head_dim]."""
    batch, tokens, width = projected.shape
    split = projected.view(batch, tokens, parts, n_head, width // (parts * n_head))
    return split.permute(2, 0, 3, 1, 4).unbind()
