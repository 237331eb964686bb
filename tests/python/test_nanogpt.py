"""The patched nanoGPT against the unmodified one."""

import copy
import inspect

import pytest
import torch
from gpt_models import SIZES, greedy, logits_of, make_gpt, random_tokens, sampled, through_cache
from kvfuse.nanogpt import CachedGpt, patch
from op_inputs import one_thread
from torch import nn
from torch.nn import functional as F

CACHED = ["v1", "v2", "v3", "v4", "v3a", "v4a"]
# What rounding every key and value to 8 bits moves the logits by, as a share of their standard deviation.
INT8_RMS = 0.02


@pytest.fixture(autouse=True)
def few_threads():
    with one_thread():
        yield


@pytest.fixture
def model(nanogpt):
    return make_gpt(nanogpt)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch, prompt", [(1, 1), (8, 5), (2, 48), (2, 60)])
def test_greedy_tokens_are_those_of_nanogpt(nanogpt, bias, batch, prompt):
    model = make_gpt(nanogpt, bias=bias)
    tokens = random_tokens(batch, prompt)
    want = greedy(model, tokens, 80)  # beyond block_size 48, where the window slides
    assert len(want[:, prompt:].unique()) > 20, "generations too tame to tell models apart"
    patch(model, "v1")
    for _ in range(2):
        assert torch.equal(greedy(model, tokens, 80), want)


@pytest.mark.parametrize("version", ["v0", "v1"])
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_k": 20}, {"top_k": 10**6}])
def test_samples_are_those_of_nanogpt(model, version, options):
    tokens = random_tokens(3, 7)
    want = sampled(model, tokens, 60, **options)
    assert not torch.equal(want, sampled(model, tokens, 60, seed=4, **options))
    assert torch.equal(sampled(patch(model, version), tokens, 60, **options), want)


def test_signature_and_trivial_calls_are_those_of_nanogpt(model):
    want = inspect.signature(model.generate)
    tokens = random_tokens(2, 3)
    patch(model)
    got = inspect.signature(model.generate)
    assert [(p.name, p.default, p.kind) for p in got.parameters.values()] == [
        (p.name, p.default, p.kind) for p in want.parameters.values()
    ]
    assert model.generate(tokens, 0) is tokens
    assert model.generate(idx=tokens, max_new_tokens=2, temperature=1.0, top_k=None).shape == (2, 5)
    assert not model.generate(tokens, 1).is_inference()


@pytest.mark.parametrize("passes", [(40,), (39, 1), (1,) * 40, (13, 20, 7)])
def test_logits_are_those_of_nanogpt(model, passes):
    tokens = random_tokens(2, 40)
    want = logits_of(model, tokens)
    gpt = CachedGpt(model, "v1")
    cache = gpt.make_cache(2, 40)
    got = [gpt.forward(part, cache, every_token=True) for part in tokens.split(passes, dim=1)]
    torch.testing.assert_close(torch.cat(got, 1), want, atol=1e-4, rtol=0)


def test_logits_of_an_int8_cache_are_close(model):
    tokens = random_tokens(4, 48)
    want = logits_of(model, tokens)
    got = through_cache(model, "v2", tokens)
    rms = ((got - want) / want.std()).square().mean().sqrt()
    assert 0 < rms < INT8_RMS
    nll, nll_int8 = (F.cross_entropy(x.flatten(0, 1), want.argmax(-1).flatten()) for x in (want, got))
    assert 0 < abs(nll_int8 - nll) < 0.01 * nll


def share_layers(model, aligned):
    """nanoGPT's own attention modules, those of odd layers attending to the keys and values before them."""
    for owner, borrower in zip(model.transformer.h[::2], model.transformer.h[1::2], strict=False):
        with torch.no_grad():
            if aligned:
                width = model.config.n_embd
                borrower.attn.c_attn.weight[:width] = owner.attn.c_attn.weight[:width]
                if model.config.bias:
                    borrower.attn.c_attn.bias[:width] = owner.attn.c_attn.bias[:width]
        borrower.attn.c_attn = Borrowing(borrower.attn.c_attn, owner.attn.c_attn)
    return model


class Borrowing(nn.Module):
    """Queries of one projection beside the keys and values that the owner's last gave."""

    def __init__(self, own, owner):
        super().__init__()
        self.own = own
        owner.register_forward_hook(self.remember)

    def remember(self, _, __, output):
        self.borrowed = output

    def forward(self, x):
        width = x.shape[-1]
        return torch.cat((self.own(x)[..., :width], self.borrowed[..., width:]), -1)


@pytest.mark.parametrize("version, limit", [("v3", 1e-5), ("v3a", 1e-5), ("v4", INT8_RMS), ("v4a", INT8_RMS)])
@pytest.mark.parametrize("bias", [True, False])
def test_shared_layers(nanogpt, version, limit, bias):
    model = make_gpt(nanogpt, n_layer=5, bias=bias)
    tokens = random_tokens(2, 48)
    got = through_cache(model, version, tokens)
    unshared = logits_of(model, tokens)
    want = logits_of(share_layers(copy.deepcopy(model), version.endswith("a")), tokens)
    assert ((got - want) / want.std()).square().mean().sqrt() < limit
    assert ((unshared - want) / want.std()).square().mean().sqrt() > 0.1


@pytest.mark.parametrize("version", CACHED)
def test_what_a_version_keeps(model, version):
    cache = CachedGpt(model, version).make_cache(2, 10)
    row = 64 + 4 * 4 if version in ("v2", "v4", "v4a") else 64 * 4  # codes and a scale a head, or floats
    assert cache.nbytes == 2 * 2 * 10 * row * (3 if version in ("v1", "v2") else 2)
    generated = greedy(patch(model, version), random_tokens(2, 5), 60)
    assert generated.shape == (2, 65)
    assert generated.max() < SIZES["vocab_size"]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_bfloat16(model, version):
    tokens = random_tokens(2, 40)
    patch(model, version).to(torch.bfloat16)
    want = logits_of(model, tokens)
    got = through_cache(model, version, tokens)
    assert got.dtype == torch.bfloat16
    rms = ((got.float() - want.float()) / want.float().std()).square().mean().sqrt()
    assert rms < 0.03
    assert model.generate(tokens, 20).shape == (2, 60)
    patch(model, version)  # and of a model that is bfloat16 already


def test_autocast(model):
    tokens = random_tokens(2, 40)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        want = logits_of(model, tokens).float()
        got = through_cache(patch(model, "v1"), "v1", tokens).float()
        assert model.generate(tokens, 20).shape == (2, 60)
    assert ((got - want) / want.std()).square().mean().sqrt() < 0.03
    exact = logits_of(model, tokens)
    assert not torch.allclose(got, exact, atol=1e-3)


def test_only_new_tokens_are_run_and_only_the_last_gets_logits(model):
    shapes = {"ln_1": [], "head": []}
    patch(model, "v1")
    model.transformer.h[0].ln_1.register_forward_hook(lambda _, x, y: shapes["ln_1"].append(y.shape[1]))
    model.lm_head.register_forward_hook(lambda _, x, y: shapes["head"].append(y.shape[1]))
    greedy(model, random_tokens(2, 40), 12)
    assert shapes == {"ln_1": [40] + [1] * 8 + [48] * 3, "head": [1] * 12}
