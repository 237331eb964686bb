"""bench_runner when it is killed, interrupted, out of disk or not alone: no announced result is lost."""

import json
import os
import random
import re
import resource
import signal
import subprocess
import time

import pytest
from runner import TIMEOUT_S, TINY_MODEL, finish, problem, statuses, wait_for

KILLS = 100
# Long enough to be met in the middle: hundreds of passes through a model of four layers.
SLOW = {
    "model_config": TINY_MODEL | {"n_layer": 4, "n_embd": 64},
    "num_measure_runs": 15,
    "T_values": [4, 400],
}


def whole_lines(data: bytes) -> tuple[list[dict], bytes]:
    """The records, and what follows the last line end."""
    *lines, tail = data.split(b"\n")
    return [json.loads(line) for line in lines], tail


def points(records) -> list[tuple]:
    return [(record["version"], record["T"]) for record in records]


def recorded(text: str) -> list[tuple]:
    """The points that stderr announces."""
    found = re.findall(r"^recorded vram_vs_T (v\d) T=(\d+): peak", text, re.MULTILINE)
    return [(version, int(T)) for version, T in found]


def test_killed_at_random_moments(bench):
    lengths = list(range(101, 501))
    config = bench.configure(T_values=lengths, versions=["v1", "v2"], num_measure_runs=1)
    command = ("vram", "--config", config, "--resume")
    rng = random.Random(7)
    announced, torn = [], 0
    for _ in range(KILLS):
        process = bench.start(*command, stdout=subprocess.DEVNULL)
        # From before the log is opened until well into the measuring, however slow the machine is.
        measuring = rng.random() < 0.7
        if measuring:
            announced += wait_for(process, "recorded ")
        time.sleep(rng.uniform(0, 0.02 if measuring else 0.4))
        process.kill()
        announced += finish(process).stderr.splitlines()
        records, tail = whole_lines(bench.log.read_bytes() if bench.log.exists() else b"")
        torn += bool(tail)
        assert len(set(points(records))) == len(records), "measured twice"
        assert set(recorded("\n".join(announced))) <= set(points(records)), "announced, but not in the log"
        if len(records) > len(lengths) and not tail:
            # Anew, as a run that comes to its end cannot be killed.
            bench.log.unlink()
            announced.clear()
    assert 0 < len(records) < 2 * len(lengths), "killed too early or too late to show anything"

    assert bench.run(*command).returncode == 0
    assert sorted(points(bench.records())) == sorted((v, T) for v in ("v1", "v2") for T in lengths)
    assert {record["status"] for record in bench.records()} == {"ok"}
    parts = bench.log.with_suffix(".jsonl.torn")
    assert (len(parts.read_bytes().splitlines()) if parts.exists() else 0) == torn


@pytest.mark.parametrize("tail", [b'{"schema_version":1,"st', b"\0\0\0", b'{"a":1'])
def test_torn_last_line_is_moved_away(bench, tail):
    config = bench.configure(T_values=[4], versions=["v1", "v2"])
    bench.measure("vram", "--config", config)
    whole = bench.log.read_bytes()
    bench.log.write_bytes(whole + tail)
    result = bench.run("vram", "--config", config, "--resume")
    assert result.returncode == 0
    assert (
        f"results.jsonl: the last line was torn; moved {len(tail)} bytes to results.jsonl.torn"
        in result.stderr
    )
    assert bench.log.read_bytes() == whole
    assert (bench.folder / "results.jsonl.torn").read_bytes() == tail + b"\n"


def test_damage_in_the_middle_is_an_error(bench):
    config = bench.configure(T_values=[4])
    bench.measure("vram", "--config", config)
    lines = bench.log.read_bytes().splitlines(keepends=True)
    damaged = b"".join([lines[0], b"{" + lines[1], lines[2]])
    bench.log.write_bytes(damaged)
    line = problem(bench.run("vram", "--config", config, "--resume"), 4)
    assert line.startswith("results.jsonl:2: expected one JSON object, got a damaged line")
    assert bench.log.read_bytes() == damaged


def check_full_disk(bench, result):
    """The run ended with exit code 4, and each announced record is whole."""
    line = problem(result, 4)
    assert line.startswith("results.jsonl: expected room for a record, got: ")
    records, tail = whole_lines(bench.log.read_bytes())
    assert tail == b""
    assert recorded(result.stderr) == points(records) and 2 <= len(records) < 30
    return line


def test_file_size_limit(bench):
    config = bench.configure(T_values=list(range(1, 11)))
    most = 5000

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    result = bench.run("vram", "--config", config, preexec_fn=limit)
    assert "File too large" in check_full_disk(bench, result)
    before = bench.log.read_bytes()
    assert bench.run("vram", "--config", config, "--resume").returncode == 0
    assert bench.log.read_bytes().startswith(before)
    assert len(bench.records()) == 30


