"""Calibrations: really measured, kept in files, damaged and interrupted."""

import json
import math
import os
import signal
import time
from pathlib import Path

import kvfuse
import pytest
import torch
from kvfuse import roofline
from kvfuse.__main__ import main
from kvfuse.roofline import calibrate
from kvfuse.roofline.measure import Bench, GEMMKernel, Timed, measure_gemm

ROOT = Path(__file__).resolve().parents[2]

TINY = calibrate.Plan(
    precisions=("fp32",),
    widths=(64,),
    step_rows=(1, 4),
    pass_rows=(1, 16),
    vocab=1000,
    decode=((1, 16), (1, 64)),
    prompts=(16,),
    rounds=2,
)


@pytest.fixture(scope="module")
def tiny():
    """A calibration that was really run, and what its progress said."""
    told = []
    found = calibrate.calibrate(TINY, progress=lambda *words: told.append(words))
    return found, told


def test_a_tiny_calibration(tiny):
    found, told = tiny
    data = json.loads(found.json())
    sizes = {(one["in"], one["out"]) for one in data["products"]}
    assert sizes == {(64, 192), (64, 64), (64, 256), (256, 64), (64, 1000)}
    assert {one["rows"] for one in data["products"] if one["out"] != 1000} == {1, 16}
    assert {one["rows"] for one in data["products"] if one["out"] == 1000} == {1}
    assert {one["rows"] for one in data["step_products"]} == {1, 4}
    attentions = {(one["kv"], one["query_tokens"], one["kv_len"]) for one in data["attentions"]}
    assert attentions == {(kv, *size) for kv in ("fp32", "int8") for size in ((1, 16), (1, 64), (16, 16))}
    assert data["num_threads"] == torch.get_num_threads()
    assert data["machine"]
    assert 0 < data["usual_read_bytes_per_s"] <= data["read_bytes_per_s"] < 1e13
    for one in data["products"] + data["step_products"] + data["attentions"]:
        assert 0 < one["seconds"] < 1
    done = [one[0] for one in told]
    assert done == sorted(done)
    assert told[-1][0] == told[-1][1]


def test_it_predicts_a_model_of_its_sizes(tiny, tmp_path):
    # Four rows as twice the time of one: what two moments of a shared machine gave need not be in order.
    data = json.loads(tiny[0].json())
    alone = {(one["in"], one["out"]): one["seconds"] for one in data["step_products"] if one["rows"] == 1}
    for one in data["step_products"]:
        one["seconds"] = alone[one["in"], one["out"]] * math.sqrt(one["rows"])
    path = tmp_path / "c.json"
    path.write_text(json.dumps(data))
    calibration = roofline.Calibration.read(path)
    model = roofline.Model.preset("gpt2")
    step = calibration.predict_pass(model, past=63)
    assert math.isfinite(step.total_ms)
    assert step.total_ms > step.products_ms > 0
    wider = calibration.predict_pass(model, past=63, batch=4)
    assert wider.total_ms > step.total_ms
    assert wider.products_ms > 1.5 * step.products_ms


def test_file_and_back(tiny, tmp_path):
    path = tmp_path / "new" / "folder" / "c.json"
    calibrate.save(tiny[0], path)
    assert roofline.Calibration.read(path).json() == tiny[0].json()
    assert [one.name for one in path.parent.iterdir()] == ["c.json"]


def test_a_failed_write_leaves_what_was_there(tiny, tmp_path, monkeypatch):
    path = tmp_path / "c.json"
    path.write_text("before")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        calibrate.save(tiny[0], path)
    assert path.read_text() == "before"
    assert [one.name for one in tmp_path.iterdir()] == ["c.json"]


