"""Generation by transformers with ``kvfuse.hf``, judged by transformers' own "sdpa" on the same weights."""

import functools
import json
import os
import subprocess
import sys

import pytest
import torch
import transformers
from conftest import REPOSITORY
from hf_models import MODELS, VOCAB, RoundingCache, gpt2, llama, prompts
from kvfuse.hf import FusedCache
from kvfuse.hf.layer import FusedLayer

NEW_TOKENS = 24
GREEDY = {"do_sample": False, "max_new_tokens": NEW_TOKENS}


@functools.cache
def model_of(name: str, attention: str) -> transformers.PreTrainedModel:
    return MODELS[name](attention)


@pytest.fixture
def only_fused(monkeypatch):
    """Fails the test that dequantises a cache."""

    def fail(layer):
        raise AssertionError("the cache was dequantised")

    monkeypatch.setattr(FusedLayer, "dense", fail)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_tokens_are_those_of_sdpa(name, padded, beams, only_fused):
    inputs = prompts(padded)
    want = model_of(name, "sdpa").generate(**inputs, **GREEDY, num_beams=beams)
    assert len(want[:, -NEW_TOKENS:].unique()) > NEW_TOKENS  # the weights are worth a comparison
    model = model_of(name, "kvfuse")
    cache = FusedCache(model.config, dtype="model")
    got = model.generate(**inputs, **GREEDY, num_beams=beams, past_key_values=cache)
    assert torch.equal(got, want)


def run(model, cache, tokens, mask, chunks) -> torch.Tensor:
    """Logits [batch, tokens, vocabulary] of tokens that are passed in chunks of the sizes given."""
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits, start = [], 0
    for size in chunks:
        end = start + size
        with torch.no_grad():
            out = model(
                tokens[:, start:end],
                attention_mask=mask[:, :end],
                position_ids=positions[:, start:end],
                past_key_values=cache,
            )
        logits.append(out.logits)
        start = end
    return torch.cat(logits, dim=1)


def masks() -> dict[str, torch.Tensor]:
    """What a batch may hide, [4, 60]: nothing, padding on either side, and anything."""
    found = {name: torch.ones(4, 60, dtype=torch.int64) for name in ("none", "left", "right", "holes")}
    for row, pads in enumerate((0, 1, 20, 39)):
        found["left"][row, :pads] = 0
        found["right"][row, 40 - pads : 40] = 0
    found["holes"] = (torch.rand(4, 60, generator=torch.Generator().manual_seed(3)) > 0.3).long()
    found["holes"][:, 0] = 1
    return found


CHUNKS = {"prompt": (40, *[1] * 20), "chunks": (17, 3, 20, 1, 19), "single": (1,) * 60}
# The settings of a FusedCache, and the cache of transformers that is to give the same logits.
CACHES = {
    "model": ({"dtype": "model"}, lambda **settings: transformers.DynamicCache()),
    "int8": ({"dtype": "int8"}, lambda **settings: RoundingCache()),
    "residual": (
        {"dtype": "int8", "residual_length": 7},
        functools.partial(RoundingCache, 7),
    ),
    "residual, fixed": (
        {"dtype": "int8", "residual_length": 64, "capacity": 60},
        functools.partial(RoundingCache, 64),
    ),
}


def assert_logits_of_sdpa(cache: str, name: str, attention: str, hidden: str, chunks: str) -> None:
    mask = masks()[hidden]
    tokens = torch.randint(1, VOCAB, mask.shape, generator=torch.Generator().manual_seed(4))
    settings, make_judge = CACHES[cache]
    # Only the fused attention tells the cache what is hidden, and attends to all of a prompt as codes.
    fused_attention = attention == "kvfuse"
    judge = make_judge(shown=mask if fused_attention else None, late=fused_attention)
    want = run(model_of(name, "sdpa"), judge, tokens, mask, CHUNKS[chunks])
    model = model_of(name, attention)
    fused = FusedCache(model.config, **settings)
    got = run(model, fused, tokens, mask, CHUNKS[chunks])
    shown = mask.bool()
    error = (got - want)[shown] / want[shown].std()
    # A value on the edge between two int8 codes may fall to either side. Rounding tokens that the judge does
    # not, or the other way round, changes the mean by twice what is allowed, and more.
    most, mean = (1e-4, 1e-5) if settings["dtype"] == "model" else (2e-2, 2e-3)
    if "residual_length" in settings:
        most = 3e-2  # its tokens are rounded in turn, and each turn may meet such a value
    assert error.abs().max() <= most and error.square().mean().sqrt() <= mean
    assert fused.get_seq_length() == 60


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("hidden", masks())
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("cache", CACHES)
def test_logits_are_those_of_sdpa(cache, name, hidden, chunks, only_fused):
    assert_logits_of_sdpa(cache, name, "kvfuse", hidden, chunks)


