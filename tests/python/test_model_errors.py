"""What kvfuse.model refuses: one sentence that says what was expected and what came."""

import pytest
import torch
from kvfuse.model import Gpt2, ModelConfig, ModelFileError
from safetensors.torch import load_file, save_file
from small_gpt2 import WINDOW, random_tokens

CONFIG = ModelConfig(n_layer=3, n_head=2, n_embd=32, block_size=WINDOW, vocab_size=97)
SHALLOW = ModelConfig(n_layer=2, n_head=2, n_embd=32, block_size=WINDOW, vocab_size=97)
TOKENS = torch.from_numpy(random_tokens(8)).view(2, 4)
LONG = torch.from_numpy(random_tokens(WINDOW + 1))[None]


@pytest.fixture(scope="module")
def model():
    return Gpt2(CONFIG)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (lambda m: (TOKENS.int(),), r"expected tokens int64 \[batch, T\]"),
        (lambda m: (TOKENS[0],), r"expected tokens int64 \[batch, T\]"),
        (lambda m: (TOKENS[:, :0],), r"expected tokens int64 \[batch, T\], not empty"),
        (lambda m: (TOKENS - 97,), r"expected ids from 0 to 96 \(the model's vocab_size\), got -"),
        (lambda m: (TOKENS + 97,), r"expected ids from 0 to 96 \(the model's vocab_size\), got 1"),
        (lambda m: (LONG,), "expected at most block_size 32 tokens, got 33"),
        (lambda m: (TOKENS, m.make_cache(2, 3)), "expected at most the cache's capacity of 3 tokens, got 4"),
        (lambda m: (TOKENS, m.make_cache(1)), "expected the cache's batch 1, got 2"),
        (
            lambda m: (TOKENS, m.with_version("v3").make_cache(2)),
            "expected a cache for groups of 1 layers, got 2",
        ),
        (lambda m: (TOKENS, Gpt2(SHALLOW).make_cache(2)), "expected a cache of 3 layers, got 2"),
    ],
)
def test_forward(model, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        model(*arguments(model))


@pytest.mark.parametrize(
    ("lengths", "sentence"),
    [([4], "expected 2 lengths, one a sequence, got 1"), ([4, 5], "expected lengths from 1 to 4, got 5")],
)
def test_lengths(model, lengths, sentence):
    with pytest.raises(ValueError, match=sentence):
        model(TOKENS, lengths=lengths)


@pytest.mark.parametrize(
    ("new_tokens", "options", "sentence"),
    [
        (29, {}, r"expected prompt \+ new tokens <= block_size 32, got 4 \+ 29"),
        (-1, {}, "expected 0 to 1099511627776 new tokens, got -1"),
        (2**62, {}, "expected 0 to 1099511627776 new tokens, got"),
        (1, {"temperature": -1.0}, "expected a finite temperature >= 0, got -1"),
        (1, {"temperature": float("nan")}, "expected a finite temperature >= 0, got"),
        (1, {"top_k": -1}, "expected top_k >= 0, got -1"),
        (1, {"top_p": 0.0}, "expected 0 < top_p <= 1, got 0"),
        (1, {"seed": -1}, "seed: expected a number >= 0, got -1"),
        (30, {"overflow": "slip"}, 'expected error, slide or sink, got "slip"'),
        (30, {"overflow": "slide", "overflow_keep": 99}, r"expected to keep 1 to 32 tokens"),
        (30, {"overflow": "sink", "sink_tokens": 20}, "expected 1 <= sink tokens < 16"),
    ],
)
def test_generate(model, new_tokens, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        model.generate(TOKENS, new_tokens, **options)


def test_cache(model):
    with pytest.raises(ValueError, match="KvCache: expected batch >= 1, got 0"):
        model.make_cache(0)
    with pytest.raises(ValueError, match="expected 1 <= capacity <= block_size 32, got 33"):
        model.make_cache(1, 33)
    with pytest.raises(IndexError, match="expected 0 <= length <= 0 to crop to, got 1"):
        model.make_cache(1).crop(1)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "sentence"),
    [
        ([CONFIG, "v9"], {}, ValueError, r'unknown version "v9" \(known: v0, v1, v2'),
        (["gpt3"], {}, ValueError, r'unknown model "gpt3" \(known: gpt2, gpt2-medium'),
        (
            [ModelConfig(n_head=7)],
            {},
            ValueError,
            "expected n_embd to be a multiple of n_head",
        ),
        ([ModelConfig(n_layer=0)], {}, ValueError, "expected 1 <= n_layer <= 1024, got 0"),
        ([CONFIG], {"dtype": "int8"}, ValueError, "dtype: expected float32, bfloat16, float16, got 'int8'"),
        ([CONFIG], {"transforms": ["spin"]}, ValueError, r'unknown transform "spin" \(known: k_bias'),
        ([CONFIG], {"seed": -1}, ValueError, "seed: expected a number >= 0, got -1"),
        ([CONFIG], {"weights": "nowhere"}, FileNotFoundError, "expected a safetensors file or a folder"),
        ([CONFIG], {"weights": __file__}, ModelFileError, "test_model_errors.py: header: expected a length"),
    ],
)
def test_making_a_model(arguments, options, error, sentence):
    with pytest.raises(error, match=sentence) as raised:
        Gpt2(*arguments, **options)
    assert "\n" not in str(raised.value)


def test_sizes():
    medium = ModelConfig.preset("gpt2-medium")
    assert (medium.n_layer, medium.n_head, medium.n_embd) == (24, 16, 1024)
    assert ModelConfig() == ModelConfig.preset("gpt2")


def test_sizes_beside_weights(small, tmp_path):
    _, folder = small
    assert ModelConfig.beside(folder) == ModelConfig.beside(folder / "model.safetensors") == CONFIG
    assert ModelConfig.beside(tmp_path) is None
    for content in ("{}", "[]", "{", '{"n_layer": 3}'):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ModelFileError, match=r"config.json: expected an object with n_layer, n_head"):
            ModelConfig.beside(tmp_path)


def test_weights_of_another_model(small):
    _, folder = small
    deeper = ModelConfig(n_layer=4, n_head=2, n_embd=32, block_size=WINDOW, vocab_size=97)
    with pytest.raises(ModelFileError, match=r"expected GPT-2 with n_layer 4, .*; got 13 differences"):
        Gpt2(deeper, weights=folder)


def test_odd_weights_are_a_warning_or_an_error(small, tmp_path):
    _, folder = small
    weights = load_file(folder / "model.safetensors")
    weights["transformer.ln_f.bias"][0] = float("nan")
    file = tmp_path / "odd.safetensors"
    save_file(weights, file)
    model = Gpt2(CONFIG, weights=file)
    (warning,) = model.warnings
    assert "1 of 32 values are NaN or infinite" in warning
    with pytest.raises(ValueError, match="expected finite logits, got NaN or infinity"):
        model.generate(TOKENS, 1)
    with pytest.raises(ModelFileError, match="1 of 32 values are NaN or infinite"):
        Gpt2(CONFIG, weights=file, strict=True)
