"""bench_runner perplexity against transformers on the same weights and tokens, and against sums by hand."""

import hashlib
import math

import numpy
import pytest
import torch
import transformers
from conftest import SHARED
from kvfuse import prepare_data
from runner import problem
from safetensors.torch import save_file
from small_gpt2 import SIZES, random_tokens


def model_config(config) -> dict:
    """The sizes under our names."""
    return {name.replace("n_positions", "block_size"): getattr(config, name) for name in SIZES}


def reference_loss(model, tokens, window) -> tuple[float, int]:
    """Mean loss of every token but the first of each window, and their number."""
    total, scored = 0.0, 0
    for start in range(0, len(tokens), window):
        ids = torch.tensor(tokens[start : start + window].astype(numpy.int64))[None]
        if ids.shape[1] < 2:
            continue
        with torch.inference_mode():
            logits = model(ids).logits[0, :-1].double()
        total += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        scored += ids.shape[1] - 1
    return total / scored, scored


def evaluate(bench, folder, config, tokens, *options, **changes) -> list[dict]:
    tokens.astype("<u2").tofile(bench.folder / "tokens.bin")
    keys = {
        "model_config": model_config(config),
        "weights": str(folder),
        "dataset": "tokens.bin",
        "T_values": [1],
    }
    path = bench.configure(**(keys | changes))
    return bench.measure("perplexity", "--config", path, *options)


@pytest.fixture(scope="module")
def wikitext():
    """The first tokens of WikiText-2."""
    text = SHARED / "wikitext-2-raw" / "wiki.test.raw"
    if not text.is_file():
        pytest.skip("no ../shared/data next to the checkout: perplexity of WikiText-2 not compared")
    encoding, _ = prepare_data.load_encoding(SHARED / "gpt2-bpe")
    beginning = prepare_data.decode_text(text.read_bytes()[:20_000], str(text))
    return prepare_data.tokenize(beginning, "whole", encoding)


def test_full_size_on_wikitext_equals_transformers(bench, saved_gpt2, wikitext):
    model, folder = saved_gpt2
    limit = 1400  # a full window and a partial one
    (record,) = evaluate(bench, folder, model.config, wikitext, "--max-tokens", limit, versions=["v1"])
    loss, scored = reference_loss(model, wikitext[:limit], 1024)
    assert (record["num_tokens"], record["num_windows"]) == (scored, 2) == (limit - 2, 2)
    assert f"{record['perplexity']:.4g}" == f"{math.exp(loss):.4g}"
    assert record["loss"] == pytest.approx(loss, abs=1e-5)


def test_full_size_autoregressive(bench, saved_gpt2, wikitext):
    model, folder = saved_gpt2
    options = ["--max-tokens", 128]
    changes = {"versions": ["v1", "v2"]}
    v1, v2 = evaluate(bench, folder, model.config, wikitext, *options, "--autoregressive", **changes)
    forced, same = evaluate(bench, folder, model.config, wikitext, *options, **changes)
    assert forced["loss"] == same["loss"], "teacher forcing uses no cache: every version gives the same"
    assert v1["perplexity"] == pytest.approx(forced["perplexity"], rel=1e-4)
    assert v2["perplexity"] == pytest.approx(v1["perplexity"], rel=5e-4)
    assert v2["loss"] != v1["loss"], "the INT8 cache was not used"
    assert v2["degradation"] == pytest.approx(100 * (v2["perplexity"] / v1["perplexity"] - 1))


@pytest.mark.parametrize("count", [2, 31, 32, 33, 34, 100, 320, 351])
@pytest.mark.parametrize("mode", [[], ["--autoregressive"]], ids=["teacher_forcing", "autoregressive"])
def test_windows(bench, small, count, mode):
    """Nothing crosses a window's edge; a last window of one token has nothing to predict."""
    model, folder = small
    tokens = random_tokens(count)
    loss, scored = reference_loss(model, tokens, 32)
    records = evaluate(bench, folder, model.config, tokens, *mode)
    assert [record["version"] for record in records] == ["v0", "v1", "v2"]
    for record in records:
        near = 0.02 if mode and record["version"] == "v2" else 1e-5
        assert record["loss"] == pytest.approx(loss, abs=near)
        assert record["perplexity"] == pytest.approx(math.exp(record["loss"]))
        assert record["num_tokens"] == scored
        assert record["num_windows"] == count // 32 + (count % 32 >= 2)
        assert record["window"] == record["stride"] == min(count, 32)


@pytest.mark.parametrize("mode", [[], ["--autoregressive"]], ids=["teacher_forcing", "autoregressive"])
def test_batch_size_does_not_matter(bench, small, mode):
    model, folder = small
    tokens = random_tokens(7 * 32 + 5)
    losses = {}
    for batch_size in (1, 2, 7, 64):
        for record in evaluate(bench, folder, model.config, tokens, *mode, batch_size=batch_size):
            losses.setdefault(record["version"], []).append(record["loss"])
    for version in ("v0", "v1", "v2"):
        assert losses[version] == pytest.approx([losses[version][0]] * 4, rel=1e-5)


