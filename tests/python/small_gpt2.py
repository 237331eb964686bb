"""A GPT-2 small enough for exhaustive tests, and random tokens for it."""

import numpy
import torch
import transformers

WINDOW = 32
SIZES = {"n_layer": 3, "n_head": 2, "n_embd": 32, "vocab_size": 97, "n_positions": WINDOW}


def our_sizes(**changes) -> dict:
    """The sizes under our names."""
    return {key.replace("n_positions", "block_size"): value for key, value in (SIZES | changes).items()}


def save(folder) -> transformers.GPT2LMHeadModel:
    """A model with random weights, written to ``folder`` as save_pretrained does."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(**SIZES, initializer_range=0.2, bos_token_id=0, eos_token_id=0)
    model = transformers.GPT2LMHeadModel(config).eval()
    model.save_pretrained(folder)
    return model


def random_tokens(count, seed=0, below=SIZES["vocab_size"]) -> numpy.ndarray:
    return numpy.random.default_rng(seed).integers(below, size=count)
