"""`make peers` with a harness in the real one's place that says what it is told."""

import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY

SCRIPTS = REPOSITORY / "scripts"
sys.path.insert(0, str(SCRIPTS))

from bench_peers import main, records, tables  # noqa: E402
from bench_peers.harness import Side  # noqa: E402

# Answers the n-th call for a side with the n-th of its entries. For a number in the place of one it waits so
# many seconds for a child of its own, as the real one does; for a text it fails.
HARNESS = """
import argparse, json, pathlib, subprocess, sys, time
parser = argparse.ArgumentParser()
for name in ("--peers", "--extra", "--models", "--reps", "--attn", "--timeout", "--out", "--totals"):
    parser.add_argument(name, default="")
words = parser.parse_args()
here = pathlib.Path(__file__).parent
side = words.extra.partition("=")[0] or words.peers
with (here / "calls").open("a") as file:
    print(side, words.totals, file=file)
if side == "none":
    sys.exit((here / "setup").read_text() if (here / "setup").exists() else 0)
number = (here / "calls").read_text().split("\\n").count(f"{side} {words.totals}") - 1
entry = json.loads((here / "plan.json").read_text())[side][number]
if isinstance(entry, int):
    child = subprocess.Popen(["sleep", str(entry)])
    (here / "child").write_text(str(child.pid))
    child.wait()
if isinstance(entry, str):
    sys.exit(entry)
run = {"prompt": 32, "prefill": 512, "requirements": ["llama==1"], "peers": [entry | {"peer": side}]}
pathlib.Path(words.out).write_text(json.dumps(run))
"""
SIDES = [Side("slow", ours=False), Side("ct2-float32", ours=False), Side("v1", ours=True)]


def entry(seconds: float, *, tokens=(1, 2, 3), prefill: float = 0.5, **changes) -> dict:
    """Of one run to 64 tokens, 32 of them new."""
    row = {"total": 64, "total_s": [seconds], "tokens": [*tokens], "weight_b": 4, "kv_b": 2, "rss_mb": 100.5}
    return {"prefill_s": [prefill], "read_gbs": 20.0, "rows": [row | changes]}


@pytest.fixture
def harness(tmp_path):
    """Writes the harness; `plan` is what it answers for each side. Returns its folder."""

    def make(**plan):
        folder = tmp_path / "peers"
        folder.mkdir()
        (folder / "run.py").write_text(HARNESS)
        (folder / "plan.json").write_text(
            json.dumps({name.replace("_", "-"): of for name, of in plan.items()})
        )
        return folder

    return make


@pytest.fixture
def words(tmp_path):
    """The command line for peers slow and ct2-float32 beside v1."""

    def make(folder, *more):
        return [
            *("--harness", str(folder), "--peers", "slow", "ct2-float32", "--version", "v1"),
            *("--totals", "64", "--rounds", "3", "--threads", str(torch.get_num_threads())),
            *("--log-file", str(tmp_path / "log.jsonl"), *more),
        ]

    return make


def written(tmp_path) -> dict[tuple[str, str], dict]:
    lines = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    return {(line["benchmark_name"], line["side"]): line for line in lines}


def test_records_and_their_ratios(harness, words, tmp_path, capsys):
    slow, ours = [1.0, 1.2, 1.1], [0.5, 0.4, 0.48]
    folder = harness(
        slow=[entry(each, tokens=(1, 9, 3)) for each in slow],
        ct2_float32=[entry(0.8, prefill=0.25)] * 3,
        v1=[entry(each, prefill=each) | {"read_gbs": 30} for each in ours],
    )
    assert main.main(words(folder)) == 0
    calls = (folder / "calls").read_text().split()[::2]
    assert calls == [
        "none",
        "slow",
        "v1",
        "ct2-float32",
        "v1",
        "ct2-float32",
        "slow",
        "ct2-float32",
        "slow",
        "v1",
    ]
    found = written(tmp_path)
    assert len(found) == 6 and {line["status"] for line in found.values()} == {"ok"}
    assert len({line["run_id"] for line in found.values()}) == 1
    v1 = found["peers_generate", "v1"]
    assert (v1["schema_version"], v1["rounds"], v1["version"], v1["T"], v1["prompt_length"]) == (
        1,
        3,
        "v1",
        32,
        32,
    )
    assert v1["time_total_s_samples"] == ours
    # Of three samples the bootstrapped median is the least with probability 7/27: the interval is the range.
    assert v1["speedup"]["slow"] == pytest.approx(
        {"value": statistics.median(slow) / statistics.median(ours), "low": 1.0 / 0.5, "high": 1.2 / 0.4}
    )
    assert v1["speedup"]["ct2-float32"] == pytest.approx({"value": 0.8 / 0.48, "low": 1.6, "high": 2.0})
    assert found["peers_prefill", "v1"]["speedup"]["ct2-float32"]["value"] == pytest.approx(0.25 / 0.48)
    assert found["peers_generate", "slow"]["speedup"] == {}
    assert (v1["equal_tokens"], found["peers_generate", "slow"]["equal_tokens"]) == (3, 1)
    # GPT-2 has 124,439,808 parameters, 1024 positions of 768 among them; 2 x 12 x 768 entries a token.
    step_bytes = 4 * (124439808 - 1024 * 768) + 2 * 2 * 12 * 768 * 48
    assert v1["model_bytes"] == step_bytes
    assert v1["limit_fraction"] == pytest.approx(step_bytes / 20e9 / (0.48 / 32))  # the median
    assert v1["peak_rss_bytes"] == 100.5 * 2**20
    assert v1["context"]["peers"] == ["llama==1"] and v1["context"]["isa"] and v1["context"]["cpu"]
    shown = capsys.readouterr()
    assert "| 32 + 32 | v1 | 15.00 | 2.29x [2.00, 3.00] | 1.67x [1.60, 2.00] |" in shown.out
    assert "round 3 of 3: slow: 1.10 s to 64 tokens" in shown.err


