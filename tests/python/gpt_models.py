"""Small nanoGPT models whose logits differ by whole numbers, so that a wrong one shows."""

import torch
from kvfuse.nanogpt import CachedGpt
from torch import Tensor, nn

SIZES = {
    "block_size": 48, "vocab_size": 97, "n_layer": 3, "n_head": 4, "n_embd": 64, "dropout": 0.0, "bias": True,
}  # fmt: skip


def make_gpt(nanogpt, seed=0, **changes) -> nn.Module:
    torch.manual_seed(seed)
    model = nanogpt.GPT(nanogpt.GPTConfig(**(SIZES | changes))).eval()
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=float("ln" in name and "weight" in name), std=0.2)
    return model


def random_tokens(batch: int, length: int, seed: int = 1) -> Tensor:
    return torch.randint(SIZES["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(seed))


def logits_of(model: nn.Module, tokens: Tensor) -> Tensor:
    """Of every token, as the model itself computes them."""
    with torch.no_grad():
        return model(tokens, targets=tokens)[0]  # without targets it gives the last token's alone


def greedy(model, prompt, new_tokens):
    return model.generate(prompt, new_tokens, top_k=1)


def sampled(model, prompt, new_tokens, seed=3, **options):
    torch.manual_seed(seed)
    return model.generate(prompt, new_tokens, **options)


def through_cache(model, version, tokens):
    """Logits of every token: half of them in one pass, the others one by one."""
    gpt = CachedGpt(model, version)
    cache = gpt.make_cache(*tokens.shape)
    half = tokens.shape[1] // 2
    parts = [tokens[:, :half], *tokens[:, half:].split(1, dim=1)]
    return torch.cat([gpt.forward(part, cache, every_token=True) for part in parts], 1)
