"""kvfuse.model, the C++ GPT-2 from Python: judged by transformers, and by the same code without Python."""

import os
import signal
import threading
import time

import pytest
import torch
from kvfuse import versions
from kvfuse.model import Gpt2, ModelConfig
from probe import Probe
from small_gpt2 import SIZES, WINDOW, random_tokens

SHARING = ["v3", "v4", "v3a", "v4a"]


@pytest.fixture(scope="module")
def reference(small):
    return small[0]


@pytest.fixture(scope="module")
def load(small):
    _, folder = small
    return lambda version="v1", **options: Gpt2(
        ModelConfig.beside(folder), version, weights=folder, **options
    )


def prompts(batch, length):
    return torch.from_numpy(random_tokens(batch * length)).view(batch, length)


@torch.inference_mode()
def logits_of(model, tokens):
    return model(tokens).logits


def greedy(model, tokens, count):
    return model.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=count, do_sample=False, pad_token_id=0
    )


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_logits_equal_transformers(load, reference, version):
    model, tokens = load(version), prompts(3, 20)
    want = logits_of(reference, tokens)
    torch.testing.assert_close(model.forward(tokens), want, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(tokens, every_token=False), want[:, -1:], atol=1e-5, rtol=1e-5)


def test_tokens_that_follow_a_cache(load, reference):
    model, tokens = load(), prompts(2, 15)
    cache = model.make_cache(2, 20)
    parts = [model(part, cache) for part in tokens.split([7, 1, 1, 6], dim=1)]
    torch.testing.assert_close(torch.cat(parts, 1), logits_of(reference, tokens), atol=1e-5, rtol=1e-5)
    assert (cache.batch, cache.capacity, cache.lengths) == (2, 20, [15, 15])
    cache.crop(7)
    again = model(tokens[:, 7:], cache)
    torch.testing.assert_close(again, torch.cat(parts[1:], 1), atol=1e-5, rtol=1e-5)
    cache.reset()
    assert cache.lengths == [0, 0]


def test_sequences_of_different_lengths(load, reference):
    model, tokens, lengths = load(), prompts(3, 12), [12, 5, 9]
    cache = model.make_cache(3)
    last = model(tokens, cache, lengths=lengths, every_token=False)
    assert cache.lengths == lengths
    for row, length, got in zip(tokens, lengths, last, strict=True):
        want = logits_of(reference, row[None, :length])[0, -1:]
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    out = model.generate(tokens, 4, lengths=lengths)
    for row, length, got in zip(tokens, lengths, out, strict=True):
        assert torch.equal(got[: length + 4], greedy(reference, row[None, :length], 4)[0])
        assert not got[length + 4 :].any()


def test_int8_cache_is_near_and_smaller(load):
    v1, v2 = load("v1"), load("v2")
    tokens, caches = prompts(1, WINDOW), (v1.make_cache(1), v2.make_cache(1))
    exact, near = v1(tokens, caches[0]), v2(tokens, caches[1])
    assert 0 < (exact - near).abs().max() < 0.1
    rows = 2 * 3 * 2 * WINDOW  # K and V, layers, heads, tokens: a row of 16 values each
    assert [cache.nbytes for cache in caches] == [rows * 16 * 4, rows * (16 + 4)]
    assert load("v4").make_cache(1).nbytes * 3 == caches[1].nbytes * 2  # two of three layers own
    assert load("v0").make_cache(1) is None


def test_greedy_tokens_equal_transformers(load, reference):
    tokens = prompts(2, 10)
    for version in ("v0", "v1"):
        assert torch.equal(load(version).generate(tokens, 22), greedy(reference, tokens, 22))


@pytest.mark.parametrize("version", ["v1", "v2", *SHARING])
@pytest.mark.parametrize("sampling", [(), (0.9, 20, 0.95, 7), (1.3, 0, 1.0, 2**40)], ids=str)
def test_the_same_tokens_as_without_python(load, built, small, version, sampling):
    options = dict(zip(("temperature", "top_k", "top_p", "seed"), sampling, strict=False))
    got = load(version).generate(prompts(2, 8), 20, **options)
    probe = Probe(built("tests/gpt2_probe"), small[1], SIZES)
    assert torch.equal(got, probe.generate(version, prompts(2, 8), 20, *sampling))


