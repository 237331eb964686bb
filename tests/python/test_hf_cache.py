"""``kvfuse.hf.FusedCache`` by itself, beside transformers' DynamicCache, and what ``kvfuse.hf`` refuses."""

import copy
import subprocess
import sys
from pathlib import Path

import kvfuse
import pytest
import torch
import transformers
from hf_models import llama, prompts
from kvfuse.hf import FusedCache
from kvfuse.hf.layer import FusedLayer
from kvfuse.hf.mask import Padding, padding_of
from torch import Tensor
from transformers.masking_utils import create_causal_mask

BATCH, KV_HEADS, HEAD_DIM = 4, 2, 64


def fused_cache(dtype: str = "model", **settings) -> FusedCache:
    return FusedCache(llama("kvfuse").config, dtype=dtype, **settings)


def new_tokens(count: int, batch: int = BATCH) -> tuple[Tensor, Tensor]:
    return torch.randn(2, batch, KV_HEADS, count, HEAD_DIM).unbind()


def assert_same(fused: FusedCache, dynamic: transformers.DynamicCache) -> None:
    assert fused.get_seq_length() == dynamic.get_seq_length()
    assert fused.get_mask_sizes(3, 0) == dynamic.get_mask_sizes(3, 0)
    for layer in range(2):
        assert fused.layers[layer].get_seq_length() == dynamic.layers[layer].get_seq_length()
        torch.testing.assert_close(fused.layers[layer].keys, dynamic.layers[layer].keys, atol=0, rtol=0)
        torch.testing.assert_close(fused.layers[layer].values, dynamic.layers[layer].values, atol=0, rtol=0)


