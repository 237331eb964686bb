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

    Of tokens that come one at a time ``residual_length`` stay as they are. Before there are more, all but the
    newest half of each sequence are rounded; all, before several tokens come at once. ``shown`` [batch,
    tokens] says which tokens count.
    """

    def __init__(self, residual_length: int = 0, shown: Tensor | None = None) -> None:
        super().__init__()
        self.residual_length = residual_length
        self.shown = shown
        self.exact: dict[int, Tensor] = {}  # of each layer, bool [batch, tokens]: not rounded
        self.steps: dict[int, int] = {}  # since all or the older half were

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        tokens = key_states.shape[2]
        stays_exact = self.residual_length > 0 and tokens == 1
        steps = self.steps.get(layer_idx, 0)
        if steps > 0 and (steps == self.residual_length or not stays_exact):
            steps = self.residual_length // 2 if stays_exact else 0
            exact, layer = self.exact[layer_idx], self.layers[layer_idx]
            exact &= exact.flip(1).cumsum(1).flip(1) <= steps
            chosen = exact[:, None, :, None]
            layer.keys = torch.where(chosen, layer.keys, _rounded(layer.keys))
            layer.values = torch.where(chosen, layer.values, _rounded(layer.values))
        self.steps[layer_idx] = steps + 1 if stays_exact else 0
        if not stays_exact:
            key_states, value_states = _rounded(key_states), _rounded(value_states)
        old = self.exact.get(layer_idx, torch.zeros(key_states.shape[0], 0, dtype=torch.bool))
        new = torch.full((old.shape[0], tokens), stays_exact)
        if self.shown is not None:
            new &= self.shown[:, old.shape[1] : old.shape[1] + tokens].bool()
        self.exact[layer_idx] = torch.cat([old, new], dim=1)
        return super().update(key_states, value_states, layer_idx)


def _rounded(x: Tensor) -> Tensor:
    scale = x.abs().amax(-1, keepdim=True) / 127
    return (x / scale).round() * scale
