"""kvfuse.perplexity beside bench_runner perplexity, on the same weights and tokens."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from bpe_probes import learned_vocabulary
from conftest import REPOSITORY, SHARED
from kvfuse import perplexity, versions
from kvfuse.model import Gpt2, ModelConfig
from kvfuse.perplexity import __main__ as command
from safetensors.torch import load_file, save_file
from small_gpt2 import WINDOW, our_sizes, random_tokens

# What differs between any two runs, and what only one of the programs has.
OF_THE_RUN = {"run_id", "time", "elapsed_s", "python_version", "prompt_length", "context"}


@pytest.fixture
def evaluate(small, tmp_path):
    """Runs the command on random tokens; returns its exit code and the records."""
    _, folder = small

    def evaluate(*words, count=150, weights=folder):
        random_tokens(count).astype("<u2").tofile(tmp_path / "tokens.bin")
        os.chdir(tmp_path)
        options = ["--weights", weights, "--dataset", "tokens.bin", "--log-file", "python.jsonl"]
        code = command.main([str(word) for word in [*options, "--device", "cpu", *words]])
        return code, records_of(tmp_path / "python.jsonl")

    here = os.getcwd()
    yield evaluate
    os.chdir(here)


def records_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def runner_records(bench, folder, *words, **keys):
    settings = {
        "model_config": our_sizes(), "weights": str(folder), "dataset": "tokens.bin", "T_values": [1],
        "num_threads": torch.get_num_threads(),
    }  # fmt: skip
    config = bench.configure(**(settings | keys))
    return bench.measure("perplexity", "--config", config, *words)


def check_same(ours, theirs):
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert list(mine) == list(other), "the same fields in the same order"
        assert list(mine["context"]) == list(other["context"])
        assert mine["perplexity"] == pytest.approx(other["perplexity"], rel=1e-6)
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-6)
        for key in mine.keys() - OF_THE_RUN:
            if isinstance(mine[key], float):
                assert mine[key] == pytest.approx(other[key], rel=1e-4, abs=1e-4), key
            elif key not in ("divergence", "layer_fits"):
                assert mine[key] == other[key], key


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        ([], {}),
        (["--autoregressive"], {"autoregressive": True}),
        (["--mode", "autoregressive", "--batch-size", 3], {"autoregressive": True, "batch_size": 3}),
        (["--max-tokens", 70, "--document-separator", 5], {"max_tokens": 70, "document_separator": 5}),
        (
            ["--autoregressive", "--overflow", "slide", "--overflow-keep", 8, "--divergence"],
            {"autoregressive": True, "overflow": "slide", "overflow_keep": 8, "divergence": True},
        ),
        (
            ["--transforms", "k_bias", "rotation", "--seed", 7],
            {"transforms": ["k_bias", "rotation"], "seed": 7},
        ),
        (["--dtype", "bfloat16"], {"dtype": "bfloat16"}),
    ],
    ids=str,
)
def test_the_records_of_the_runner(bench, small, evaluate, words, keys):
    names = ["v1", "v0", "v2", "v3a"]
    code, ours = evaluate("--version", *names, *words)
    assert code == 0
    check_same(ours, runner_records(bench, small[1], **{"versions": names} | keys))


def test_every_version(bench, small, evaluate, capsys):
    names = list(versions.VERSIONS)
    words = ["--autoregressive", "--version", *names, "--calibration-tokens", 200]
    code, ours = evaluate(*words)
    assert code == 0 and "warning: the layers of versions that fit them" in capsys.readouterr().err
    keys = {"autoregressive": True, "versions": names, "calibration_tokens": 200}
    check_same(ours, runner_records(bench, small[1], **keys))


def test_calibration_from_a_file(bench, small, evaluate):
    words = ["--version", "v3f", "--calibration", "tokens.bin", "--calibration-tokens", 100]
    code, ours = evaluate(*words)
    assert code == 0
    keys = {"versions": ["v3f"], "calibration": "tokens.bin", "calibration_tokens": 100}
    check_same(ours, runner_records(bench, small[1], **keys))
    assert evaluate(*words[:-1], 151)[0] == 3


def test_compare_takes_a_file_of_each(bench, small, evaluate):
    code, _ = evaluate("--version", "v1", "v2", "--autoregressive")
    assert code == 0
    runner_records(bench, small[1], versions=["v1", "v2"], autoregressive=True)
    result = bench.run("compare", "python.jsonl", bench.log.name)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(" same ") == 2, result.stdout


def test_text(bench, small, evaluate, tmp_path):
    """Plain text with a vocabulary, also damaged text: tokens, words and bytes as the runner counts them."""
    _, folder = small
    vocabulary = learned_vocabulary(tmp_path / "vocabulary")
    config = ModelConfig(n_layer=2, n_head=2, n_embd=32, block_size=64, vocab_size=500)
    (tmp_path / "text.txt").write_bytes("Привет, été!\r\n two  words\tthe ".encode() * 20 + b"\xff\xe2\x82")
    encoded = perplexity.read_dataset(tmp_path / "text.txt", 500, vocabulary)
    record = perplexity.Evaluation(Gpt2(config), encoded, weights=None).measure("v1")
    keys = {
        "model_config": {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 64, "vocab_size": 500},
        "weights": None, "dataset": str(tmp_path / "text.txt"), "vocabulary": str(vocabulary),
        "versions": ["v1"],
    }  # fmt: skip
    check_same([record], runner_records(bench, folder, **keys))
    assert record["num_words"] > 50 and record["num_bytes"] > 600


def test_degradation_counts_from_v1(evaluate):
    _, (v1, v2) = evaluate("--version", "v1", "v2", "--autoregressive")
    assert v1["degradation"] is None
    assert v2["degradation"] == pytest.approx(100 * (v2["perplexity"] / v1["perplexity"] - 1))
    _, (*_, again) = evaluate("--version", "v2", "--autoregressive")
    assert again["degradation"] == v2["degradation"], "v1's record of an earlier call counts too"


def test_resume_and_clear(evaluate):
    evaluate("--version", "v1")
    assert [r["version"] for r in evaluate("--version", "v1", "v2", "--resume")[1]] == ["v1", "v2"]
    assert [r["version"] for r in evaluate("--version", "v2", "--clear-log")[1]] == ["v2"]


def test_table(evaluate, tmp_path):
    names = ["v0", "v1", "v2", "v3"]
    _, records = evaluate("--version", *names, "--autoregressive", "--table", "perplexity_table.md")
    rows = (tmp_path / "perplexity_table.md").read_text().splitlines()
    assert rows[0] == "| Version | Perplexity | Loss | Degradation |" and len(rows) == 2 + len(names)
    assert rows[2].endswith(" baseline |") and rows[3].endswith(" +0.00 % |")
    for name, row, record in zip(names, rows[2:], records, strict=True):
        figures = f"| {name} | {record['perplexity']:.2f} | {record['loss']:.3f} | "
        assert row.startswith(figures) and math.exp(record["loss"]) == record["perplexity"]


def record(version, value, status="ok"):
    return {"version": version, "status": status, "perplexity": value, "loss": math.log(value)}


@pytest.mark.parametrize(
    ("records", "last_column"),
    [
        ([record("v1", 27.55), record("v2", 27.78)], ["baseline", "+0.83 %"]),
        ([record("v1", 20.0), record("v2", 19.9), record("v0", 20.0)], ["+0.00 %", "-0.50 %", "baseline"]),
        ([record("v1", 27.55), record("v3", 864.32)], ["baseline", "+3037 %"]),
        ([record("v2", 20.0), record("v1", 9.0, "failed")], ["-"]),
    ],
)
def test_degradation_in_the_table(records, last_column):
    rows = perplexity.table(records).splitlines()[2:]
    assert [row.split("|")[4].strip() for row in rows] == last_column


@pytest.fixture
def evaluation(small):
    _, folder = small
    model = Gpt2(ModelConfig.beside(folder), weights=folder)
    data = perplexity.Dataset("tokens.bin", "0" * 64, random_tokens(100).astype("<u2"))
    return perplexity.Evaluation(model, data, autoregressive=True, batch_size=2)


def test_progress(evaluation):
    told = []
    assert evaluation.measure("v2", on_scored=told.append)["status"] == "ok"
    assert told == sorted(told) and told[-1] == evaluation.num_tokens == 96


@pytest.mark.parametrize(
    ("error", "status"),
    [(KeyboardInterrupt, "interrupted"), (MemoryError, "oom"), (torch.OutOfMemoryError, "oom")],
)
def test_what_ends_a_measurement_is_recorded(evaluation, error, status):
    def fail(tokens):
        raise error

    ended = evaluation.measure("v1", on_scored=fail)
    assert ended["status"] == status and ended["reason"] and "perplexity" not in ended
    assert evaluation.measure("v1")["status"] == "ok"


def test_damaged_weights_fail_a_point(evaluate, small, tmp_path):
    _, folder = small
    weights = load_file(folder / "model.safetensors")
    weights["transformer.ln_f.bias"][0] = float("nan")
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    code, (failed,) = evaluate(weights=tmp_path)
    assert code == 1 and failed["status"] == "failed" and "the loss is not finite" in failed["reason"]
    assert evaluate("--strict-weights", weights=tmp_path)[0] == 3


@pytest.mark.parametrize(
    ("words", "count", "code", "sentence"),
    [
        (["--dataset", "nowhere.bin"], 9, 3, "nowhere.bin: can't be read: No such file"),
        ([], 1, 3, "tokens.bin: expected at least 2 tokens, got 1 in all"),
        ([], 0, 3, "tokens.bin: expected a token file of 1 to 4294967296 bytes, got 0"),
        (["--preset", "gpt2"], 9, 3, "expected GPT-2 with n_layer 12"),
        (["--weights", "nowhere"], 9, 3, "nowhere: expected a safetensors file"),
        (["--max-tokens", 0], 9, 2, "expected max_tokens >= 1, got 0"),
        (["--batch-size", 0], 9, 2, "expected batch_size >= 1, got 0"),
        (["--divergence"], 9, 2, "expected autoregressive beside divergence or overflow"),
        (["--overflow", "slide"], 9, 2, "expected autoregressive beside divergence or overflow"),
        (["--log-file", "/dev/null"], 9, 4, "expected a regular file for the results"),
    ],
)
def test_bad_options_are_one_sentence(evaluate, capsys, words, count, code, sentence):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{__name__}.records_of", lambda path: [])
        assert evaluate(*words, count=count)[0] == code
    error = capsys.readouterr().err
    assert error.startswith("kvfuse.perplexity: error: ") and sentence in error and error.count("\n") == 1


def test_tokens_of_another_vocabulary(evaluate, tmp_path, capsys):
    torch.tensor([1, 2, 97], dtype=torch.int16).numpy().tofile(tmp_path / "other.bin")
    (tmp_path / "half.bin").write_bytes(b"abc")
    for name, sentence in [
        ("other.bin", "token 2 of 3: expected an id below 97 (the model's vocab_size), got 97"),
        ("half.bin", "expected little-endian uint16 tokens, an even number of bytes, got 3"),
    ]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(f"{__name__}.records_of", lambda path: [])
            assert evaluate("--dataset", name)[0] == 3
        assert sentence in capsys.readouterr().err


def test_ctrl_c(small, tmp_path):
    random_tokens(200_000).astype("<u2").tofile(tmp_path / "tokens.bin")
    words = ["--weights", small[1], "--dataset", "tokens.bin", "--autoregressive", "--version", "v2", "v1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "kvfuse.perplexity", *map(str, words)],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY / "python"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    while not (tmp_path / "results.jsonl").exists() and process.poll() is None:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors
    (interrupted,) = records_of(tmp_path / "results.jsonl")
    assert (interrupted["status"], interrupted["version"]) == ("interrupted", "v2")


def test_wikitext_is_made_once(tmp_path, monkeypatch):
    if not (SHARED / "wikitext-2-raw").is_dir():
        pytest.skip("no ../shared/data next to the checkout: WikiText-2 not tested")
    raw = SHARED / "wikitext-2-raw" / "wiki.test.raw"
    (tmp_path / "kvfuse").mkdir()
    (tmp_path / "kvfuse" / raw.name).write_bytes(raw.read_bytes())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = perplexity.wikitext_tokens(SHARED / "gpt2-bpe")
    assert perplexity.read_dataset(path, 50257).tokens.size == 283287
    (tmp_path / "kvfuse" / raw.name).unlink()
    assert perplexity.wikitext_tokens() == path, "neither text nor vocabulary is read again"


def test_wikitext_cannot_be_downloaded(small, tmp_path, capsys, monkeypatch):
    def urlopen(url, timeout):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    words = ["--weights", str(small[1]), "--cache", str(tmp_path / "cache")]
    assert command.main(words) == 3
    assert "can't be downloaded: no network (give a file that is already here: --dataset FILE)" in (
        capsys.readouterr().err
    )


def test_windows_end_at_block_size(evaluation):
    measured = evaluation.measure("v1")
    assert (measured["window"], measured["num_windows"]) == (WINDOW, 4)
