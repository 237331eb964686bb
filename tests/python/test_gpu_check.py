"""`make gpu-check` without a GPU: its judgements, its records, and a dry run of its code on the CPU."""

import json
import math
import sys
import time
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from gpu_check import decode, main, programs, rows, small_calls, timing  # noqa: E402

CPU = rows.Context(device="cpu", quick=True, deadline=math.inf)


class FakeClock:
    """Each call takes what it returns."""

    def time_us(self, call):
        return float(call())


def test_table_and_record(tmp_path):
    lines = [
        rows.Row("batch 1", "2.0x", goal=">= 1.8x", met=True, part="decode"),
        rows.Row("batch 64", "1.0x", goal=">= 1.8x", met=False, part="decode", data={"samples": [1.0]}),
        rows.Row("memcheck", "none", status="skipped", part="sanitizers"),
    ]
    assert rows.table(lines).splitlines() == [
        "part        case      status   goal             result",
        "decode      batch 1   ok       >= 1.8x  met     2.0x",
        "decode      batch 64  ok       >= 1.8x  MISSED  1.0x",
        "sanitizers  memcheck  skipped                   none",
    ]
    path = tmp_path / "new" / "record.json"
    rows.write_record(path, {"card": "X"}, lines, {"decode": 1.5})
    record = json.loads(path.read_text())
    assert record["machine"] == {"card": "X"} and record["part_seconds"] == {"decode": 1.5}
    assert [row["met"] for row in record["rows"]] == [True, False, None]
    assert record["rows"][1]["data"] == {"samples": [1.0]}


def test_record_names(tmp_path):
    when = time.strptime("2026-11-21", "%Y-%m-%d")
    first = rows.record_path(tmp_path, "NVIDIA H100 80GB HBM3", when)
    assert first.name == "2026-11-21-nvidia-h100-80gb-hbm3.json"
    first.touch()
    assert rows.record_path(tmp_path, "NVIDIA H100 80GB HBM3", when).name == f"{first.stem}-2.json"


def test_statistics():
    assert timing.summary([3.0, 1.0, 2.0, 2.0, 100.0])["median"] == 2.0
    steady = timing.ratio([4.0] * 9, [2.0] * 9)
    assert steady == {"value": 2.0, "low": 2.0, "high": 2.0}
    spread = timing.ratio([4.0, 4.2, 3.9, 8.0], [2.0, 2.1, 1.9, 2.0])
    assert spread["low"] < spread["value"] < spread["high"]


def test_sides_are_sampled_in_turn():
    calls = []
    sides = {name: lambda name=name: calls.append(name) or len(calls) for name in "abc"}
    samples = timing.sample_in_turn(sides, FakeClock(), rounds=2, deadline=math.inf)
    assert "".join(calls) == "abc" + "bca" + "cab"
    assert samples == {"a": [6.0, 8.0], "b": [4.0, 9.0], "c": [5.0, 7.0]}


def test_one_round_is_kept_past_the_deadline():
    samples = timing.sample_in_turn({"a": lambda: 1}, FakeClock(), rounds=9, deadline=-math.inf)
    assert samples == {"a": [1.0]}


@pytest.mark.parametrize(
    ("batch", "length", "faster", "share", "goal", "met"),
    [
        (1, 512, 1.0, 0.1, "int8 >= 1.0x float16", True),
        (1, 512, 0.99, 1.0, "int8 >= 1.0x float16", False),
        (64, 512, 1.2, 0.1, "int8 >= 1.0x float16", True),
        (64, 1024, 1.79, 1.0, "int8 >= 1.8x float16", False),
        (64, 1024, 1.8, 0.1, "int8 >= 1.8x float16", True),
        (8, 32768, 1.9, 0.85, "int8 >= 1.8x float16, >= 0.85 of copy", True),
        (8, 32768, 1.9, 0.84, "int8 >= 1.8x float16, >= 0.85 of copy", False),
        (8, 32768, math.nan, 0.9, "int8 >= 1.8x float16, >= 0.85 of copy", False),
    ],
)
def test_goals_of_decode(batch, length, faster, share, goal, met):
    assert decode.judge(decode.Case(batch, 12, length), faster, share) == (goal, met)


