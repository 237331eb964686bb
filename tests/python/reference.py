"""What the operators should give, in a few lines of float64; shares no code with them."""

import torch
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """Causal attention of q [batch, heads, q_len, d] to lengths[b] rows of k, v [batch, kv_heads, -, d]."""
    out = torch.zeros(q.shape, dtype=torch.float64)
    q_len, head_dim = q.shape[2:]
    group = q.shape[1] // k.shape[1]
    for b, length in enumerate(lengths):
        keys, values = (x[b, :, :length].double().repeat_interleave(group, 0) for x in (k, v))
        visible = torch.ones(q_len, length, dtype=torch.bool).tril(length - q_len)
        scores = (q[b].double() @ keys.mT / head_dim**0.5).masked_fill(~visible, float("-inf"))
        out[b] = scores.softmax(-1) @ values
    return out


def softmax_lse(q: Tensor, k: Tensor, lengths: list[int]) -> Tensor:
    """Of the same queries and keys: logarithm of the sum of exp(score), float64 [batch, heads, q_len]."""
    out = torch.empty(q.shape[:3], dtype=torch.float64)
    q_len, head_dim = q.shape[2:]
    for b, length in enumerate(lengths):
        keys = k[b, :, :length].double().repeat_interleave(q.shape[1] // k.shape[1], 0)
        visible = torch.ones(q_len, length, dtype=torch.bool).tril(length - q_len)
        scores = (q[b].double() @ keys.mT / head_dim**0.5).masked_fill(~visible, float("-inf"))
        out[b] = scores.logsumexp(-1)
    return out


def quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes and float32 scales of the rows of x."""
    scale = x.float().abs().amax(-1) / 127
    codes = (x.float() / scale[..., None]).round().nan_to_num(0).to(torch.int8)
    return codes, scale


def dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    return codes.double() * scale[..., None].double()