def test_cache_beyond_the_memory_budget(bench, small):
    """v1's cache alone is more than the budget leaves beside the weights; v2's is 1 / 3.2 of it."""
    model, folder = small
    random_tokens(8 * 32).astype("<u2").tofile(bench.folder / "tokens.bin")
    weights = sum(parameter.numel() * 4 for parameter in model.parameters())
    layers_and_heads = SIZES["n_layer"] * SIZES["n_head"]
    v1_cache = 2 * layers_and_heads * 8 * 31 * (SIZES["n_embd"] // SIZES["n_head"]) * 4
    config = bench.configure(
        model_config=model_config(model.config), weights=str(folder), dataset="tokens.bin", T_values=[1],
        batch_size=8, memory_budget=weights + v1_cache, autoregressive=True, versions=["v1", "v2"],
    )  # fmt: skip
    result = bench.run("perplexity", "--config", config)
    assert result.returncode == 1, result.stderr
    assert [record["status"] for record in bench.records()] == ["oom", "ok"]


def test_no_generation_length_is_needed(bench, small):
    """The lengths of the other benchmarks do not concern this one."""
    model, folder = small
    (record,) = evaluate(bench, folder, model.config, random_tokens(40), versions=["v1"], T_values=None)
    assert record["status"] == "ok"


def test_record_fields(bench, small):
    model, folder = small
    tokens = random_tokens(100)
    (forced,) = evaluate(bench, folder, model.config, tokens, versions=["v2"])
    (stepped,) = evaluate(bench, folder, model.config, tokens, "--autoregressive", versions=["v2"])
    assert (forced["mode"], stepped["mode"]) == ("teacher_forcing", "autoregressive")
    assert forced["dataset"] == "tokens.bin"
    assert forced["dataset_sha256"] == hashlib.sha256(tokens.astype("<u2").tobytes()).hexdigest()
    assert forced["degradation"] is None, "without the reference version there is nothing to compare with"
    assert forced["benchmark_name"] == "perplexity" and forced["status"] == "ok"
    assert forced["weights"] == str(folder) and "T" not in forced
    assert forced["elapsed_s"] > 0
    assert {forced["case"]["mode"], stepped["case"]["mode"]} == {"teacher_forcing", "autoregressive"}


def test_three_tokens_by_hand(bench):
    """All layers add nothing, so a token's logits are its normalised embedding times the embeddings."""
    n_embd, ids = 16, [0, 1, 3]
    model = transformers.GPT2Config(n_layer=1, n_head=1, n_embd=n_embd, vocab_size=4, n_positions=8)
    embedding = torch.zeros(4, n_embd)
    for token in range(4):
        embedding[token, 2 * token], embedding[token, 2 * token + 1] = 1.0, -1.0
    embedding[3] = 0.5 * embedding[1]  # the likeliest successor of 1 after 1 itself
    norm = {"weight": torch.ones(n_embd), "bias": torch.zeros(n_embd)}
    weights = {"wte.weight": embedding, "wpe.weight": torch.zeros(8, n_embd)}
    for name, out, width in [
        ("attn.c_attn", 3, 1), ("attn.c_proj", 1, 1), ("mlp.c_fc", 4, 1), ("mlp.c_proj", 1, 4),
    ]:  # fmt: skip
        weights[f"h.0.{name}.weight"] = torch.zeros(width * n_embd, out * n_embd)
        weights[f"h.0.{name}.bias"] = torch.zeros(out * n_embd)
    for name in ("h.0.ln_1", "h.0.ln_2", "ln_f"):
        weights |= {f"{name}.{part}": value.clone() for part, value in norm.items()}
    save_file(weights, bench.folder / "toy.safetensors")

    # Two of sixteen components are +-1 and their variance is 1/8: normalised they are sqrt(8).
    dot = 2 * math.sqrt(8 / (1 + 8e-5))
    after_0 = math.log(math.exp(dot) + 3)  # logits: dot, 0, 0, 0; the next is 1
    after_1 = math.log(math.exp(dot) + math.exp(dot / 2) + 2) - dot / 2  # 0, dot, 0, dot / 2; next is 3
    for mode in ([], ["--autoregressive"]):
        for record in evaluate(bench, "toy.safetensors", model, numpy.array(ids), *mode):
            assert record["num_tokens"] == 2
            assert record["loss"] == pytest.approx((after_0 + after_1) / 2, rel=1e-6)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "tokens.bin: expected a token file of 1 to 4294967296 bytes, got 0"),
        (b"\0\0\0", "got 3 bytes"),
        (b"\0\0", "tokens.bin: expected at least 2 tokens, got 1"),
        (b"\x60\0\x61\0", "token 1 of 2: expected an id below 97 (the model's vocab_size), got 97"),
        (None, 'expected a token file, got "No such file or directory"'),
    ],
)
def test_bad_token_file(bench, small, content, sentence):
    model, folder = small
    if content is not None:
        (bench.folder / "tokens.bin").write_bytes(content)
    config = bench.configure(
        model_config=model_config(model.config), weights=str(folder), dataset="tokens.bin", T_values=[1]
    )
    assert sentence in problem(bench.run("perplexity", "--config", config), 3)
    assert not bench.log.exists() or bench.records() == []