def test_row_of_decode():
    case = decode.Case(batch=2, heads=12, length=1000)
    assert case.cache_bytes(int8=True) == 2 * 2 * 12 * 1000 * 68
    samples = {"int8": [10.0, 10.0], "float16": [15.0, 15.0], "sdpa": [30.0, 30.0]}
    row = decode.make_row(
        case, samples, {"flash_attn": "not installed"}, copy_rate=2 * case.cache_bytes(True) / 1e-5
    )
    assert row.case == "batch 2, length 1000" and row.met is True
    assert row.result == "int8 10.0 us = 0.50 of copy, 1.50x [1.50, 1.50] float16, 3.00x [3.00, 3.00] sdpa"
    assert row.data["missing"] == {"flash_attn": "not installed"}
    assert row.data["copy_share"]["float16"] == pytest.approx(0.5 / 1.5 * 128 / 68)


def test_peers_that_do_not_work(monkeypatch):
    def broken(x):
        raise RuntimeError("no kernel\nfor this card")

    def absent(x):
        raise ModuleNotFoundError("flash_attn")

    monkeypatch.setattr(decode, "PEERS", {"sdpa": decode.torch_sdpa, "one": broken, "two": absent})
    sides, missing = decode.make_sides(decode.make_inputs(decode.Case(1, 2, 8), "cpu"))
    assert set(sides) == {"int8", "float16", "sdpa"}
    assert missing == {"one": "RuntimeError: no kernel", "two": "not installed"}


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_wrong_results_are_not_timed(monkeypatch, value):
    def spoilt(x):
        return lambda: torch.full_like(x.q, value)

    case = decode.Case(1, 2, 8)
    monkeypatch.setattr(decode, "PEERS", {"sdpa": decode.torch_sdpa, "peer": spoilt})
    row = decode.measure(CPU, timing.make_clock("cpu"), case, 1e9)
    assert row.status == "ok" and row.data["missing"]["peer"].startswith("off by ")
    monkeypatch.setitem(decode.OWN, "int8", spoilt)
    row = decode.measure(CPU, timing.make_clock("cpu"), case, 1e9)
    assert row.status == "wrong" and row.result.startswith("int8 is off by ")


def test_no_time_left():
    late = rows.Context(device="cpu", quick=True, deadline=-math.inf)
    assert [row.status for row in decode.run(late)] == ["skipped", "skipped"]


REPORT = """<testsuites>
<testsuite tests="{tests}" failures="{failures}" errors="{errors}" skipped="{skipped}">
<testcase classname="test_ops" name="good"/>{cases}</testsuite></testsuites>"""
BAD = '<testcase classname="test_ops" name="bad"><failure message="off"/></testcase>'


@pytest.mark.parametrize(
    ("code", "report", "status", "result"),
    [
        (0, {"tests": 3, "skipped": 1}, "ok", "2 passed, 0 failed, 1 skipped"),
        (
            1,
            {"tests": 2, "failures": 1, "cases": BAD},
            "wrong",
            "1 passed, 1 failed, 0 skipped: test_ops.bad",
        ),
        (1, {"tests": 1}, "wrong", "1 passed, 0 failed, 0 skipped"),
        (0, {"tests": 1, "skipped": 1}, "wrong", "0 passed, 0 failed, 1 skipped"),
        (4, None, "failed", "pytest ended with 4 before any test: usage | no option --device"),
    ],
)
def test_operator_tests_are_judged(code, report, status, result):
    counts = {"failures": 0, "errors": 0, "skipped": 0, "cases": ""}
    text = REPORT.format(**(counts | report)) if report else ""
    row = programs.judge_tests(code, text, "usage\n\nno option --device\n")
    assert (row.status, row.result) == (status, result)
    assert row.met is (None if report is None else status == "ok")