def test_full_file_system(bench):
    disk = bench.folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12k", "kvfuse-test", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system needs root: a full disk is not tested")
    config = bench.configure(T_values=list(range(1, 11)))
    try:
        os.symlink(disk / "log", bench.log)
        result = bench.run("vram", "--config", config)
        assert "No space left on device" in check_full_disk(bench, result)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("options", [[], ["--resume"], ["--clear-log"]])
def test_second_writer_is_refused(bench, options):
    with bench.start("latency", "--config", bench.configure(**SLOW)) as first:
        wait_for(first, "recorded latency_vs_T v2 T=4")
        before = bench.log.read_bytes()
        result = bench.run("latency", "--config", bench.configure("second.yaml"), *options)
        line = problem(result, 4)
        assert line.startswith("results.jsonl: expected to be the only writer, got a lock held by process ")
        assert f"process {first.pid} " in line
        assert bench.log.read_bytes() == before
        assert first.poll() is None
        first.kill()
    assert len(bench.measure("vram", "--config", bench.configure(T_values=[4]))) == 3, (
        "the lock is gone with it"
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_in_the_middle(bench, number, code):
    config = bench.configure(**SLOW)
    with bench.start("latency", "vram", "--config", config, "-o", "json") as process:
        wait_for(process, "recorded latency_vs_T v2 T=4")
        time.sleep(0.3)  # T = 400 takes seconds
        process.send_signal(number)
        result = finish(process)
    line = problem(result, code)
    assert line == "interrupted; what was measured is in results.jsonl (--resume measures the rest)"
    rows = json.loads(result.stdout)
    measured = [(row["T"], row["version"]) for row in rows if row["total ms"] is not None]
    assert measured == [(4, "v0"), (4, "v1"), (4, "v2")] and len(rows) == 6
    kept = statuses(bench.records())
    assert [(T, status) for *_, T, status in kept] == [(4, "ok")] * 3 + [(400, "interrupted")] * 3
    for record in bench.records()[3:]:
        assert record["reason"] == f"stopped by signal {number.value}"

    again = bench.measure("latency", "--config", config, "--resume", "--version", "v1", "v2")
    assert statuses(again) == [("latency_vs_T", version, 400, "ok") for version in ("v1", "v2")]


def test_interrupted_at_random_moments(bench):
    """Also in the middle of a matrix product, whose code keeps data where a handler's frame could lie."""
    config = bench.configure(**(SLOW | {"T_values": [400]}))
    rng = random.Random(11)
    for _ in range(20):
        number = rng.choice([signal.SIGINT, signal.SIGTERM])
        with bench.start("latency", "--config", config, "--clear-log") as process:
            while not bench.log.exists():
                assert process.poll() is None, finish(process)
                time.sleep(0.01)
            time.sleep(0.3 + rng.uniform(0, 0.3))
            process.send_signal(number)
            result = finish(process)
        assert "interrupted; what was measured" in problem(result, 128 + number)
        assert {record["status"] for record in bench.records()} == {"interrupted"}
        bench.log.unlink()


def test_interrupted_perplexity(bench):
    (bench.folder / "tokens.bin").write_bytes(b"\1\0" * 20000)
    config = bench.configure(**SLOW, dataset="tokens.bin", autoregressive=True)
    with bench.start("perplexity", "--config", config, "--version", "v1", "v2") as process:
        wait_for(process, "perplexity v1")
        process.send_signal(signal.SIGINT)
        result = finish(process)
    assert "interrupted; what was measured" in problem(result, 130)
    assert [(r["version"], r["status"]) for r in bench.records()] == [("v1", "interrupted")]
    assert "perplexity" not in bench.records()[0], "a part of the text has no comparable perplexity"
    assert re.search(r"^v1 +autoregressive( +-)+$", result.stdout, re.MULTILINE)


def test_nobody_reads_the_output(bench):
    """The readers of both streams are gone: results are kept all the same."""
    config = bench.configure(T_values=[4, 8])
    process = bench.start("vram", "--config", config)
    process.stdout.close()
    process.stderr.close()
    process.wait(timeout=TIMEOUT_S)
    assert [status for *_, status in statuses(bench.records())] == ["ok"] * 6


def test_summary_that_can_not_be_printed_is_an_error(bench):
    with open("/dev/full", "w") as full:
        result = bench.run("vram", "--config", bench.configure(T_values=[4]), stdout=full)
    assert "No space left on device" in problem(result, 4)
    assert len(bench.records()) == 3


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("folder", "folder: expected a results file that can be written, got: Is a directory"),
        ("pipe", "pipe: expected a regular file for the results, got a device or pipe"),
        ("file/log", "file/log: expected a folder "),
        ("newer", "newer:1: schema_version: expected at most 1, got 2"),
    ],
)
def test_unusable_results_file(bench, name, sentence):
    (bench.folder / "folder").mkdir()
    os.mkfifo(bench.folder / "pipe")
    (bench.folder / "file").write_text("")
    (bench.folder / "newer").write_text('{"schema_version":2}\n')
    result = bench.run("vram", "--config", bench.configure(T_values=[4], log_file=name))
    assert problem(result, 4).startswith(sentence)
    assert result.stdout == ""