def test_an_interval_of_many_rounds_is_that_of_all_resamples():
    """Against every possible draw, for a number of samples at which these can be listed."""
    slow, fast = [5.0, 6.0, 5.5, 7.0, 5.2], [2.0, 2.5, 2.2, 2.1, 3.0]
    medians = [
        [statistics.median(draw) for draw in itertools.product(samples, repeat=5)] for samples in (slow, fast)
    ]
    weights = [[(value, of.count(value)) for value in sorted(set(of))] for of in medians]
    ratios = sorted((a / b, m * n) for (a, m), (b, n) in itertools.product(*weights))
    whole = sum(weight for _, weight in ratios)

    def quantile(share):
        seen = 0
        for value, weight in ratios:
            seen += weight
            if seen >= share * whole:
                return value

    found = records.ratio(slow, fast)
    assert quantile(0.02) <= found["low"] <= quantile(0.03)
    assert quantile(0.97) <= found["high"] <= quantile(0.98)


def test_a_side_that_fails_is_recorded_and_called_no_more(harness, words, tmp_path, capsys):
    folder = harness(
        slow=[entry(1.0), {"error": "MemoryError"}],
        ct2_float32=["no such library"],
        v1=[entry(0.5)] * 3,
    )
    assert main.main(words(folder)) == 1
    found = written(tmp_path)
    assert {key: (line["status"], line.get("reason")) for key, line in found.items() if key[1] != "v1"} == {
        ("peers_generate", "slow"): ("failed", "MemoryError"),
        ("peers_prefill", "slow"): ("failed", "MemoryError"),
        ("peers_generate", "ct2-float32"): ("failed", "the harness ended with 1: no such library"),
        ("peers_prefill", "ct2-float32"): ("failed", "the harness ended with 1: no such library"),
    }
    v1 = found["peers_generate", "v1"]
    assert (v1["rounds"], v1["speedup"], v1["equal_tokens"]) == (3, {}, None)
    assert (folder / "calls").read_text().count("ct2-float32") == 1
    shown = capsys.readouterr().out
    assert "Not measured: slow: MemoryError" in shown and "| 32 + 32 | v1 |" in shown


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({}, "expected rows and prefill_s of slow from the harness, got none"),
        ({"error": ""}, "slow ended without an answer or a word"),
        (entry(1.0, total=48), "not run in full to 64 tokens"),
        (entry(1.0, sampled=True), "not run in full to 64 tokens"),
    ],
)
def test_what_was_not_measured_says_why(harness, words, tmp_path, answer, reason):
    folder = harness(slow=[answer], ct2_float32=[entry(0.8)], v1=[entry(0.5)])
    main.main(words(folder, "--rounds", "1"))
    line = written(tmp_path)["peers_generate", "slow"]
    assert (line["status"], line["reason"]) == ("failed", reason)


def test_nothing_measured(harness, words, tmp_path, capsys):
    assert main.main(words(harness(slow=["no"], ct2_float32=["no"], v1=["no"]))) == 1
    assert "no round was finished, nothing is recorded" in capsys.readouterr().err
    assert (tmp_path / "log.jsonl").read_text() == ""


def test_no_harness(words, tmp_path, capsys):
    assert main.main(words(tmp_path)) == 4
    assert capsys.readouterr().err == (
        f"bench_peers: error: {tmp_path}: expected the peers' harness (run.py), which is not part of this "
        "project, got nothing (--harness DIR says where it is)\n"
    )


def test_a_harness_that_cannot_be_set_up(harness, words, capsys):
    folder = harness()
    (folder / "setup").write_text("pip found no compiler")
    assert main.main(words(folder)) == 4
    assert "error: the harness ended with 1: pip found no compiler\n" in capsys.readouterr().err


def test_rounds_end_with_the_time(harness, words, tmp_path, capsys):
    folder = harness(slow=[entry(1.0)], ct2_float32=[entry(0.8)], v1=[entry(0.5)])
    assert main.main(words(folder, "--minutes", "0")) == 0
    assert written(tmp_path)["peers_generate", "v1"]["rounds"] == 1
    assert "no time for more than 1 of 3 rounds" in capsys.readouterr().err


def ended(pid: int) -> bool:
    """Within a second; one that nobody has waited for yet counts."""
    for _ in range(10):
        try:
            if (Path("/proc") / str(pid) / "stat").read_text().rpartition(") ")[2].startswith("Z"):
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_the_finished_rounds_and_ends_the_peers(harness, words, tmp_path, sent):
    folder = harness(slow=[entry(1.0), 60], ct2_float32=[entry(0.8)] * 2, v1=[entry(0.5)] * 2)
    command = [sys.executable, SCRIPTS / "bench_peers.py", *words(folder)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "python")}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        for _ in range(600):
            if (folder / "child").exists() and (folder / "child").read_text():
                break
            time.sleep(0.1)
        process.send_signal(sent)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + sent and "Traceback" not in errors, errors
    assert written(tmp_path)["peers_generate", "v1"]["time_total_s_samples"] == [0.5]
    assert ended(int((folder / "child").read_text()))


@pytest.mark.parametrize("option", [("--totals", "0"), ("--rounds", "0"), ("--version", "v9")])
def test_bad_options(harness, words, option):
    with pytest.raises(SystemExit) as stop:
        main.main(words(harness(), *option))
    assert stop.value.code == 2


def test_tables_without_records():
    assert tables.time_table([]) == tables.ratio_table([]) == tables.NONE
