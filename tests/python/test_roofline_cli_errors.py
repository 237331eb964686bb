"""How ``kvfuse roofline`` refuses: one sentence on standard error, and an exit code."""

import os
import sys

import pytest
from kvfuse import roofline
from kvfuse.__main__ import main
from roofline_commands import CALIBRATION, LETTERS, RESULTS, Commands

pytest.importorskip("typer")


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    return Commands(capsys, monkeypatch, tmp_path)


WRONG = {
    "unknown hardware": (("predict", "-H", "h1000"), 2, "did you mean h100?"),
    "unknown model": (("predict", "-m", "lama-3-8b"), 2, "did you mean llama-3-8b?"),
    "unknown strategy": (("predict", "-s", "fp17"), 2, "strategy: expected"),
    "unknown format": (("predict", "--gemm", "1x1x1", "--precision", "fp7"), 2, "precision: expected one of"),
    "unknown phase": (
        ("predict", "--phase", "middle"),
        2,
        "--phase: expected decode or prefill, got 'middle'",
    ),
    "unknown profile": (("hardware", "--profile", "vendors"), 2, "did you mean vendor?"),
    "unknown command": (("predit",), 2, "predit"),
    "unknown option": (("predict", "--contex", "1"), 2, "--contex"),
    "nothing": (("compare",), 2, "expected set-ups, --attention or --published"),
    "both": (("compare", "gb10", "--published"), 2, "and one of them only"),
    "negative": (("predict", "-b", "-1"), 2, "1 <= batch <= 1048576, got -1"),
    "zero": (("predict", "--gemm", "0x1x1"), 2, "1 <= M <= 2147483648, got 0"),
    "absurd": (("kv", "-c", str(10**30)), 2, "to fit 64 bits"),
    "fraction": (("predict", "-c", "1.5"), 2, "should be a valid integer"),
    "form": (("predict", "--gemm", "1x2"), 2, "--gemm: expected MxNxK"),
    "list": (("sweep", "-c", "1,,2"), 2, "--context: expected whole numbers, got ''"),
    "names": (("sweep", "-H", "h100,"), 2, "--hardware: expected names separated by commas"),
    "nan": (("recommend", "--min-speedup", "nan"), 2, "min_speedup"),
    "heads": (
        ("predict", "--sizes", LETTERS.replace("nkv=8", "nkv=5")),
        2,
        "n_head to be a multiple of n_kv_head",
    ),
    "letters": (("predict", "--sizes", "H=1"), 2, "expected the keys H, L, nh, nkv, dh, dff"),
    "not calibrated": (("predict", "-H", "here"), 2, "run kvfuse roofline calibrate"),
    "no results": (("validate", "/nowhere.jsonl"), 3, "/nowhere.jsonl: No such file or directory"),
    "no calibration": (
        ("validate", RESULTS, "--calibration", "/nowhere.json"),
        3,
        "/nowhere.json: No such file or directory",
    ),
    "no hardware file": (("hardware", "--hardware-file", "/nowhere.json"), 3, "/nowhere.json: No such file"),
    "a folder to write": (("calibrate", "--output", "/"), 3, "expected a file to write, got a folder"),
    "device": (("calibrate", "--device", "tpu"), 2, "--device: expected cpu or cuda, got 'tpu'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_one_sentence_on_stderr_and_nothing_else(run, name):
    words, want_code, sentence = WRONG[name]
    code, out, err = run(*words)
    assert (code, out) == (want_code, "")
    assert err.startswith("kvfuse roofline: error: ")
    assert sentence in err
    assert err.count("\n") == 1
    assert "\x1b" not in err


@pytest.mark.parametrize(
    ("option", "text", "sentence"),
    [
        ("--calibration", "{", "expected JSON"),
        ("--calibration", "{}", "schema_version"),
        ("--calibration", CALIBRATION.read_text().replace("125000000000.0", "NaN"), "expected JSON"),
        ("--calibration", CALIBRATION.read_text().replace("0.00005", "-1"), "step_products[0].seconds"),
        ("", '{"half', ":1: expected JSON"),
        ("", RESULTS.read_text()[:-40], ":9: expected JSON"),
        ("--hardware-file", '{"schema_version": 1}', "hardware"),
    ],
)
def test_damaged_files(run, tmp_path, option, text, sentence):
    path = tmp_path / "damaged.json"
    path.write_text(text)
    if option == "--hardware-file":
        code, out, err = run("hardware", option, path)
    else:
        code, out, err = run("validate", *([RESULTS, option, path] if option else [path]))
    assert (code, out) == (3, "")
    assert err.startswith(f"kvfuse roofline: error: {path}")
    assert sentence in err
    assert err.count("\n") == 1


def test_a_missing_extra_is_one_sentence(monkeypatch, capsys):
    for name in [
        name for name in sys.modules if name.partition(".")[0] == "typer" or ".roofline.cli" in name
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "typer", None)
    assert main(["roofline", "hardware"]) == 2
    sentence = "expected the package typer, which is not installed (pip install 'kvfuse[roofline]')"
    assert capsys.readouterr().err == f"kvfuse roofline: error: {sentence}\n"


def test_disk_full(run, monkeypatch, tmp_path):
    from kvfuse.roofline import calibrate

    found = roofline.Calibration.read(CALIBRATION)
    monkeypatch.setattr(calibrate, "calibrate", lambda *_, **__: found)

    def full(_):
        raise OSError(28, "No space left on device")

    code, out, _ = run("calibrate", "--output", tmp_path / "c.json")
    assert code == 0
    assert "100 GFLOP" not in out
    assert "125" in out
    monkeypatch.setattr(os, "fsync", full)
    code, out, err = run("calibrate", "--output", tmp_path / "c.json")
    assert (code, out) == (4, "")
    assert err == "kvfuse roofline: error: [Errno 28] No space left on device\n"
