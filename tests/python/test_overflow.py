"""bench_runner beyond block_size and on documents of different lengths, against transformers on the same
weights, one sequence at a time."""

import itertools
import math

import numpy
import pytest
import torch
import transformers
from runner import problem
from small_gpt2 import WINDOW, our_sizes, random_tokens

VERSIONS = ["v0", "v1", "v2"]
SEPARATOR = 90


def tokens_of(count, seed=0):
    return random_tokens(count, seed, below=SEPARATOR)


def configuration(bench, folder, tokens, **changes):
    tokens.astype("<u2").tofile(bench.folder / "tokens.bin")
    keys = {"model_config": our_sizes(), "weights": str(folder), "dataset": "tokens.bin", "T_values": [1]}
    return bench.configure(**(keys | {"versions": VERSIONS} | changes))


def evaluate(bench, folder, tokens, **changes):
    return bench.measure("perplexity", "--config", configuration(bench, folder, tokens, **changes))


def loss_behind(logits, target):
    return torch.nn.functional.cross_entropy(logits.double(), torch.tensor(int(target))).item()


@torch.inference_mode()
def slide_loss(model, stream, keep):
    """Every prediction from a pass over its window alone."""
    total, seen = 0.0, []
    for token, target in itertools.pairwise(stream):
        seen.append(int(token))
        if len(seen) > WINDOW:
            seen = seen[-keep:]
        total += loss_behind(model(torch.tensor([seen])).logits[0, -1], target)
    return total


@torch.inference_mode()
def sink_loss(model, stream, keep, sink):
    """Token by token through transformers' own cache, whose rows are taken out by hand."""
    total, cache, held = 0.0, transformers.DynamicCache(config=model.config), 0
    for token, target in itertools.pairwise(stream):
        if held == WINDOW:
            for layer in cache.layers:
                newest = WINDOW - (keep - 1 - sink)
                layer.keys = torch.cat([layer.keys[:, :, :sink], layer.keys[:, :, newest:]], 2)
                layer.values = torch.cat([layer.values[:, :, :sink], layer.values[:, :, newest:]], 2)
            held = keep - 1
        output = model(
            torch.tensor([[int(token)]]), past_key_values=cache, position_ids=torch.tensor([[held]])
        )
        held += 1
        total += loss_behind(output.logits[0, -1], target)
    return total


def check_losses(records, total, scored):
    assert len(records) >= 2
    for record in records:
        near = 0.02 if record["version"] == "v2" else 1e-5
        assert record["loss"] == pytest.approx(total / scored, abs=near)
        assert record["num_tokens"] == scored


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("keep", [1, 16, 32])
def test_slide_predicts_as_its_window_alone(bench, small, keep, batch_size):
    model, folder = small
    tokens = tokens_of(151)
    records = evaluate(
        bench,
        folder,
        tokens,
        overflow="slide",
        overflow_keep=keep,
        autoregressive=True,
        batch_size=batch_size,
    )
    part = len(tokens) // batch_size  # the text as so many streams side by side; one token is left over
    streams = [tokens[i * part : (i + 1) * part] for i in range(batch_size)]
    check_losses(records, sum(slide_loss(model, s, keep) for s in streams), batch_size * (part - 1))
    for record in records:
        assert record["overflow"] == {"kind": "slide", "keep": keep} == record["case"]["overflow"]
        assert (record["window"], record["stride"]) == (WINDOW, WINDOW + 1 - keep)
        assert record["num_windows"] == batch_size


@pytest.mark.parametrize(("keep", "sink"), [(16, 4), (32, 1), (2, 1)])
def test_sink_drops_the_rows_between(bench, small, keep, sink):
    model, folder = small
    tokens = tokens_of(120)
    changes = {"overflow_keep": keep, "sink_tokens": sink, "autoregressive": True, "versions": ["v1", "v2"]}
    records = evaluate(bench, folder, tokens, overflow="sink", **changes)
    check_losses(records, sink_loss(model, tokens, keep, sink), len(tokens) - 1)
    assert records[0]["overflow"] == {"kind": "sink", "keep": keep, "sink_tokens": sink}