def test_default_path(monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", "/somewhere")
    assert calibrate.default_path() == Path("/somewhere/kvfuse/calibration.json")
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert calibrate.default_path() == Path.home() / ".config/kvfuse/calibration.json"


def test_what_fails_while_measuring_is_raised(monkeypatch):
    def broken(*_, **__):
        raise MemoryError("no room")

    monkeypatch.setattr(Bench, "attention", broken)
    with pytest.raises(MemoryError, match="no room"):
        calibrate.calibrate(TINY)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there():
    with pytest.raises(RuntimeError, match="expected a GPU with CUDA operators for cuda, got none"):
        calibrate.calibrate(TINY, device="cuda")


def test_ctrl_c_leaves_what_was_there(tmp_path, monkeypatch, capsys):
    pytest.importorskip("typer")
    path = tmp_path / "c.json"
    path.write_text("before")
    sampled = []

    def sample(timed):
        sampled.append(timed)
        timed.samples.append(1e-3)
        if len(sampled) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)

    monkeypatch.setattr(calibrate, "QUICK", TINY)
    monkeypatch.setattr(Timed, "sample", sample)
    assert main(["roofline", "calibrate", "--quick", "--output", str(path)]) == 130
    assert capsys.readouterr() == ("", "")
    assert len(sampled) < len(TINY.decode) + 40  # of some 80
    assert path.read_text() == "before"
    assert [one.name for one in tmp_path.iterdir()] == ["c.json"]


def test_products_and_attentions_are_those_of_the_model():
    """What is timed computes what it says: the kernels of the step, of a pass, and attention."""
    bench = Bench()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 64, generator=generator)
    weights = bench.copies((32, 64), torch.float32)
    assert len(weights) == bench.buffer.numel() // (32 * 64 * 4)
    assert weights[1].data_ptr() == weights[0].data_ptr() + 32 * 64 * 4
    native = kvfuse._C.measure
    native.run_products(x, weights[:2])
    native.run_step_products(x, weights[:2])
    for run in (native.run_products, native.run_step_products):  # each weight is reached, the last too
        with pytest.raises(ValueError, match=r"expected x \[rows, in\] and weights \[out, in\]"):
            run(x, [*weights[:7], torch.zeros(32, 63)])
    with pytest.raises(ValueError, match="a multiple of 8 wide"):
        native.run_step_products(torch.zeros(1, 63), [torch.zeros(32, 63)])


def test_a_ring_is_larger_than_the_caches_and_its_time_is_of_one(monkeypatch):
    """Nothing is left out and nothing is counted twice: on a clock by which each weight takes a second."""
    bench = Bench()
    read = []
    monkeypatch.setattr(kvfuse._C.measure, "run_step_products", lambda x, weights: read.extend(weights))

    def seconds(run):
        before = len(read)
        run()
        return float(len(read) - before)

    monkeypatch.setattr(bench, "seconds", seconds)
    product = bench.product("fp32", 1, 1024, 4096, step=True)
    product.sample()
    first, *ring = read  # the first warms up
    assert first.data_ptr() == ring[0].data_ptr()
    assert len({weight.data_ptr() for weight in ring}) == len(ring)
    assert sum(weight.nbytes for weight in ring) > 0.9 * bench.buffer.nbytes
    assert product.samples == [1.0]


@pytest.mark.parametrize(
    ("precision", "emulated"), [("fp32", False), ("bf16", False), ("fp8", True), ("nvfp4", True)]
)
def test_measure_gemm(precision, emulated):
    M, N, K = 4, 256, 128
    got = measure_gemm(M, N, K, precision, samples=3)
    assert got.emulated is emulated
    width = 2 if precision == "bf16" else 4
    seconds = got.measured_time_us / 1e6
    assert got.measured_bandwidth_gb_s == pytest.approx(width * (M * K + N * K + M * N) / seconds / 1e9)
    assert got.measured_tflops == pytest.approx(2 * M * N * K / seconds / 1e12)


def test_gemm_kernel_sets_prediction_beside_measurement():
    b10 = roofline.get_hardware("b10")
    got = GEMMKernel(1, 256, 256, "fp16").benchmark(b10)
    assert got["predicted_time_us"] == roofline.predict_gemv(b10, 256, 256, "fp16").predicted_time_us
    assert got["efficiency"] == got["predicted_time_us"] / got["measured_time_us"]


@pytest.mark.parametrize(
    ("sizes", "precision", "message"),
    [
        ((0, 1, 1), "fp32", "expected M >= 1, got 0"),
        ((1, -4, 1), "fp32", "expected N >= 1, got -4"),
        ((1, 1, 1.5), "fp32", "expected K to be a whole number, got 1.5"),
        ((1, 1, 8), "fp7", "precision: expected one of fp32, fp16"),
        ((2**20, 2**20, 8), "fp32", "at most 4294967296 bytes"),
        ((2**16, 2**14, 2**14), "fp16", "1e.13 FLOP to measure"),
    ],
)
def test_measure_gemm_refuses(sizes, precision, message):
    with pytest.raises(ValueError, match=message) as error:
        measure_gemm(*sizes, precision)
    assert "\n" not in str(error.value)


