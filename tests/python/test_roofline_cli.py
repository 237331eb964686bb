"""``kvfuse roofline``: what the commands print."""

import json
import math
import os
import subprocess
import sys

import pytest
from kvfuse import roofline
from kvfuse.roofline import __main__ as module
from roofline_commands import CALIBRATION, LETTERS, RESULTS, ROOT, Commands

pytest.importorskip("typer")
COMMANDS = ("predict", "sweep", "kv", "recommend", "compare", "hardware", "calibrate", "validate")


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    return Commands(capsys, monkeypatch, tmp_path)


@pytest.fixture
def parsed(run):
    return run.json


def test_predict_is_the_library(parsed):
    got = parsed("predict", "--hardware", "H100", "--model", "llama-3-8b", "--context", 8192, "--batch", 2)
    model = roofline.Model.preset("llama-3-8b")
    want = roofline.predict_pass(roofline.get_hardware("h100"), model, batch=2, past=8192)
    assert got["time_ms"] == want.time_ms
    assert [one["op"] for one in got["operators"]] == roofline.op_names()
    prefill = parsed("predict", "--phase", "prefill", "--context", 512, "--sizes", LETTERS)
    want = roofline.predict_pass(roofline.get_hardware("gb10"), roofline.published_model(), tokens=512)
    assert prefill["time_ms"] == want.time_ms


def test_the_golden_product(parsed, run):
    words = (
        "predict",
        "-H",
        "b10",
        "--profile",
        "reference",
        "--gemm",
        "1x4096x4096",
        "--precision",
        "nvfp4",
    )
    got = parsed(*words)
    assert got["bytes"] == 9453568
    assert got["predicted_time_us"] == pytest.approx(32.94, abs=0.005)
    code, out, _ = run(*words)
    assert code == 0
    assert "32.94" in out
    assert "memory" in out


def test_sweep(parsed):
    got = parsed(
        "sweep", "-H", "a100-80,h100", "-s", "fp16_baseline,fp8_balanced", "-b", "1,8", "-c", "128,256"
    )
    assert [(one["hardware"], one["strategy"], one["batch"], one["context"]) for one in got] == [
        (hardware, strategy, batch, context)
        for hardware in ("a100-80", "h100")
        for strategy in ("fp16_baseline", "fp8_balanced")
        for batch in (1, 8)
        for context in (128, 256)
    ]
    products = parsed("sweep", "-H", "h100", "--gemm", "1x8x8,2x16x8", "--precision", "fp16,fp8")
    assert [(one["M"], one["precision"]) for one in products] == [
        (1, "fp16"),
        (1, "fp8"),
        (2, "fp16"),
        (2, "fp8"),
    ]


def test_kv(parsed, run):
    words = ("kv", "-m", "published", "-c", 32768, "--precision", "fp16,nvfp4", "--recent-window", 256)
    got = parsed(*words)
    assert [one["bytes"][0] / 2**20 for one in got["curves"]] == [4096, 1175]
    model = roofline.published_model()
    assert got["crossover_tokens"] == roofline.kv_crossover_tokens(model)
    assert "1,175" in run(*words)[1]


def test_recommend(parsed, run):
    got = parsed("recommend", "-H", "b10", "--sizes", LETTERS)
    assert (got["strategy_name"], got["attention"]) == ("nvfp4_blackwell", "FA3")
    code, out, err = run("recommend", "-H", "b10", "--sizes", LETTERS)
    assert (code, err) == (0, "")
    assert out.startswith("nvfp4_blackwell with FA3")
    for reason in got["reasons"]:
        assert f"- {reason}" in out


def test_compare(parsed, run):
    got = parsed("compare", "gb10", "h100:fp8_balanced", "-c", 1024)
    assert [(one["hardware"], one["strategy"]) for one in got] == [
        ("gb10", "fp16_baseline"),
        ("h100", "fp8_balanced"),
    ]
    ratio = got[0]["prediction"]["time_ms"] / got[1]["prediction"]["time_ms"]
    assert f"{ratio:.2f}x" in run("compare", "gb10", "h100:fp8_balanced", "-c", 1024)[1]
    kernels = parsed("compare", "--attention", "h100")
    assert [one["kernel"] for one in kernels] == roofline.attention_names()
    published = parsed("compare", "--published")
    assert {"as_published", "complete", "compat"} <= set(published[0])
    assert "2.590" in run("compare", "--published")[1]


