"""Small models of transformers with random weights, and a cache that rounds as an int8 cache does."""

import torch
import transformers
from torch import Tensor

VOCAB = 300
# Wide enough that greedy decoding of random weights does not repeat one token.
SPREAD = 0.15


def gpt2(attention: str, **settings) -> transformers.PreTrainedModel:
    """Two layers of four heads of 64."""
    config = transformers.GPT2Config(
        n_layer=2,
        n_head=4,
        n_embd=256,
        vocab_size=VOCAB,
        n_positions=512,
        initializer_range=SPREAD,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
        **settings,
    )
    return _seeded(transformers.GPT2LMHeadModel, config, attention)


def llama(attention: str, **settings) -> transformers.PreTrainedModel:
    """Two layers, six heads of 64 on two of the cache, rotary positions."""
    sizes = {"hidden_size": 384, "num_attention_heads": 6, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(
        **(sizes | settings),
        intermediate_size=256,
        num_hidden_layers=2,
        vocab_size=VOCAB,
        max_position_embeddings=512,
        initializer_range=SPREAD,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
    )
    return _seeded(transformers.LlamaForCausalLM, config, attention)


def _seeded(kind, config, attention: str) -> transformers.PreTrainedModel:
    config._attn_implementation = attention
    torch.manual_seed(1)
    return kind(config).eval()


MODELS = {"gpt2": gpt2, "llama": llama}


def prompts(padded: bool, batch: int = 4, length: int = 37) -> dict[str, Tensor]:
    """Token numbers and attention mask, [batch, length]; padded on the left by none to all but one token."""
    ids = torch.randint(1, VOCAB, (batch, length), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    if padded:
        for row, pads in enumerate((0, 5, 17, length - 1)):
            ids[row, :pads] = mask[row, :pads] = 0
    return {"input_ids": ids, "attention_mask": mask}


class RoundingCache(transformers.DynamicCache):
    """Float keys and values, rounded to what one int8 scale for each token and head can hold.

    With a ``residual_length`` tokens that come one at a time stay as they are, until all but the newest half
    of so many are rounded. Of several, before which all are rounded, the last half as many stay; with
    ``late`` once they have been attended to as rounded. ``shown`` [batch, tokens] says which tokens count.
    """

    def __init__(self, residual_length: int = 0, shown: Tensor | None = None, late: bool = True) -> None:
        super().__init__()
        self.late = late
        self.residual_length = residual_length
        self.shown = shown
        self.exact: dict[int, Tensor] = {}  # of each layer, bool [batch, tokens]: not rounded
        self.count: dict[int, int] = {}  # of exact tokens, were none hidden

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        batch, _, tokens, _ = key_states.shape
        half = self.residual_length // 2
        alone = self.residual_length > 0 and tokens == 1
        count = self.count.get(layer_idx, 0)
        exact = self.exact.get(layer_idx, torch.zeros(batch, 0, dtype=torch.bool))
        if not alone or count == self.residual_length:
            count = half if alone else 0
            exact = _newest(exact, count)
            self._round(layer_idx, exact)
        new = torch.ones(batch, tokens, dtype=torch.bool)
        if self.shown is not None:
            new = self.shown[:, exact.shape[1] : exact.shape[1] + tokens].bool()
        exact = torch.cat([exact, new if alone else _newest(new, half)], dim=1)
        found = super().update(key_states, value_states, layer_idx)
        self.exact[layer_idx] = exact
        self.count[layer_idx] = count + 1 if alone else min(half, tokens)
        self._round(layer_idx, exact)
        if self.late and not alone:
            return map(_rounded, found)
        return self.layers[layer_idx].keys, self.layers[layer_idx].values

    def _round(self, layer_idx: int, exact: Tensor) -> None:
        if exact.shape[1] > 0:
            layer, exact = self.layers[layer_idx], exact[:, None, :, None]
            layer.keys = torch.where(exact, layer.keys, _rounded(layer.keys))
            layer.values = torch.where(exact, layer.values, _rounded(layer.values))


def _newest(chosen: Tensor, count: int) -> Tensor:
    """Of each row of ``chosen``, bool [batch, tokens], the last ``count`` that are set."""
    return chosen & (chosen.flip(1).cumsum(1).flip(1) <= count)


def _rounded(x: Tensor) -> Tensor:
    scale = x.abs().amax(-1, keepdim=True) / 127
    return (x / scale).round() * scale
