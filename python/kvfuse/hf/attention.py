"""The attention implementation "kvfuse" of transformers."""

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface

from kvfuse.hf.cached_tokens import layer_of
from kvfuse.hf.mask import fused_mask, padding_of

NAME = "kvfuse"
# What models may pass that changes the result, and that neither the operators nor "sdpa" compute.
REFUSED = ("softcap", "s_aux", "sinks", "output_attentions")
# The same that "sdpa" computes.
LEFT_TO_SDPA = ("position_bias", "cache")


def register() -> None:
    """Makes ``attn_implementation="kvfuse"`` known to transformers."""
    AttentionInterface.register(NAME, fused_attention)
    AttentionMaskInterface.register(NAME, fused_mask)


def fused_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of ``query`` [batch, heads, q_len, head_dim] to what an update of the cache returned.

    Of a ``FusedCache``: the fused operators, if they compute what is asked; of all else: "sdpa".

    Returns:
        [batch, q_len, heads, head_dim], and None for the attention weights.

    Raises:
        NotImplementedError: soft capping, attention sinks or output_attentions.
        ValueError: a mask that shows a token which was hidden when it was appended to a ``FusedCache``.
    """
    for name in REFUSED:
        if kwargs.get(name) is not None and kwargs[name] is not False:
            raise NotImplementedError(
                f"kvfuse.hf: attn_implementation='kvfuse' does not compute {name} (load the model with "
                "attn_implementation='eager')"
            )
    layer = layer_of(key, value)
    if layer is not None:
        padding = padding_of(attention_mask)
        causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
        is_fused = (
            (padding is not None or (attention_mask is None and (causal or query.shape[2] == 1)))
            and dropout == 0.0
            and all(kwargs.get(name) is None for name in LEFT_TO_SDPA)
            and layer.can_attend(query, padding)
        )
        if is_fused:
            return layer.attend(query, padding, scaling).transpose(1, 2), None
        layer.check_stored(attention_mask)
        key, value = layer.dense()
    return sdpa_attention_forward(
        module,
        query,
        key,
        value,
        attention_mask,
        dropout=dropout,
        scaling=scaling,
        is_causal=is_causal,
        **kwargs,
    )