CHANGES = {
    "crop": lambda cache: cache.crop(-7),
    "crop nothing": lambda cache: cache.crop(0),
    "crop all": lambda cache: cache.crop(-40),
    "reorder": lambda cache: cache.reorder_cache(torch.tensor([2, 2, 0, 3])),
    "repeat": lambda cache: cache.batch_repeat_interleave(3),
    "select": lambda cache: cache.batch_select_indices(torch.tensor([3, 1])),
    "select by flag": lambda cache: cache.batch_select_indices(torch.tensor([True, False, True, True])),
    "copy": copy.deepcopy,
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_those_of_a_dynamic_cache(change):
    fused, dynamic = fused_cache(), transformers.DynamicCache()
    for count in (37, 1, 2):
        for layer in range(2):
            k, v = new_tokens(count)
            found, want = fused.update(k, v, layer), dynamic.update(k, v, layer)
            torch.testing.assert_close(torch.stack(found), torch.stack(want), atol=0, rtol=0)
    copies = [CHANGES[change](cache) for cache in (fused, dynamic)]
    if change == "copy":
        fused.reset()
        fused, dynamic = copies
    assert_same(fused, dynamic)
    batch = dynamic.layers[0].keys.shape[0]
    for layer in range(2):
        k, v = new_tokens(5, batch)
        fused.update(k, v, layer)
        dynamic.update(k, v, layer)
    assert_same(fused, dynamic)


def test_reset_makes_ready_for_another_batch():
    cache = fused_cache("int8")
    for batch in (4, 4, 2):
        k, v = new_tokens(130, batch)
        found, _ = cache.update(k, v, 0)
        torch.testing.assert_close(found.clone(), k, atol=0.02, rtol=0)
        cache.reset()
        assert cache.get_seq_length() == cache.bytes_in_use == 0
    assert cache.nbytes > 0


def test_an_int8_cache_holds_a_quarter():
    fused, dynamic = fused_cache("int8", capacity=1024), transformers.DynamicCache()
    for layer in range(2):
        k, v = new_tokens(1024)
        fused.update(k, v, layer)
        dynamic.update(k, v, layer)
    floats = sum(layer.keys.nbytes + layer.values.nbytes for layer in dynamic.layers)
    assert fused.nbytes == fused.bytes_in_use
    assert floats / fused.nbytes >= 3.7


def test_the_cache_grows_unless_its_capacity_is_given():
    cache = fused_cache("int8")
    assert cache.nbytes == 0 and cache.get_max_length() == -1
    k, v = new_tokens(129)
    cache.update(k, v, 0)
    token = 2 * BATCH * KV_HEADS * (HEAD_DIM + 4)
    assert cache.nbytes == 256 * token and cache.bytes_in_use == 129 * token
    cache.update(*new_tokens(200), 0)
    assert cache.nbytes == 384 * token and cache.bytes_in_use == 329 * token

    cache = fused_cache("int8", capacity=129)
    assert cache.get_max_length() == 129
    before = cache.update(k, v, 0)[0].clone()
    with pytest.raises(ValueError, match=r"expected at most 129 tokens, the capacity .* got 130"):
        cache.update(*new_tokens(1), 0)
    assert torch.equal(cache.layers[0].keys, before)


def assert_rounded_but_for_the_newest(layer: FusedLayer, want: Tensor, exact: int) -> None:
    """``want`` is what was put in, [2, batch, kv_heads, tokens, head_dim]."""
    found = torch.stack([layer.keys, layer.values])
    rounded = want.shape[3] - exact
    assert torch.equal(found[..., rounded:, :], want[..., rounded:, :])
    error = (found - want)[..., :rounded, :].abs().amax(-1)
    largest = want[..., :rounded, :].abs().amax(-1)
    assert (error <= largest / 253).all() and (error > 0).all()


@pytest.mark.parametrize("capacity", [None, 31, 32, 200])
def test_the_newest_tokens_stay_exact_until_the_older_half_is_rounded(capacity):
    layer = fused_cache("int8", capacity=capacity, residual_length=4).layers[0]
    stored = torch.empty(2, BATCH, KV_HEADS, 0, HEAD_DIM)

    def put(count: int) -> Tensor:
        new = torch.stack(new_tokens(count, stored.shape[1]))
        layer.update(*new)
        return torch.cat([stored, new], dim=3)

    exact = 0
    for count in (7, *[1] * 9, 3, 2, *[1] * 8):
        stored = put(count)
        exact = 2 if count > 1 else (exact if exact < 4 else 2) + 1
        assert_rounded_but_for_the_newest(layer, stored, exact)
    assert exact == 4
    layer.crop(-1)
    stored = stored[..., :-1, :]
    assert_rounded_but_for_the_newest(layer, stored, 3)
    index = torch.tensor([2, 2, 0, 3])
    layer.reorder_cache(index)
    stored = stored[:, index]
    assert_rounded_but_for_the_newest(layer, stored, 3)
    layer.batch_repeat_interleave(2)
    stored = stored.repeat_interleave(2, dim=1)
    stored = put(1)
    assert_rounded_but_for_the_newest(layer, stored, 4)
    layer.crop(-6)
    stored = stored[..., :-6, :]
    assert_rounded_but_for_the_newest(layer, stored, 0)
    layer.reset()
    stored = stored[..., :0, :]
    stored = put(1)
    assert_rounded_but_for_the_newest(layer, stored, 1)


@pytest.mark.parametrize("residual_length", [0, 4])
def test_no_tokens_change_nothing(residual_length):
    layer = fused_cache("int8", residual_length=residual_length).layers[0]
    for count in (5, 1, 1, 1):
        layer.update(*new_tokens(count))
        before = layer.keys, layer.values
        layer.update(*new_tokens(0))
        assert layer.attend(new_tokens(0)[0], None, None).shape == (BATCH, KV_HEADS, 0, HEAD_DIM)
        torch.testing.assert_close((layer.keys, layer.values), before, atol=0, rtol=0)
        k, v = layer.update(*new_tokens(0))
        torch.testing.assert_close((k.clone(), v.clone()), before, atol=0, rtol=0)


def test_a_residual_length_costs_the_bytes_of_its_tokens():
    code, float_ = (2 * BATCH * KV_HEADS * bytes_ for bytes_ in (HEAD_DIM + 4, 4 * HEAD_DIM))
    growing = fused_cache("int8", residual_length=8)
    fixed = fused_cache("int8", capacity=40, residual_length=8)
    short = fused_cache("int8", capacity=25, residual_length=8)
    for cache in (growing, fixed, short):
        cache.update(*new_tokens(21), 0)
        assert cache.bytes_in_use == 17 * code + 4 * float_
        cache.update(*new_tokens(1), 0)
        cache.update(*new_tokens(1), 0)
        assert cache.bytes_in_use == 17 * code + 6 * float_
    assert growing.nbytes == 128 * code + 8 * float_
    assert fixed.nbytes == 33 * code + 8 * float_  # 33 tokens are codes in the end
    assert short.nbytes == 21 * code + 8 * float_
    for _ in range(17):
        fixed.update(*new_tokens(1), 0)
    assert fixed.bytes_in_use == 33 * code + 7 * float_ and fixed.nbytes == 33 * code + 8 * float_


def test_hidden_tokens_are_not_stored():
    model, inputs = llama("kvfuse"), prompts(padded=True)
    cache = FusedCache(model.config)
    model.generate(**inputs, do_sample=False, max_new_tokens=4, past_key_values=cache)
    stored = int(inputs["attention_mask"].sum()) + 3 * BATCH
    assert cache.bytes_in_use == 2 * stored * 2 * KV_HEADS * (HEAD_DIM + 4)
    for read in (cache.layers[1].keys, cache.layers[1].values):
        assert torch.equal(read[:, :, :37].count_nonzero((1, 3)) > 0, inputs["attention_mask"].bool())
    cache.crop(-3 - 10)  # into the prompt of the shortest row, which is one token
    assert cache.bytes_in_use < 2 * stored * 2 * KV_HEADS * (HEAD_DIM + 4)
    assert cache.layers[0].tokens.cache_seqlens.tolist() == [27, 22, 10, 0]


@pytest.mark.parametrize("residual_length", [0, 2])
def test_a_cache_serves_inference_mode_and_after(residual_length):
    model, inputs = llama("kvfuse"), prompts(padded=False)
    cache = FusedCache(model.config, residual_length=residual_length)
    with torch.inference_mode():
        tokens = model.generate(**inputs, do_sample=False, max_new_tokens=4, past_key_values=cache)
    cache.crop(-1)
    with torch.no_grad():
        model(tokens[:, -2:], past_key_values=cache)
        for _ in range(3):
            model(tokens[:, -1:], past_key_values=cache)
    assert cache.get_seq_length() == tokens.shape[1] + 3


@pytest.mark.parametrize("residual_length", [0, 4])
def test_all_tokens_may_be_hidden(residual_length):
    layer = fused_cache("int8", residual_length=residual_length).layers[0]
    for count in (5, 1):
        k, v = new_tokens(count)
        layer.update(k, v)
        hidden = Padding(torch.zeros(BATCH, layer.length, dtype=torch.bool), count)
        assert layer.can_attend(k, hidden)
        layer.attend(k, hidden, None)
        assert layer.bytes_in_use == 0
        assert layer.keys.shape == (BATCH, KV_HEADS, layer.length, HEAD_DIM) and not layer.keys.any()


def test_tokens_are_read_before_the_cache_changes():
    cache = fused_cache()
    keys, _ = cache.update(*new_tokens(3), 0)
    with pytest.raises(RuntimeError, match="would write to cached keys or values"):
        keys.mul_(2)
    cache.update(*new_tokens(1), 0)
    with pytest.raises(RuntimeError, match="read before the cache changes again"):
        keys + 1


def test_a_hidden_token_stays_hidden():
    model, inputs = llama("kvfuse"), prompts(padded=True)
    cache = FusedCache(model.config)
    model.generate(**inputs, do_sample=False, max_new_tokens=1, past_key_values=cache)
    for mask in (None, torch.ones(4, 38, dtype=torch.int64), torch.zeros(4, 1, 1, 38)):
        again = copy.deepcopy(cache)
        refused = pytest.raises(ValueError, match="shows 58 of them, which a FusedCache has not stored")
        with torch.no_grad(), refused:
            model(torch.ones(4, 1, dtype=torch.int64), attention_mask=mask, past_key_values=again)


@pytest.mark.parametrize("kind", ["hides an old token", "bool of 4 dimensions", "added to the scores"])
def test_other_masks_are_left_to_sdpa(kind):
    inputs, tokens = prompts(padded=False), torch.full((4, 2), 9)
    seen = torch.rand(4, 39, generator=torch.Generator().manual_seed(3)) > 0.3
    seen[:, -2:] = True
    mask = seen.long()
    if kind != "hides an old token":
        mask = seen[:, None, None].expand(-1, 1, 2, -1).clone()
        mask[:, :, 0, -1] = False
    if kind == "added to the scores":
        mask = torch.where(mask, torch.rand(mask.shape), float("-inf"))
    found = []
    for attention in ("sdpa", "kvfuse"):
        model = llama(attention)
        cache = FusedCache(model.config, "model") if attention == "kvfuse" else transformers.DynamicCache()
        with torch.no_grad():
            model(**inputs, past_key_values=cache)
            found.append(model(tokens, attention_mask=mask, past_key_values=cache).logits)
    torch.testing.assert_close(*found, atol=1e-3, rtol=1e-4)


def test_only_a_causal_mask_is_taken_for_one():
    model, inputs = llama("kvfuse"), prompts(padded=True)
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    arguments = (model.config, embeds, inputs["attention_mask"], None)
    padding = padding_of(create_causal_mask(*arguments))
    assert torch.equal(padding.tokens, inputs["attention_mask"].bool())
    for overlay in ("or_mask_function", "and_mask_function"):
        mask = create_causal_mask(*arguments, **{overlay: lambda batch, head, q, kv: kv % 2 == q % 2})
        assert mask is not None and padding_of(mask) is None


def test_sliding_windows_are_left_to_sdpa():
    found = []
    for attention in ("sdpa", "kvfuse"):
        config = transformers.MistralConfig(
            hidden_size=256, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2,
            intermediate_size=128, vocab_size=300, sliding_window=16, eos_token_id=None,
        )  # fmt: skip
        config._attn_implementation = attention
        torch.manual_seed(1)
        model = transformers.MistralForCausalLM(config).eval()
        found.append(model.generate(**prompts(True), do_sample=False, max_new_tokens=20, pad_token_id=0))
    assert torch.equal(*found)
    with pytest.raises(ValueError, match="all full_attention, got sliding_attention in layer 0"):
        FusedCache(config)


def test_a_head_dim_without_a_kernel():
    model, inputs = llama("kvfuse", hidden_size=240), prompts(padded=False)
    want = llama("sdpa", hidden_size=240).generate(**inputs, do_sample=False, max_new_tokens=4)
    assert torch.equal(model.generate(**inputs, do_sample=False, max_new_tokens=4), want)
    with pytest.raises(NotImplementedError, match=r"expected a head_dim of .*64.*, got 40 .use transformers"):
        model.generate(**inputs, max_new_tokens=4, past_key_values=FusedCache(model.config))


def test_what_it_does_not_compute_is_refused():
    ids = prompts(padded=False)["input_ids"]
    model = llama("kvfuse")
    with pytest.raises(RuntimeError, match="a FusedCache records no gradients"):
        model(ids, past_key_values=FusedCache(model.config))
    with pytest.raises(NotImplementedError, match="does not compute output_attentions"):
        model(ids, output_attentions=True)
    config = transformers.Gemma2Config(
        hidden_size=256, num_attention_heads=4, num_key_value_heads=2, head_dim=64, num_hidden_layers=2,
        intermediate_size=128, vocab_size=300,
    )  # fmt: skip
    config._attn_implementation = "kvfuse"
    with pytest.raises(NotImplementedError, match="does not compute softcap"):
        transformers.Gemma2ForCausalLM(config).eval()(ids)


BAD_CALLS = {
    "dtype": (lambda: fused_cache("int4"), ValueError, "a dtype of model or int8, got 'int4'"),
    "capacity": (lambda: fused_cache(capacity=0), ValueError, "a capacity of at least 1 token, got 0"),
    "residual_length": (
        lambda: fused_cache("int8", residual_length=-1),
        ValueError,
        "a residual_length of 0, or of more tokens with dtype 'int8', got -1 with 'int8'",
    ),
    "residual_length of a float cache": (
        lambda: fused_cache("model", residual_length=3),
        ValueError,
        "a residual_length of 0, or of more tokens with dtype 'int8', got 3 with 'model'",
    ),
    "crop": (lambda: fused_cache().crop(5), ValueError, r"crop\(tokens_to_remove\) in \[0, 0\], .* got 5"),
    "batch": (
        lambda: [(cache := fused_cache()).update(*new_tokens(2), 0), cache.update(*new_tokens(2, 3), 0)],
        ValueError,
        r"expected keys \[4, 2, tokens, 64\] .* got \[3, 2, 2, 64\]",
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls(name):
    call, error, message = BAD_CALLS[name]
    with pytest.raises(error, match=message):
        call()


def test_transformers_is_imported_only_for_this():
    package = str(Path(kvfuse.__file__).parents[1])
    for code, said in (
        ("import sys, kvfuse; print('transformers' in sys.modules)", "False"),
        (
            "import sys; sys.modules['transformers'] = None; import kvfuse.hf",
            "kvfuse.hf: expected transformers, found none (pip install 'kvfuse[hf]')",
        ),
    ):
        ran = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, {package!r}); {code}"],
            capture_output=True,
            text=True,
        )
        assert said in ran.stdout + ran.stderr
