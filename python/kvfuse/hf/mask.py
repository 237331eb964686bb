"""Which tokens a model may attend to, in the form that the fused attention needs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import causal_mask_function, prepare_padding_mask, sdpa_mask

_ATTRIBUTE = "_kvfuse_padding"


class Padding:
    """A causal mask that hides some tokens from all queries: those that pad a batch of unequal prompts.

    One object serves all layers of a pass, so what they ask is computed once.
    """

    def __init__(self, tokens: Tensor, new: int) -> None:
        """``tokens``: bool [batch, length], False where hidden; the last ``new`` are those of the queries."""
        self.tokens = tokens
        self.old, self.new = tokens.split([tokens.shape[1] - new, new], dim=1)
        self.hides_new = not bool(self.new.all())
        self.is_empty = not self.hides_new and bool(self.old.all())
        self._compared: tuple[Tensor | None, bool] | None = None
        self._order: Tensor | None = None

    def continues(self, kept: Tensor | None) -> bool:
        """Whether it hides the same old tokens as ``kept`` [batch, old length] does; None hides none."""
        if self._compared is None or self._compared[0] is not kept:
            same = bool(self.old.all()) if kept is None else torch.equal(self.old, kept)
            self._compared = kept, same
        return self._compared[1]

    @property
    def order(self) -> Tensor:
        """int64 [batch, new]: the new tokens with the hidden ones last, otherwise in their order."""
        if self._order is None:
            self._order = (~self.new).to(torch.uint8).argsort(dim=1, stable=True)
        return self._order


def fused_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Tensor] = causal_mask_function,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> Tensor | None:
    """The mask of "sdpa". Where it is causal apart from padding, the padding is attached to it.

    A model that derives another mask from this one loses what is attached, and the derived mask is then
    applied by "sdpa".
    """
    mask = sdpa_mask(
        batch_size, q_length, kv_length, q_offset, kv_offset, mask_function, attention_mask, **kwargs
    )
    is_plain = mask_function is causal_mask_function and kv_offset == 0
    if mask is not None and is_plain and not torch.compiler.is_compiling():
        tokens = prepare_padding_mask(attention_mask, kv_length, kv_offset)
        if tokens is None:
            tokens = mask.new_ones(1, kv_length)
        tokens = tokens[:, :kv_length].expand(batch_size, -1).to(torch.bool, copy=True)
        setattr(mask, _ATTRIBUTE, Padding(tokens, q_length))
    return mask


def padding_of(mask: Tensor | None) -> Padding | None:
    """What ``fused_mask`` attached."""
    return getattr(mask, _ATTRIBUTE, None)


def visible_tokens(mask: Tensor) -> Tensor:
    """bool [batch or 1, kv_len]: the tokens that any query and head sees under a boolean or additive mask."""
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min
    return seen.flatten(1, -2).any(1)
