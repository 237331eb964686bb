"""CausalSelfAttention in place of nanoGPT's own, without and with a cache."""

import copy
from types import SimpleNamespace

import pytest
import torch
from gpt_models import SIZES, logits_of, make_gpt, random_tokens
from kvfuse import KVCache
from kvfuse.nanogpt import CausalSelfAttention, cached, patch
from torch import nn


def replaced(model, **changes):
    """A copy of `model` in which every attention is ours."""
    model = copy.deepcopy(model)
    config = SimpleNamespace(**(vars(model.config) | changes))
    for block in model.transformer.h:
        attn = CausalSelfAttention(config).train(model.training)
        attn.load_state_dict(block.attn.state_dict())
        block.attn = attn
    return model


@pytest.mark.parametrize("bias", [True, False])
def test_parameters_are_those_of_nanogpt(nanogpt, bias):
    config = nanogpt.GPTConfig(**(SIZES | {"bias": bias}))
    torch.manual_seed(0)
    want = nanogpt.CausalSelfAttention(config).state_dict()
    torch.manual_seed(0)
    got = CausalSelfAttention(config).state_dict()
    assert list(got) == list(want)
    assert all(torch.equal(got[name], want[name]) for name in want)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("training", [True, False])
def test_forward_and_gradients_are_those_of_nanogpt(nanogpt, bias, dropout, training):
    model = make_gpt(nanogpt, bias=bias, dropout=dropout).train(training)
    results = []
    for each in (model, replaced(model)):
        torch.manual_seed(2)
        logits, loss = each(random_tokens(3, 40), targets=random_tokens(3, 40, seed=2))
        loss.backward()
        results.append([logits, *(p.grad for p in each.parameters())])
    for got, want in zip(*results, strict=True):
        assert torch.equal(got, want)


def test_a_checkpoint_with_a_mask_loads(nanogpt):
    model = make_gpt(nanogpt)
    state = model.transformer.h[0].attn.state_dict()
    with_mask = state | {"bias": torch.ones(1, 1, 48, 48)}
    attn = CausalSelfAttention(model.config)
    attn.load_state_dict(with_mask)
    assert "bias" in with_mask
    assert all(torch.equal(attn.state_dict()[name], state[name]) for name in state)
    block = nanogpt.Block(model.config)
    block.attn = attn
    block.load_state_dict(model.transformer.h[0].state_dict() | {"attn.bias": torch.ones(1)})
    with pytest.raises(RuntimeError, match="masked_bias"):
        attn.load_state_dict(state | {"masked_bias": torch.ones(1)})


def stack_of(model) -> nn.Sequential:
    return nn.Sequential(*model.transformer.h)


@pytest.mark.parametrize("kv_cache_dtype, limit", [("model", 1e-5), ("int8", 0.05)])
def test_layers_attend_to_a_cache(nanogpt, kv_cache_dtype, limit):
    model = make_gpt(nanogpt)
    blocks = stack_of(replaced(model))
    x = torch.randn(2, 20, SIZES["n_embd"])
    with torch.no_grad():
        want = stack_of(model)(x)
        cache = KVCache(3, 4, 16, batch=2, capacity=20, kv_cache_dtype=kv_cache_dtype)
        got = []
        with cached(blocks, cache):
            for part in x.split((7, 1, 1, 10, 1), dim=1):
                got.append(blocks(part))
                cache.advance(part.shape[1])
        assert ((torch.cat(got, 1) - want) / want.std()).square().mean().sqrt() < limit
        assert torch.equal(blocks(x), want)  # outside it there is no cache


def test_layers_that_share_keys_and_values(nanogpt):
    model = replaced(make_gpt(nanogpt))
    tokens = random_tokens(2, 30)
    cache = KVCache(3, 4, 16, batch=2, capacity=30, sharing_group=2)
    own = KVCache(3, 4, 16, batch=2, capacity=30)
    with torch.no_grad(), cached(model, own):
        unshared = logits_of(model, tokens)
    with torch.no_grad(), cached(model, cache):
        shared = logits_of(model, tokens)
    torch.testing.assert_close(unshared, logits_of(model, tokens), atol=1e-4, rtol=0)
    # The queries of layer 1 on the keys and values of layer 0: those it gets by computing both.
    attn = [copy.deepcopy(block.attn) for block in model.transformer.h]
    width = SIZES["n_embd"]
    assert not torch.allclose(shared, unshared, atol=0.1)
    block = model.transformer.h[1]
    x = model.transformer.wte(tokens) + model.transformer.wpe.weight[:30]
    x = model.transformer.h[0](x)
    keys_from = model.transformer.h[0].ln_1(model.transformer.wte(tokens) + model.transformer.wpe.weight[:30])
    q = attn[1].c_attn(block.ln_1(x))[..., :width]
    kv = attn[0].c_attn(keys_from)[..., width:]
    q, k, v = (part.unflatten(-1, (4, 16)).transpose(1, 2) for part in (q, *kv.chunk(2, -1)))
    y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    x = x + attn[1].c_proj(y)
    x = x + block.mlp(block.ln_2(x))
    want = model.lm_head(model.transformer.ln_f(model.transformer.h[2](x)))
    torch.testing.assert_close(shared, want, atol=1e-4, rtol=0)


def test_an_error_inside_leaves_the_layers_without_cache(nanogpt):
    blocks = stack_of(replaced(make_gpt(nanogpt)))
    x = torch.randn(1, 5, SIZES["n_embd"])
    with torch.no_grad():
        want = blocks(x)
        cache = KVCache(3, 4, 16, batch=1, capacity=4)
        with pytest.raises(ValueError, match="capacity"), cached(blocks, cache):
            blocks(x)
        assert torch.equal(blocks(x), want)


def test_what_is_refused(nanogpt):
    with pytest.raises(ValueError, match="n_embd to be a multiple of n_head 3, got 64"):
        CausalSelfAttention(SimpleNamespace(n_embd=64, n_head=3, dropout=0.0, bias=True))
    model = make_gpt(nanogpt)
    cache = KVCache(3, 4, 16, batch=1, capacity=8)
    with pytest.raises(ValueError, match="0 CausalSelfAttention layers, got one for 3"), cached(model, cache):
        pass
    model = replaced(model, dropout=0.5).train()
    with (
        pytest.raises(RuntimeError, match=r"in training with dropout 0\.5"),
        torch.no_grad(),
        cached(model, cache),
    ):
        model(random_tokens(1, 3))


def test_a_gpt_with_our_attention_can_be_patched(nanogpt):
    model = make_gpt(nanogpt)
    tokens = random_tokens(2, 5)
    want = model.generate(tokens, 60, top_k=1)
    assert torch.equal(patch(replaced(model), "v1").generate(tokens, 60, top_k=1), want)
