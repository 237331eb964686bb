"""bench_runner compare: what it prints and how it ends, on records the runner itself wrote."""

import csv
import io
import json
import os
import subprocess

import pytest
from runner import ERROR, problem

COLUMNS = {"benchmark", "version", "T", "setting", "measure", "old", "new", "ratio", "low", "high", "verdict"}
LARGE = 200 << 20


def times_of(records, factor=1.0):
    """Latency records of a steady machine on which everything takes `factor` times as long."""
    steady = []
    for index, record in enumerate(records):
        samples = [factor * (index + 1) * ms for ms in (100.0, 101.0, 102.0, 100.5, 101.5)]
        steady.append(record | {"time_total_ms_samples": samples, "shortest_ms": 1.0})
    return steady


def save(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def latency(bench):
    return bench.measure("latency", "--config", bench.configure(num_measure_runs=3))


def compare(bench, old, new, *options):
    result = bench.run("compare", old, new, "-o", "json", *options)
    return result, json.loads(result.stdout) if result.stdout else []


def test_a_file_with_itself(bench, latency):
    result, rows = compare(bench, bench.log, bench.log)
    assert result.returncode == 0, result.stderr
    assert result.stderr.splitlines() == ["6 points: 6 same"]
    assert [(row["version"], row["T"]) for row in rows] == [(r["version"], r["T"]) for r in latency]
    assert all(row["verdict"] == "same" and row["ratio"] == 1.0 for row in rows)
    assert all(row["low"] <= 1.0 <= row["high"] for row in rows)


def test_two_runs_of_the_runner_match_point_by_point(bench, latency):
    """Their times may differ on a busy machine, but never for lack of a partner."""
    first = save(bench.folder / "first.jsonl", latency)
    bench.log.unlink()
    bench.measure("latency", "vram", "--config", bench.configure(num_measure_runs=4))
    _, rows = compare(bench, first, bench.log)
    assert [row["note"] for row in rows if row["measure"] == "peak bytes"] == ["only in the new file"] * 6
    times = [row for row in rows if row["measure"] == "total ms"]
    assert len(times) == 6 and all(row["ratio"] > 0 for row in times)


@pytest.mark.parametrize(("factor", "verdict"), [(1.5, "slower"), (1 / 1.5, "faster"), (1.02, "same")])
def test_verdicts_and_exit_codes(bench, latency, factor, verdict):
    old = save(bench.folder / "old.jsonl", times_of(latency))
    new = save(bench.folder / "new.jsonl", times_of(latency, factor))
    result, rows = compare(bench, old, new)
    assert result.returncode == 0
    assert {row["verdict"] for row in rows} == {verdict}
    assert all(row["ratio"] == pytest.approx(1 / factor, abs=1e-4) for row in rows)
    result, _ = compare(bench, old, new, "--fail-if-slower")
    assert result.returncode == (1 if verdict == "slower" else 0)
    result, rows = compare(bench, old, new, "--threshold", "60", "--fail-if-slower")
    assert result.returncode == 0 and {row["verdict"] for row in rows} == {"same"}


def test_memory_is_exact(bench):
    records = bench.measure("vram", "--config", bench.configure())
    more = [record | {"peak_memory_bytes": record["peak_memory_bytes"] + 1} for record in records[:1]]
    new = save(bench.folder / "new.jsonl", more + records[1:])
    result, rows = compare(bench, bench.log, new, "--fail-if-slower")
    assert [row["verdict"] for row in rows] == ["worse"] + ["same"] * 5
    assert result.returncode == 1


@pytest.mark.parametrize("form", ["table", "md", "csv"])
def test_forms(bench, latency, form):
    result = bench.run("compare", bench.log, bench.log, "-o", form)
    assert result.returncode == 0
    if form == "csv":
        rows = list(csv.DictReader(io.StringIO(result.stdout)))
        assert len(rows) == 6 and rows[0].keys() > COLUMNS
    else:
        assert len(result.stdout.splitlines()) == 8
        assert all(word in result.stdout for word in ("latency_vs_T", "verdict", "same"))


def test_failed_points_and_other_settings_say_why(bench, latency):
    records = times_of(latency)
    records[0]["status"] = "oom"
    records[1]["case"] = records[1]["case"] | {"seed": 7}
    records[2]["context"] = records[2]["context"] | {"cpu": "another"}
    _, rows = compare(bench, save(bench.folder / "old.jsonl", times_of(latency)), save(bench.log, records))
    assert [row["verdict"] for row in rows] == ["incomparable"] * 3 + ["same"] * 3
    assert rows[0]["note"].startswith("new: oom")
    assert rows[1]["note"] == "seed: 42, then 7"
    assert rows[2]["note"].startswith("another machine: cpu: ")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{}\ngarbage\n{}\n", "bad.jsonl:2: expected one JSON object, got a damaged line"),
        ('{"schema_version":99}\n', "bad.jsonl:1: schema_version: expected at most 1, got 99"),
        (None, "bad.jsonl: cannot be opened: No such file or directory"),
    ],
)
def test_bad_files(bench, latency, content, sentence):
    if content is not None:
        (bench.folder / "bad.jsonl").write_text(content)
    result = bench.run("compare", bench.log, "bad.jsonl")
    assert problem(result, 3).startswith(sentence)
    assert result.stdout == ""


def test_a_torn_tail_is_left_out(bench, latency):
    with bench.log.open("a") as log:
        log.write('{"benchmark_name": "latency')
    result, rows = compare(bench, bench.log, bench.log)
    assert result.returncode == 0 and len(rows) == 6
    assert "the last line was cut off and is left out" in result.stderr


def test_usage(bench):
    result = bench.run("compare", "--help")
    assert result.returncode == 0 and result.stderr == ""
    for word in ("OLD NEW", "--threshold", "--fail-if-slower", "Examples:", "Exit codes:"):
        assert word in result.stdout
    assert "expected two results files" in problem(bench.run("compare", "a.jsonl"), 2)
    assert "expected percent" in problem(bench.run("compare", "a", "b", "--threshold", "much"), 2)
    assert "expected as the first word" in problem(bench.run("latency", "compare"), 2)
    assert ERROR not in bench.run("--help").stdout
    assert "bench_runner compare" in bench.run("--help").stdout
    assert list(bench.folder.iterdir()) == []


def test_the_old_file_is_only_read(bench, latency):
    before = bench.log.read_bytes()
    bench.log.chmod(0o444)
    result, _ = compare(bench, bench.log, bench.log)
    assert result.returncode == 0 and bench.log.read_bytes() == before
    assert [path.name for path in bench.folder.glob("*.jsonl*")] == [bench.log.name]


def peak_bytes(bench, path):
    """Resident memory of a comparison of the file with itself, most of it libraries."""
    with bench.start("compare", path, path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss * 1024


def test_a_large_file_is_streamed(bench, latency):
    block = "".join(json.dumps(record | {"padding": "x" * 2000}) + "\n" for record in latency)
    large = bench.folder / "large.jsonl"
    with large.open("w") as file:
        for _ in range(LARGE // len(block)):
            file.write(block)
    assert peak_bytes(bench, large) - peak_bytes(bench, bench.log) < LARGE // 4