def test_nothing_overflows_within_the_window(bench, small):
    model, folder = small
    tokens = tokens_of(WINDOW)
    losses = [
        evaluate(bench, folder, tokens, overflow=kind, autoregressive=True, versions=["v1"])[0]["loss"]
        for kind in ("error", "slide", "sink")
    ]
    assert losses[0] == losses[1] == losses[2] == pytest.approx(slide_loss(model, tokens, 1) / 31, abs=1e-5)


@pytest.mark.parametrize("autoregressive", [False, True])
def test_documents_of_different_lengths(bench, small, autoregressive):
    """The same whatever is scored side by side: each document alone, cut at block_size."""
    model, folder = small
    lengths = [5, 31, 1, 32, 12, 77, 2, 33]  # the first without a separator
    parts = [tokens_of(length, seed) for seed, length in enumerate(lengths)]
    for part in parts[1:]:
        part[0] = SEPARATOR
    total, scored = 0.0, 0
    for part in parts:
        for start in range(0, len(part), WINDOW):
            piece = part[start : start + WINDOW]
            total += slide_loss(model, piece, 1)
            scored += len(piece) - 1
    for batch_size in (1, 3, 64):
        records = evaluate(
            bench, folder, numpy.concatenate(parts), document_separator=SEPARATOR, batch_size=batch_size,
            autoregressive=autoregressive,
        )  # fmt: skip
        check_losses(records, total, scored)
        for record in records:
            assert record["num_windows"] == 5 - 1 + 1 + 3 + 1  # 5, 31, 32, 12, 77 = 32 + 32 + 13, 2, 32 of 33
            assert record["document_separator"] == record["case"]["document_separator"] == SEPARATOR


def test_documents_slide_too(bench, small):
    model, folder = small
    parts = [tokens_of(length, seed) for seed, length in enumerate([70, 9, 45])]
    for part in parts[1:]:
        part[0] = SEPARATOR
    records = evaluate(
        bench, folder, numpy.concatenate(parts), document_separator=SEPARATOR, batch_size=2, overflow="slide",
        overflow_keep=8, autoregressive=True,
    )  # fmt: skip
    check_losses(records, sum(slide_loss(model, part, 8) for part in parts), 69 + 8 + 44)


def test_generation_beyond_block_size(bench, small):
    _, folder = small
    keys = {"T_values": [20, 100], "prompt_length": 8, "overflow": "slide"}
    records = bench.measure("latency", "vram", "--config", configuration(bench, folder, tokens_of(9), **keys))
    assert [record["status"] for record in records] == ["ok"] * 12
    for record in records:
        beyond = record["T"] == 100
        assert record["overflow"] == ({"kind": "slide", "keep": 16} if beyond else {"kind": "error"})
        assert ("overflow" in record["case"]) == beyond
    cache = {r["T"]: r["kv_cache_bytes"] for r in records if r["version"] == "v1" and "kv_cache_bytes" in r}
    assert cache[100] == cache[20] * WINDOW // (8 + 20 - 1), "the cache ends at the window"


@pytest.mark.parametrize(
    ("changes", "options", "sentence"),
    [
        ({"T_values": [40]}, ["latency"], "expected prompt_length + T <= block_size (32 of custom)"),
        ({"T_values": [40], "overflow": "slip"}, ["latency"], "overflow: expected one of error, slide, sink"),
        ({"overflow": "sink"}, ["latency"], "expected error or slide beside the version v0"),
        ({"overflow": "slide"}, ["perplexity"], "perplexity: expected autoregressive: true beside overflow"),
        ({}, ["latency", "--overflow", "slip"], "--overflow: expected one of error, slide, sink"),
        ({"document_separator": 97}, ["perplexity"], "expected a token below vocab_size (97 of custom)"),
    ],
)
def test_bad_choices(bench, small, changes, options, sentence):
    _, folder = small
    keys = {"prompt_length": 8} | changes
    config = configuration(bench, folder, tokens_of(9), **keys)
    assert sentence in problem(bench.run(*options, "--config", config), 2)
    assert not bench.log.exists()


def test_the_flag_wins_over_the_file(bench, small):
    _, folder = small
    config = configuration(bench, folder, tokens_of(9), T_values=[40], prompt_length=8, versions=["v1"])
    (record,) = bench.measure("latency", "--config", config, "--overflow", "slide")
    assert record["case"]["overflow"]["kind"] == "slide" and math.isfinite(record["time_total_ms_median"])
