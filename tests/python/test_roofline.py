"""kvfuse.roofline: the C++ library as Python sees it; tests/cpp/roofline_*_test.cpp prove its figures."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
from kvfuse import roofline

ROOT = Path(__file__).resolve().parents[2]
HARDWARE_FILE = ROOT / "csrc/roofline/data/hardware.json"
LLAMA = {"H": 4096, "L": 32, "nh": 32, "nkv": 8, "dh": 128, "dff": 14336}


def b10():
    return roofline.get_hardware("b10", profile="reference")


def model(**changes):
    return dataclasses.replace(roofline.Model.preset("llama-3-8b"), **changes)


@pytest.mark.parametrize(
    ("precision", "payload_only", "nbytes", "time_us", "ai"),
    [
        ("FP16", False, 33570816, 116.97, 0.9995),
        ("fp8", False, 16793600, 58.51, 1.998),
        ("int4", True, 8404992, 29.29, 3.992),
        ("nvfp4", False, 9453568, 32.94, 3.549),
    ],
)
def test_published_products(precision, payload_only, nbytes, time_us, ai):
    got = roofline.predict_gemv(b10(), 4096, 4096, precision, payload_only=payload_only)
    assert got.bytes == nbytes
    assert got.predicted_time_us == pytest.approx(time_us, abs=0.005)
    assert got.ai == pytest.approx(ai, abs=0.0005)
    assert got.bottleneck == "memory"


def test_a_float_arrives_bit_for_bit():
    got = roofline.predict_gemm(roofline.get_hardware("h100"), 7, 100, 130, "int8")
    nbytes = 100 * (130 + 4) + 2 * (7 * 130 + 7 * 100)
    assert got.bytes == nbytes
    assert got.memory_time_us == 1e6 * nbytes / (3350 * 1e9)
    assert got.compute_time_us == 1e6 * (2 * 7 * 100 * 130) / (1978.9 * 1e12)


def test_every_figure_of_the_registry_is_that_of_its_file():
    entries = json.loads(HARDWARE_FILE.read_text())["hardware"]
    machines = roofline.HardwareRegistry().all()
    assert [one.name for one in machines] == [entry["name"] for entry in entries]
    for machine, entry in zip(machines, entries, strict=True):
        info = dataclasses.asdict(machine.info)
        for field in ("title", "kind", "aliases", "bandwidth_gb_s", "peak_tflop_s", "memory_gb"):
            assert info[field] == entry[field]
        assert info["profile"] == "vendor"


def test_a_file_of_the_user(tmp_path):
    entry = json.loads(HARDWARE_FILE.read_text())["hardware"][4] | {"name": "mine", "aliases": []}
    entry.pop("reference", None)
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"schema_version": 1, "hardware": [entry]}))
    registry = roofline.HardwareRegistry()
    registry.add_file(path)
    assert registry.find("MINE").critical_ai("fp16") == roofline.get_hardware("h100").critical_ai("fp16")
    assert "mine" not in roofline.HardwareRegistry().names()
    path.write_bytes(b"\xff{")
    with pytest.raises(ValueError, match=r"mine\.json: expected JSON"):
        registry.add_file(path)


def test_recommendation_of_the_published_example():
    got = roofline.recommend(b10(), roofline.Model.of_letters(LLAMA))
    assert (got.strategy_name, got.attention, got.setting) == ("nvfp4_blackwell", "FA3", "decode")
    assert got.predicted_speedup == got.baseline_time_ms / got.predicted_time_ms
    assert got.precisions.operators["ffn_up"] == "nvfp4"
    assert got.precisions.operators["norm"] == "fp16"
    assert len(got.candidates) == 6
    assert got.prediction.time_ms == got.predicted_time_ms
    assert roofline.Model.of_letters(LLAMA) == dataclasses.replace(roofline.published_model(), name="custom")


def test_a_pass_is_the_sum_of_its_operators():
    got = roofline.predict_pass(b10(), model(), batch=2, past=100, tokens=3, strategy="fp8_balanced")
    assert [one.op for one in got.operators] == roofline.op_names()
    assert len(got.operators) == 17
    assert math.isclose(got.time_ms, sum(one.time_ms for one in got.operators), rel_tol=1e-12)
    assert got.time_ms >= got.shortest_ms
    everything = roofline.predict_pass(b10(), model(), past=100, strategy="int8")
    assert {one.precision for one in everything.operators} == {"int8"}


def test_generation_cache_and_attention():
    generation = roofline.predict_generation(b10(), model(), prompt_length=100, new_tokens=5)
    assert math.isclose(generation.total_ms, generation.prefill_ms + generation.decode_ms, rel_tol=1e-12)
    assert generation.kv_cache_bytes == roofline.kv_cache_bytes(model(), 104)
    narrow = roofline.kv_cache_bytes(model(), 32768, precision="nvfp4", recent_window=256)
    assert narrow == 1175 * 2**20
    assert roofline.kv_crossover_tokens(model()) == pytest.approx(2 * 8030261248 / 131072)
    kernels = roofline.compare_attention(
        b10(), n_head=32, n_kv_head=8, head_dim=128, query_tokens=1, kv_len=4096, efficiencies="reference"
    )
    assert [one.kernel for one in kernels] == roofline.attention_names()


def test_sweeps():
    machines = roofline.HardwareRegistry().all()
    products = roofline.sweep_gemm(machines, [(1, 8, 8), (2, 16, 8)], ["fp16", "fp8"])
    assert len(products) == 8 * 2 * 2
    assert (products[-1].hardware, products[-1].M, products[-1].precision) == ("gb10", 2, "fp8")
    points = roofline.sweep_models(
        machines[:2],
        [model()],
        strategies=["fp16_baseline"],
        batches=[1, 4],
        contexts=[128, 4096],
        prefill=True,
    )
    assert len(points) == 8
    want = roofline.predict_pass(machines[1], model(), batch=4, tokens=4096)
    assert points[-1].time_ms == want.time_ms


def test_formats_strategies_and_published_rows():
    sizes = {one.name: one.bytes_per_element for one in roofline.precisions()}
    assert sizes == {
        "fp32": 4,
        "fp16": 2,
        "bf16": 2,
        "fp8": 1,
        "int8": 1,
        "int4": 0.515625,
        "nvfp4": 0.5625,
    }
    assert len(roofline.strategies()) == 6
    rows = {row.name: row for row in roofline.published_results()}
    assert rows["nvfp4_blackwell at 4096: speed-up"].as_published == 2.59


def test_codecs_on_arrays():
    values = np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)
    half = values.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(roofline.round_trip(values, "fp16"), half)
    np.testing.assert_array_equal(roofline.round_trip(values[:, ::2], "fp32"), values[:, ::2])
    scale = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
    int8 = np.clip(np.rint(values / scale), -127, 127) * scale
    np.testing.assert_array_equal(roofline.round_trip(values, "int8"), int8)
    quality = roofline.measure_quality(values, "int8")
    error = np.linalg.norm(int8.astype(np.float64) - values) / np.linalg.norm(values.astype(np.float64))
    assert quality.relative_rms_error == pytest.approx(error, rel=1e-6)
    assert roofline.measure_quality([1.0, 2.0], "fp16").signal_to_noise_db == math.inf
    assert roofline.round_trip([1.0, 2.0], "fp8").shape == (2,)
    with pytest.raises(ValueError, match="finite values, got nan at index 1"):
        roofline.round_trip([1.0, math.nan], "int4")


def test_fp8_is_that_of_torch():
    torch = pytest.importorskip("torch")
    values = torch.randn(64, generator=torch.Generator().manual_seed(1)) * 10
    scale = values.abs().max() / 448
    want = (values / scale).to(torch.float8_e4m3fn).float() * scale
    np.testing.assert_array_equal(roofline.round_trip(values.numpy(), "fp8"), want.numpy())
    brain = values.to(torch.bfloat16).float()
    np.testing.assert_array_equal(roofline.round_trip(values.numpy(), "bf16"), brain.numpy())


def test_dynamic_quantiser():
    quantiser = roofline.DynamicQuantizer(["int8", "fp16"], calm_steps=1)
    wild = np.ones(1000, np.float32)
    wild[:500] = -1
    wild[7], wild[8] = 100, -100
    assert quantiser.observe("q", wild).after == "fp16"
    assert quantiser.observe("q", np.ones(4)).after == "int8"
    assert [one.step for one in quantiser.log()] == [0, 1]
    assert quantiser.precision_of("unseen") == "int8"


CALIBRATION = {
    "schema_version": 1,
    "machine": "a machine",
    "kind": "cpu",
    "num_threads": 2,
    "time": "2026-01-01T00:00:00Z",
    "read_bytes_per_s": 1e11,
    "elementwise_bytes_per_s": 1e11,
    "pass_overhead_s": 0,
    "products": [{"precision": "fp32", "rows": 1, "in": 768, "out": 768, "seconds": 1e-4}],
    "attentions": [],
}


def test_calibration():
    calibration = roofline.Calibration(json.dumps(CALIBRATION))
    assert json.loads(calibration.json()) == CALIBRATION
    assert calibration.roofs("fp32").matmul_flops_per_s == 2 * 768 * 768 / 1e-4
    assert calibration.hardware().info.profile == "calibrated"
    gpt2 = roofline.Model.preset("gpt2")
    step = calibration.predict_pass(gpt2, past=10)
    # one rate: 12 layers of 12 x 768^2 and the head
    assert step.products_ms == pytest.approx(1e3 * (144 * 768**2 + 768 * 50257) / (768**2 / 1e-4), rel=1e-12)
    both = calibration.predict_generation(gpt2, prompt_length=11, new_tokens=1)
    assert both.products_ms > step.products_ms
    registry = roofline.HardwareRegistry()
    registry.add(calibration.hardware("here"))
    assert registry.find("here").info.title == "a machine"
    with pytest.raises(ValueError, match=r"c\.json\.num_threads: expected a whole number"):
        roofline.Calibration(json.dumps(CALIBRATION | {"num_threads": 0}), "c.json")


@pytest.mark.parametrize("path", sorted((ROOT / "docs/results").glob("*.jsonl")), ids=lambda path: path.stem)
def test_no_record_of_this_project_lies_above_its_roof(path):
    got = roofline.validate(path.read_text(), path.name)
    assert got.records
    assert got.above_roof == 0
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for one in got.records:
        assert one.shortest_ms == pytest.approx(records[one.line - 1]["shortest_ms"], rel=1e-9)


WRONG = {
    "unknown hardware": (lambda: roofline.get_hardware("h1000"), r"did you mean h100\?"),
    "unknown format": (lambda: roofline.predict_gemv(b10(), 1, 1, "fp7"), "precision: expected one of"),
    "unknown strategy": (
        lambda: roofline.predict_pass(b10(), model(), strategy="fp17"),
        "strategy: expected",
    ),
    "unknown model": (
        lambda: roofline.Model.preset("lama-3-8b"),
        r"one of gpt2, .* \(did you mean llama-3-8b\?",
    ),
    "unknown profile": (lambda: roofline.get_hardware("h100", "vendors"), r"did you mean vendor\?"),
    "negative size": (lambda: roofline.predict_gemv(b10(), -1, 1, "fp8"), "1 <= N <= 2147483648, got -1"),
    "huge size": (
        lambda: roofline.predict_gemv(b10(), 2**70, 1, "fp8"),
        "to fit 64 bits, got a number of 71",
    ),
    "fraction": (lambda: roofline.predict_gemv(b10(), 1.5, 1, "fp8"), "to be a whole number, got 1.5"),
    "not a number": (
        lambda: roofline.recommend(b10(), model(), min_speedup=math.nan),
        "min_speedup .* got nan",
    ),
    "heads": (lambda: roofline.recommend(b10(), model(n_kv_head=5)), "n_head to be a multiple of n_kv_head"),
    "text for a size": (lambda: roofline.recommend(b10(), model(d_ff="big")), "d_ff to be a whole number"),
    "flag": (lambda: roofline.recommend(b10(), model(bias=1)), "bias to be true or false, got 1"),
    "letters": (lambda: roofline.Model.of_letters({"H": 1}), "expected the keys H, L, nh, nkv, dh, dff"),
    "efficiencies": (
        lambda: roofline.compare_attention(
            b10(), n_head=1, n_kv_head=1, head_dim=8, query_tokens=1, kv_len=1, efficiencies="x"
        ),
        'expected "papers" or "reference"',
    ),
    "damaged record": (lambda: roofline.validate("{", "r.jsonl"), "r.jsonl:1: expected JSON"),
}


@pytest.mark.parametrize("name", WRONG)
def test_one_sentence_names_field_rule_and_value(name):
    call, message = WRONG[name]
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
