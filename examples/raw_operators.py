"""A model of one's own with the operators: a layer of causal attention, run whole and token by token."""

import kvfuse
import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 64  # each pair of query heads shares keys and values


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.q = nn.Linear(width, HEADS * HEAD_DIM)
        self.kv = nn.Linear(width, 2 * KV_HEADS * HEAD_DIM)
        self.out = nn.Linear(HEADS * HEAD_DIM, width)

    def forward(self, x: Tensor, cache: kvfuse.KVCache | None = None, layer: int = 0) -> Tensor:
        """x [batch, tokens, width]; with a cache the tokens follow those that it holds."""
        batch, tokens, _ = x.shape
        q = self.q(x).view(batch, tokens, HEADS, HEAD_DIM).transpose(1, 2)
        k, v = self.kv(x).view(batch, tokens, 2, KV_HEADS, HEAD_DIM).permute(2, 0, 3, 1, 4)
        if cache is None:
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:
            # One call appends (and quantises) the new keys and values and attends to all in the cache.
            attend = kvfuse.ops.append_decode_attention if tokens == 1 else kvfuse.ops.prefill_attention
            kept = cache.layer(layer).arguments
            attended = attend(q, k, v, cache_seqlens=cache.cache_seqlens, **kept)
        return self.out(attended.transpose(1, 2).reshape(batch, tokens, HEADS * HEAD_DIM))


torch.manual_seed(0)
width, batch, prompt = 128, 2, 30
model = Attention(width).eval()
sequence = torch.randn(batch, 50, width)

for kv_cache_dtype in ("model", "int8"):
    cache = kvfuse.KVCache(
        1, KV_HEADS, HEAD_DIM, batch=batch, capacity=sequence.shape[1], kv_cache_dtype=kv_cache_dtype
    )
    with torch.inference_mode():
        whole = model(sequence)
        parts = []
        for part in sequence.split([prompt, *[1] * (sequence.shape[1] - prompt)], dim=1):
            parts.append(model(part, cache))
            cache.advance(part.shape[1])  # once for all layers
    difference = (torch.cat(parts, dim=1) - whole).abs().max() / whole.abs().max()
    print(f"{kv_cache_dtype}: {cache.nbytes} bytes, largest difference {difference:.1e} of the largest value")