@pytest.mark.parametrize(
    ("code", "output", "status", "result"),
    [
        (0, "========= ERROR SUMMARY: 0 errors\n", "ok", "0 errors"),
        (
            0,
            "= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n",
            "ok",
            "0 hazards displayed (0 errors, 0 warnings)",
        ),
        (86, "Invalid read\n= ERROR SUMMARY: 3 errors\n", "wrong", "3 errors"),
        (0, "nothing was watched\n", "failed", "ended with 0: nothing was watched"),
        (1, "Traceback\nAssertionError: q\n= ERROR SUMMARY: 0 errors\n", "failed", "ended with 1: "),
    ],
)
def test_sanitizers_are_judged(code, output, status, result):
    row = programs.judge_sanitizer("memcheck", code, output)
    assert row.status == status and row.result.startswith(result)


def test_sanitizers_without_the_program(monkeypatch):
    monkeypatch.setattr(programs, "find_sanitizer", lambda: None)
    (row,) = programs.sanitizers(rows.Context(device="cuda", quick=True, deadline=math.inf))
    assert row.status == "skipped" and "pip install nvidia-cuda-sanitizer-api==" in row.result


def test_small_calls():
    small_calls.main("cpu")


def record(total_ms: float, **changes) -> dict:
    samples = {"time_total_ms_samples": [total_ms] * 4, "time_per_token_ms_median": total_ms / 992}
    return {"version": "v1", "status": "ok", "limit_fraction": 0.5} | samples | changes


def test_steps_are_judged():
    eager = [record(4000.0), record(9000.0, version="v2")]
    row = programs.step_row("eager", eager[0], eager)
    assert (row.goal, row.met, row.result) == ("", None, "4.032 ms a token = 0.50 of the byte limit")
    row = programs.step_row("graph", record(992.0), eager)
    assert row.result == "1.000 ms a token = 0.50 of the byte limit, 4.03x [4.03, 4.03] eager"
    assert row.goal == ">= 0.4 of the limit, >= 4.0x eager" and row.met is True
    assert programs.step_row("graph", record(992.0, limit_fraction=0.39), eager).met is False
    assert programs.step_row("graph", record(1001.0), eager).met is False
    assert programs.step_row("graph", record(992.0), []).met is None
    row = programs.step_row("graph", record(992.0, status="oom", reason="needs 9 GB"), eager)
    assert (row.status, row.result) == ("failed", "needs 9 GB")


def test_exit_codes():
    def code(part: str, status: str) -> int:
        return main.exit_code([rows.Row("case", "", status=status, part=part, met=False)])

    assert code("decode", "ok") == code("decode", "failed") == code("sanitizers", "skipped") == 0
    assert code("decode", "wrong") == code("operators", "failed") == code("sanitizers", "wrong") == 1


def test_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main.main([]) == 0
    assert capsys.readouterr().out.startswith("gpu-check: skipped: no CUDA device (")


@pytest.mark.parametrize(
    ("part", "result"),
    [
        (main.Part("bandwidth", "", "", limit_s=0.05), "stopped after 0.05 s"),
        (main.Part("unknown", "", "", limit_s=60), "ended with 2: "),
    ],
)
def test_part_that_ends_badly(part, result):
    arguments = main.parse_arguments(["--device", "cpu", "--quick"])
    (row,) = main.start_part(part, arguments)
    assert (row.part, row.status) == (part.name, "failed") and row.result.startswith(result)


def test_dry_run(tmp_path, capsys):
    output = tmp_path / "record.json"
    parts = ["sanitizers", "bandwidth", "decode", "step"]
    assert main.main(["--device", "cpu", "--quick", "--output", str(output), "--parts", *parts]) == 0
    out = capsys.readouterr().out
    assert f"record: {output}" in out
    found = json.loads(output.read_text())
    statuses = [(row["part"], row["case"], row["status"]) for row in found["rows"]]
    assert statuses == [
        ("sanitizers", "compute-sanitizer", "skipped"),
        ("bandwidth", "copy of 1 MiB", "ok"),
        ("decode", "batch 1, length 64", "ok"),
        ("decode", "batch 2, length 64", "ok"),
        *(("step", f"{mode}, {version}", "ok") for mode in programs.STEP_MODES for version in ("v1", "v2")),
    ], out
    data = found["rows"][2]["data"]
    assert len(data["samples_us"]["int8"]) == 3 and data["case"] == {
        "batch": 1,
        "heads": 2,
        "length": 64,
        "head_dim": 64,
    }
    assert all(row["case"] in out for row in found["rows"])