def test_sequences_of_unequal_padding_change_places(only_fused):
    mask, index = masks()["left"], torch.tensor([3, 3, 0, 1, 2])
    tokens = torch.randint(1, VOCAB, mask.shape, generator=torch.Generator().manual_seed(4))
    found = []
    for attention, make in (("sdpa", transformers.DynamicCache), ("kvfuse", FusedCache)):
        model = model_of("llama", attention)
        cache = make() if make is transformers.DynamicCache else make(model.config, "model")
        run(model, cache, tokens[:, :50], mask[:, :50], (40, 10))
        cache.crop(-3)
        cache.batch_select_indices(index)
        with torch.no_grad():
            positions = (mask.cumsum(1) - 1)[index, 47:60]
            new = {"attention_mask": mask[index], "position_ids": positions, "past_key_values": cache}
            found.append(model(tokens[index, 47:60], **new).logits)
    torch.testing.assert_close(*found, atol=1e-3, rtol=1e-4)


def test_the_scale_is_the_models(only_fused):
    inputs = prompts(padded=True)
    model = gpt2("kvfuse", scale_attn_by_inverse_layer_idx=True)
    want = gpt2("sdpa", scale_attn_by_inverse_layer_idx=True).generate(**inputs, **GREEDY)
    assert not torch.equal(want, model_of("gpt2", "sdpa").generate(**inputs, **GREEDY))
    cache = FusedCache(model.config, dtype="model")
    assert torch.equal(model.generate(**inputs, **GREEDY, past_key_values=cache), want)


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_is_as_near_to_float32_as_sdpa(name, only_fused):
    mask = masks()["left"]
    tokens = torch.randint(1, VOCAB, mask.shape, generator=torch.Generator().manual_seed(4))
    shown = mask.bool()
    exact = run(model_of(name, "sdpa"), transformers.DynamicCache(), tokens, mask, (40, *[1] * 20))[shown]
    errors = []
    for attention in ("sdpa", "kvfuse"):
        model = MODELS[name](attention).to(torch.bfloat16)
        cache = transformers.DynamicCache() if attention == "sdpa" else FusedCache(model.config, "model")
        got = run(model, cache, tokens, mask, (40, *[1] * 20))[shown]
        errors.append((got.float() - exact).square().mean().sqrt().item())
    assert errors[1] <= 1.2 * errors[0]


def test_sampling_draws_the_tokens_of_sdpa(only_fused):
    inputs = prompts(padded=True)
    drawn = []
    for attention in ("sdpa", "kvfuse"):
        model = model_of("llama", attention)
        cache = FusedCache(model.config, dtype="model") if attention == "kvfuse" else None
        torch.manual_seed(5)
        drawn.append(
            model.generate(
                **inputs,
                do_sample=True,
                top_k=50,
                num_return_sequences=2,
                max_new_tokens=NEW_TOKENS,
                past_key_values=cache,
            )
        )
    assert torch.equal(*drawn)


@pytest.mark.parametrize("how", ["prompt_lookup", "assistant", "chunked_prefill"])
def test_other_ways_to_generate(how, only_fused):
    """Those that crop the cache, or that pass several tokens to one that is not empty."""
    inputs = prompts(padded=False, batch=1)
    model = model_of("llama", "kvfuse")
    settings = {
        "prompt_lookup": {"prompt_lookup_num_tokens": 3},
        "assistant": {"assistant_model": llama("kvfuse", num_key_value_heads=6)},
        "chunked_prefill": {"prefill_chunk_size": 10},
    }[how]
    want = model_of("llama", "sdpa").generate(**inputs, **GREEDY)
    cache = FusedCache(model.config, dtype="model")
    assert torch.equal(model.generate(**inputs, **GREEDY, **settings, past_key_values=cache), want)