def test_hardware(parsed, run, tmp_path):
    assert [one["name"] for one in parsed("hardware")] == roofline.HardwareRegistry().names()
    h100 = roofline.get_hardware("h100").info
    assert parsed("hardware", "h100")["peak_tflop_s"]["fp8"]["value"] == h100.peak_tflop_s["fp8"].value
    assert h100.bandwidth_gb_s.source in run("hardware", "h100")[1]
    entry = {"name": "mine", "title": "My GPU", "kind": "gpu"}
    entry |= {"bandwidth_gb_s": {"value": 500, "source": "its data sheet"}}
    entry |= {"peak_tflop_s": {"fp16": {"value": 50, "source": "its data sheet"}}}
    path = tmp_path / "machines.json"
    path.write_text(json.dumps({"schema_version": 1, "hardware": [entry]}))
    words = ("--hardware-file", path, "--gemm", "1x1000x1000")
    assert parsed("predict", "-H", "mine", *words)["memory_time_us"] == pytest.approx(2004000 / 5e11 * 1e6)
    assert parsed("hardware", "mine", "--hardware-file", path)["title"] == "My GPU"


def test_here_is_the_machine_that_was_calibrated(parsed, tmp_path):
    words = ("predict", "-m", "gpt2", "-s", "fp32", "-H", "here")
    got = parsed(*words, "--calibration", CALIBRATION)
    kept = tmp_path / "config/kvfuse/calibration.json"
    kept.parent.mkdir(parents=True)
    kept.write_text(CALIBRATION.read_text())
    assert parsed(*words) == got
    here = roofline.Calibration.read(CALIBRATION).hardware()
    want = roofline.predict_pass(here, roofline.Model.preset("gpt2"), past=4096, strategy="fp32")
    assert got["time_ms"] == want.time_ms


def test_validate(parsed, run):
    (got,) = parsed("validate", RESULTS, "--calibration", CALIBRATION)
    want = roofline.validate(RESULTS.read_text(), str(RESULTS), roofline.Calibration.read(CALIBRATION))
    assert got["validation"]["median_absolute_error"] == want.median_absolute_error
    assert len(got["validation"]["records"]) == len(want.records) == 9
    code, out, err = run("validate", RESULTS, "--calibration", CALIBRATION)
    assert (code, err) == (0, "")
    assert f"median absolute error {100 * want.median_absolute_error:.1f}%" in out
    assert "0 above the roof" in out
    (limits,) = parsed("validate", RESULTS)  # nobody calibrated
    assert all(one["predicted_ms"] == one["shortest_ms"] for one in limits["validation"]["records"])
    assert parsed("validate", RESULTS, "--limits-only", "--calibration", CALIBRATION) == [limits]


def test_a_record_above_its_roof_is_called_so(run, tmp_path):
    record = json.loads(RESULTS.read_text().splitlines()[1])
    path = tmp_path / "r.jsonl"
    path.write_text(json.dumps(record | {"time_total_ms_median": 1.0}) + "\n")
    assert "ABOVE ITS ROOF" in run("validate", path)[1]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_worked_examples(run, command):
    code, out, err = run(command, "--help")
    assert (code, err) == (0, "")
    lines = [line.strip() for line in out.splitlines()]
    examples = [line.split("   ")[0] for line in lines if line.startswith("kvfuse roofline ")]
    assert len(examples) >= 3
    assert "\x1b" not in out
    for example in examples:
        words = example.split()[2:]
        if command in ("calibrate", "validate") or "here" in words or "machines.json" in words:
            continue  # they need what the examples before them wrote
        assert run(*words)[0] == 0, example


def test_help_lists_the_commands(run):
    code, out, _ = run("--help")
    assert code == 0
    for command in COMMANDS:
        assert f"\n  {command} " in out, command


def test_what_is_not_finite_is_null():
    from kvfuse.roofline.cli import output

    assert output._plain({"a": (math.nan, math.inf, 1.0)}) == {"a": [None, None, 1.0]}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1234.5, "1,234"), (0.012346, "0.01235"), (1.0, "1.000"), (3e9, "3.000e+09")],
)
def test_numbers(value, text):
    from kvfuse.roofline.cli import output

    assert output.number(value) == text


def test_the_demonstration_and_the_module(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["roofline"])
    assert module.main() == 0
    out = capsys.readouterr().out
    product = roofline.predict_gemv(roofline.get_hardware("b10"), 4096, 4096, "fp8")
    assert f"{product.predicted_time_us:.2f} us" in out
    assert "nvfp4_blackwell with FA3" in out
    monkeypatch.setattr(sys, "argv", ["roofline", "hardware", "--json"])
    assert module.main() == 0
    assert len(json.loads(capsys.readouterr().out)) == len(roofline.HardwareRegistry().names())


def test_the_console_script():
    """From the shell, on a machine without a terminal: no colours."""
    command = [sys.executable, "-m", "kvfuse", "roofline", "hardware"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "python")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert "gb10" in done.stdout