def test_sampling(load):
    model, tokens = load(), prompts(1, 8)
    drawn = [model.generate(tokens, 20, temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    likeliest = model.generate(tokens, 20)
    assert torch.equal(model.generate(tokens, 20, temperature=5.0, top_k=1), likeliest)
    assert torch.equal(model.generate(tokens, 20, temperature=5.0, top_p=1e-9), likeliest)


def test_each_token_is_told_at_once(load):
    model, tokens, told = load("v2"), prompts(2, 8), []
    out = model.generate(tokens, 10, on_token=told.append)
    assert torch.equal(out[:, 8:], torch.stack(told, 1))

    def three(newest):
        told.append(newest)
        return len(told) < 3

    told.clear()
    assert torch.equal(model.generate(tokens, 10, on_token=three), out[:, :11])


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_error_in_the_callback_ends_it(load, error):
    model, tokens = load(), prompts(1, 8)
    before = model.generate(tokens, 5)

    def fail(newest):
        assert not torch.is_inference_mode_enabled()
        raise error

    with pytest.raises(error):
        model.generate(tokens, 5, on_token=fail)
    assert torch.equal(model.generate(tokens, 5), before)


def slow(version="v0"):
    """Slow enough to be seen at work."""
    return Gpt2(ModelConfig(n_layer=4, n_head=4, n_embd=256, block_size=512, vocab_size=97), version)


def test_ctrl_c_ends_a_generation():
    model, tokens = slow(), prompts(1, 8)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            model.generate(tokens, 500)
            pytest.fail("it was done sooner than the signal came")
    finally:
        timer.cancel()


def test_other_threads_run_meanwhile():
    model, tokens = slow(), prompts(4, 400)
    worker = threading.Thread(target=lambda: [model(tokens) for _ in range(3)])
    worker.start()
    turns = 0
    while worker.is_alive():
        turns += 1
        time.sleep(0.001)
    assert turns > 10, "a call that keeps the lock lets others in between two of them only"


def test_beyond_block_size(load):
    model, tokens = load(), prompts(1, 8)
    out = model.generate(tokens, 60, overflow="slide", overflow_keep=16)
    assert torch.equal(out, load("v0").generate(tokens, 60, overflow="slide", overflow_keep=16))
    assert torch.equal(out[:, :WINDOW], model.generate(tokens, WINDOW - 8))
    assert model.generate(tokens, 60, overflow="sink").shape == (1, 68)


def test_versions_share_the_weights(load):
    model, tokens = load("v1"), prompts(1, 9)
    before = model(tokens)
    other = model.with_version("v4a")
    assert (model.version, other.version) == ("v1", "v4a")
    assert not torch.equal(other(tokens), before) and torch.equal(model(tokens), before)
    assert model.eval() is model and other.nbytes < model.nbytes


@pytest.mark.parametrize("version", ["v0", "v2", "v3", "v4a", "v1w8", "v3f"])
def test_a_version_of_a_model_is_the_version_alone(load, version):
    """Also where its weights are rounded, shared or fitted, which packed ones are unpacked for."""
    calibration = torch.from_numpy(random_tokens(300, seed=1))
    other = load("v1").with_version(version, calibration)
    assert torch.equal(other(prompts(2, 9)), load(version, calibration=calibration)(prompts(2, 9)))


def test_fitted_layers(load):
    model = load("v3f", calibration=torch.from_numpy(random_tokens(300, seed=1)))
    assert [(fit["layer"], fit["owner"]) for fit in model.layer_fits] == [(1, 0)]
    assert 0 < model.layer_fits[0]["k_error"] < 1.5
    assert model.with_version("v1").layer_fits == []
    with pytest.raises(ValueError, match="expected calibration tokens for version v4f, which fits"):
        model.with_version("v4f")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", torch.float16])
def test_random_weights(dtype):
    config = ModelConfig(n_layer=2, n_head=2, n_embd=32, block_size=64, vocab_size=50)
    tokens = torch.from_numpy(random_tokens(12, below=50))[None]
    same = [Gpt2(config, dtype=dtype, seed=seed)(tokens) for seed in (3, 3, 4)]
    assert torch.equal(same[0], same[1]) and not torch.equal(same[0], same[2])
    assert str(same[0].dtype).removeprefix("torch.") == str(dtype).removeprefix("torch.")
    exact = Gpt2(config, seed=3)(tokens)
    torch.testing.assert_close(same[0].float(), exact, atol=0.05, rtol=0.05)


def test_transforms_compute_the_same(load):
    tokens = prompts(2, 20)
    folded = load("v1", transforms=["k_bias", "v_bias", "qk_balance", "rotation"])
    torch.testing.assert_close(folded(tokens), load("v1")(tokens), atol=1e-4, rtol=1e-4)


def test_every_version_runs(load):
    for name in versions.VERSIONS:
        calibration = torch.from_numpy(random_tokens(200))
        assert load(name, calibration=calibration).generate(prompts(1, 4), 5).shape == (1, 9)