def test_generation_goes_on_with_the_same_cache(only_fused):
    inputs = prompts(padded=True)
    judge, model = model_of("gpt2", "sdpa"), model_of("gpt2", "kvfuse")
    want_cache, cache = transformers.DynamicCache(), FusedCache(model.config, dtype="model")
    for turn in range(3):
        want = judge.generate(**inputs, max_new_tokens=9, do_sample=False, past_key_values=want_cache)
        got = model.generate(**inputs, max_new_tokens=9, do_sample=False, past_key_values=cache)
        assert torch.equal(got, want)
        said = torch.full((4, 1 + turn), 7)
        added = want.shape[1] - inputs["input_ids"].shape[1] + said.shape[1]
        inputs["input_ids"] = torch.cat([want, said], dim=1)
        inputs["attention_mask"] = torch.nn.functional.pad(inputs["attention_mask"], (0, added), value=1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", MODELS)
def test_other_attention_reads_the_cache(name, attention):
    inputs = prompts(padded=True)
    model = MODELS[name](attention)
    want = model.generate(**inputs, **GREEDY)
    cache = FusedCache(model.config, dtype="model")
    assert torch.equal(model.generate(**inputs, **GREEDY, past_key_values=cache), want)


@pytest.mark.parametrize("cache", CACHES)
def test_other_attention_gives_the_same_logits(cache):
    assert_logits_of_sdpa(cache, "llama", "sdpa", "holes", "prompt")


@pytest.mark.parametrize("order", [("kvfuse", "sdpa", "kvfuse"), ("sdpa", "kvfuse", "eager")])
def test_attention_may_change_while_generating(order):
    mask = masks()["left"]
    tokens = torch.randint(1, VOCAB, mask.shape, generator=torch.Generator().manual_seed(4))
    want = run(model_of("llama", "sdpa"), transformers.DynamicCache(), tokens, mask, (40, 10, *[1] * 10))
    model = llama(order[0])
    cache = FusedCache(model.config, dtype="model")
    got, start = [], 0
    for attention, end in zip(order, (40, 50, 60), strict=True):
        model.set_attn_implementation(attention)
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, start:end]
        with torch.no_grad():
            out = model(
                tokens[:, start:end],
                attention_mask=mask[:, :end],
                position_ids=positions,
                past_key_values=cache,
            )
        got.append(out.logits)
        start = end
    torch.testing.assert_close(torch.cat(got, 1)[mask.bool()], want[mask.bool()], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_without_a_fused_cache_it_is_sdpa(name):
    inputs = prompts(padded=True)
    want = model_of(name, "sdpa").generate(**inputs, **GREEDY)
    assert torch.equal(model_of(name, "kvfuse").generate(**inputs, **GREEDY), want)
    assert torch.equal(model_of(name, "kvfuse").generate(**inputs, **GREEDY, use_cache=False), want)


def test_training_is_that_of_sdpa():
    inputs = prompts(padded=False)
    found = []
    for attention in ("sdpa", "kvfuse"):
        model = gpt2(attention).train()
        torch.manual_seed(6)  # of the dropout
        loss = model(**inputs, labels=inputs["input_ids"]).loss
        loss.backward()
        found.append([loss, *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(*found, atol=0, rtol=0)


def test_a_saved_model_loads_with_the_attention(tmp_path, only_fused):
    model_of("llama", "sdpa").save_pretrained(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="kvfuse")
    inputs = prompts(padded=True)
    want = model_of("llama", "sdpa").generate(**inputs, **GREEDY)
    cache = FusedCache(model.config, dtype="model", capacity=100)
    assert torch.equal(model.generate(**inputs, **GREEDY, past_key_values=cache), want)


def test_example(tmp_path):
    model_of("llama", "sdpa").save_pretrained(tmp_path)
    result = subprocess.run(
        [sys.executable, REPOSITORY / "examples" / "hf_generate.py", tmp_path],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY / "python")},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    lines = result.stdout.splitlines()
    assert [len(row) for row in json.loads(lines[0])] == [35, 35]
    # Two layers of two heads of 64 codes and a scale; 34 tokens of one sequence, 32 of the other.
    assert lines[1] == f"{2 * 2 * 2 * 68 * 66} bytes of cache in use, {2 * 2 * 2 * 68 * 128} held"
