"""bench_runner perplexity of plain text, and how far a version's predictions are from those of v1."""

import math
import re

import numpy
import pytest
import torch
from conftest import SHARED
from kvfuse import prepare_data
from probe import Probe
from small_gpt2 import SIZES, WINDOW, our_sizes, random_tokens

VOCABULARY = SHARED / "gpt2-bpe"


def evaluate(bench, *options, **keys) -> dict[str, dict]:
    path = bench.configure(model_config=our_sizes(), T_values=[1], **keys)
    return {record["version"]: record for record in bench.measure("perplexity", "--config", path, *options)}


def test_divergence_from_v1(bench, built, small):
    _, checkpoint = small
    tokens = random_tokens(75, seed=3)
    tokens.astype("<u2").tofile(bench.folder / "tokens.bin")
    keys = {"weights": str(checkpoint), "dataset": "tokens.bin", "versions": ["v0", "v1", "v2", "v3"]}
    records = evaluate(bench, "--autoregressive", divergence=True, **keys)
    assert records["v1"]["divergence"] is None
    assert records["v0"]["divergence"]["mean_kl"] == pytest.approx(0, abs=1e-9)
    assert records["v0"]["divergence"]["same_top_1"] == 1.0

    probe = Probe(built("tests/gpt2_probe"), checkpoint, SIZES)
    windows = [torch.from_numpy(tokens[i : i + WINDOW])[None] for i in range(0, len(tokens), WINDOW)]
    for version in ("v2", "v3"):
        kl, same, positions = [], [], []
        for window in windows:
            want = probe.logits("v1", window)[0, :-1].double().log_softmax(-1)
            got = probe.logits(version, window)[0, :-1].double().log_softmax(-1)
            kl += (want.exp() * (want - got)).sum(-1).tolist()
            same += (want.argmax(-1) == got.argmax(-1)).tolist()
            positions += range(window.shape[1] - 1)
        found = records[version]["divergence"]
        assert found["num_tokens"] == len(kl) == len(tokens) - len(windows)
        assert found["mean_kl"] == pytest.approx(numpy.mean(kl), rel=0.05)
        assert found["same_top_1"] == pytest.approx(numpy.mean(same), abs=0.03)
        assert [(b["first_position"], b["last_position"]) for b in found["by_position"]] == [
            (0, 0),
            (1, 2),
            (3, 6),
            (7, 14),
            (15, 30),
        ]
        for bucket in found["by_position"]:
            inside = [bucket["first_position"] <= p <= bucket["last_position"] for p in positions]
            assert bucket["num_tokens"] == sum(inside)
            assert bucket["mean_kl"] == pytest.approx(numpy.mean(numpy.array(kl)[inside]), rel=0.1, abs=1e-7)
    assert records["v2"]["divergence"]["mean_kl"] < 0.01 * records["v3"]["divergence"]["mean_kl"]


def test_text_and_its_tokens_give_the_same(bench):
    if not VOCABULARY.is_dir():
        pytest.skip("no ../shared/data next to the checkout: GPT-2's own vocabulary not tested")
    text = "Ein Café kostet 3,50 €.\n\n  Two  spaces, don't\tyou see? 你好, мир!\n" * 4
    (bench.folder / "text.txt").write_text(text, encoding="utf-8")
    encoding, _ = prepare_data.load_encoding(VOCABULARY)
    tokens = encoding.encode(text)
    numpy.array(tokens, dtype="<u2").tofile(bench.folder / "tokens.bin")
    model = our_sizes(vocab_size=50257)
    common = {"model_config": model, "versions": ["v1"], "T_values": [1]}
    of_text = bench.configure("text.yaml", dataset="text.txt", vocabulary=str(VOCABULARY), **common)
    of_tokens = bench.configure("tokens.yaml", dataset="tokens.bin", **common)
    (from_text,) = bench.measure("perplexity", "--config", of_text)
    (from_tokens,) = bench.measure("perplexity", "--config", of_tokens)
    assert from_text["loss"] == from_tokens["loss"]
    assert from_tokens["word_perplexity"] is from_tokens["bits_per_byte"] is None

    windows = [tokens[i : i + WINDOW] for i in range(0, len(tokens), WINDOW)]
    scored = [encoding.decode_bytes(window[1:]) for window in windows if len(window) > 1]
    size = sum(map(len, scored))
    words = sum(len(re.findall(rb"[^ \t\n\v\f\r]+", part)) for part in scored)
    nats = from_text["loss"] * from_text["num_tokens"]
    assert (from_text["num_bytes"], from_text["num_words"]) == (size, words)
    assert from_text["word_perplexity"] == pytest.approx(math.exp(nats / words))
    assert from_text["byte_perplexity"] == pytest.approx(math.exp(nats / size))
    assert from_text["bits_per_byte"] == pytest.approx(nats / size / math.log(2))