def test_step_products_and_usual_bandwidth_in_a_file():
    base = json.loads((ROOT / "tests/python/calibration.json").read_text())
    calibration = roofline.Calibration(json.dumps(base))
    assert json.loads(calibration.json()) == base
    gpt2 = roofline.Model.preset("gpt2")
    weights = 144 * 768**2 + 768 * 50257
    # one rate each: a decode step takes its own kernels' products, twice as fast
    assert calibration.predict_pass(gpt2, past=10).products_ms == pytest.approx(
        1e3 * weights / 2e10, rel=1e-9
    )
    assert calibration.predict_pass(gpt2).products_ms == pytest.approx(1e3 * weights / 1e10, rel=1e-9)
    for field, value, message in [
        ("usual_read_bytes_per_s", 2e12, "expected usual_read_bytes_per_s at most read_bytes_per_s"),
        ("usual_read_bytes_per_s", -1, r"c\.json\.usual_read_bytes_per_s: expected a positive finite number"),
        ("step_products", [{"rows": 1}], r"c\.json\.step_products\[0\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            roofline.Calibration(json.dumps(base | {field: value}), "c.json")


def record(**changes):
    """A record of the runner: gpt2 without the head, one token from one."""
    fields = {
        "schema_version": 1,
        "benchmark_name": "roofline",
        "stage": "v1_decode",
        "status": "ok",
        "version": "v1",
        "use_cache": True,
        "kv_cache_dtype": "model",
        "sharing_group": 1,
        "dtype": "float32",
        "model_config": {
            "n_layer": 12,
            "n_head": 12,
            "n_embd": 768,
            "block_size": 1024,
            "vocab_size": 50257,
            "bias": True,
        },
        "batch_size": 1,
        "prompt_length": 100,
        "pass_tokens": 1,
        "time_total_ms_median": 20.0,
        "read_bandwidth_bytes_per_s": 1e11,
        "matmul_flops_per_s": 1e12,
        "context": {"device": "cpu", "num_threads": 2},
    }
    return json.dumps(fields | changes)


def test_times_follow_the_bandwidth_of_the_records_own_run():
    """Of t the bytes take m at the usual bandwidth: sqrt(t^2 - m^2 + m'^2) where they take m'."""
    base = json.loads((ROOT / "tests/python/calibration.json").read_text())
    base["attentions"], base["pass_overhead_s"] = [], 0
    calibration = roofline.Calibration(json.dumps(base))
    bandwidths = (1e11, 5e10, 2.5e10)  # usual, a half, a quarter
    lines = "\n".join(record(read_bandwidth_bytes_per_s=one) for one in bandwidths)
    got = roofline.validate(lines, "r.jsonl", calibration)
    weights = 144 * 768**2 + 768 * 50257
    usual = weights / 2e10
    reading = [4 * weights / one for one in bandwidths]
    want = [math.sqrt(usual**2 - reading[0] ** 2 + one**2) for one in reading]
    rest = got.records[0].predicted_ms / 1e3 - usual  # attention by the roofs, and element-wise work
    assert 0 < rest < 0.1 * usual
    for one, seconds, bandwidth in zip(got.records, want, bandwidths, strict=True):
        assert one.predicted_ms / 1e3 == pytest.approx(seconds, rel=0.1)
        assert one.predicted_ms / 1e3 > seconds
        assert one.shortest_ms == pytest.approx(1e3 * 4.06 * weights / bandwidth, rel=0.01)
    again = roofline.validate(record(read_bandwidth_bytes_per_s=None), "r.jsonl", calibration)
    assert again.records[0].predicted_ms == got.records[0].predicted_ms


def test_records_of_another_machine_are_left_out():
    calibration = roofline.Calibration((ROOT / "tests/python/calibration.json").read_text())
    lines = [
        record(context={"device": "cuda", "num_threads": 2}),
        record(context={"device": "cpu", "num_threads": 7}),
        record(),
    ]
    got = roofline.validate("\n".join(lines), "r.jsonl", calibration)
    assert [one.reason for one in got.skipped] == [
        "it ran on a gpu, the calibration is of a cpu",
        "it ran with 7 threads, the calibration with 2",
    ]
    assert [one.line for one in got.records] == [3]
    assert len(roofline.validate("\n".join(lines), "r.jsonl").records) == 3
