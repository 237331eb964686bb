"""What must hold of every prediction, whatever is asked; hypothesis looks for what breaks it."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kvfuse import roofline

settings.register_profile("roofline", max_examples=60, deadline=None, derandomize=True)
settings.load_profile("roofline")

PRECISIONS = ["fp32", "fp16", "bf16", "fp8", "int8", "int4", "nvfp4"]
STRATEGIES = [one.name for one in roofline.strategies()]
ROUNDING = 1e-12  # of sums of 17 numbers

machines = st.sampled_from(roofline.HardwareRegistry().all())
precisions = st.sampled_from(PRECISIONS)
strategies = st.sampled_from(STRATEGIES)
sizes = st.integers(1, 1 << 17)
batches = st.integers(1, 512)
contexts = st.integers(1, 1 << 17)


@st.composite
def models(draw):
    """GPT-2 and Llama shapes, K and V shared by groups of heads and of layers."""
    architecture = draw(st.sampled_from(["gpt2", "llama"]))
    kv_heads, group = draw(st.integers(1, 16)), draw(st.sampled_from([1, 2, 3, 8]))
    head_dim = draw(st.sampled_from([16, 64, 80, 128]))
    layers = draw(st.integers(1, 40))
    return roofline.Model(
        n_layer=layers,
        n_embd=kv_heads * group * head_dim,
        n_head=kv_heads * group,
        n_kv_head=kv_heads,
        head_dim=head_dim,
        d_ff=draw(st.integers(1, 20000)),
        vocab_size=draw(st.sampled_from([0, 32000, 50257])),
        borrowing_layers=draw(st.integers(0, layers - 1)),
        bias=draw(st.booleans()),
        architecture=architecture,
    )


def made(bandwidth, peaks, memory=80):
    """A machine of one's own."""

    def figure(value):
        return {"value": value, "source": "made up"}

    entry = {
        "name": "made",
        "title": "Made up",
        "kind": "gpu",
        "bandwidth_gb_s": figure(bandwidth),
        "peak_tflop_s": {name: figure(peak) for name, peak in peaks.items()},
        "memory_gb": figure(memory),
    }
    return entry


def machine(entry, tmp_path_factory):
    path = tmp_path_factory.mktemp("hardware") / "made.json"
    path.write_text(json.dumps({"schema_version": 1, "hardware": [entry]}))
    registry = roofline.HardwareRegistry()
    registry.add_file(path)
    return registry.find("made")


@given(machines, sizes, sizes, sizes, precisions)
def test_a_product_is_never_below_a_roof(hardware, M, N, K, precision):
    got = roofline.predict_gemm(hardware, M, N, K, precision)
    info = hardware.info
    assert got.predicted_time_us >= 1e6 * got.bytes / (info.bandwidth_gb_s.value * 1e9)
    assert got.predicted_time_us >= 1e6 * got.flops / (info.peak_tflop_s[got.computed_in].value * 1e12)
    assert got.predicted_tflops <= info.peak_tflop_s[got.computed_in].value * (1 + ROUNDING)
    assert got.predicted_bandwidth_gb_s <= info.bandwidth_gb_s.value * (1 + ROUNDING)
    assert 0 < got.ai < math.inf


@given(machines, models(), batches, contexts, strategies, st.booleans())
def test_a_pass_is_never_below_a_roof_and_is_its_operators(
    hardware, model, batch, past, strategy, count_activations
):
    got = roofline.predict_pass(
        hardware, model, batch=batch, past=past, strategy=strategy, count_activations=count_activations
    )
    bandwidth = hardware.info.bandwidth_gb_s.value * 1e9
    for one in got.operators:
        peak = hardware.info.peak_tflop_s[one.computed_in].value * 1e12
        assert one.time_ms == max(1e3 * one.bytes / bandwidth, 1e3 * one.flops / peak)
    assert got.time_ms >= max(got.memory_ms, got.compute_ms) * (1 - ROUNDING)
    assert got.shortest_ms == max(got.memory_ms, got.compute_ms) <= got.time_ms * (1 + ROUNDING)
    for field in ("flops", "bytes", "memory_ms", "compute_ms", "time_ms"):
        total = math.fsum(getattr(one, field) for one in got.operators)
        assert getattr(got, field) == pytest.approx(total, rel=ROUNDING), field
    parts = got.weight_bytes + got.cache_bytes + got.activation_bytes
    assert got.bytes == pytest.approx(parts, rel=ROUNDING)


@given(machines, sizes, sizes, sizes, precisions, st.sampled_from(["M", "N", "K"]))
def test_more_bytes_and_flops_never_take_less_time(hardware, M, N, K, precision, grown):
    shape = {"M": M, "N": N, "K": K}
    small = roofline.predict_gemm(hardware, **shape, precision=precision)
    shape[grown] += 1
    large = roofline.predict_gemm(hardware, **shape, precision=precision)
    assert large.bytes > small.bytes
    assert large.flops > small.flops
    assert large.predicted_time_us >= small.predicted_time_us


@given(machines, models(), batches, contexts, strategies, st.sampled_from(["batch", "past", "tokens"]))
def test_a_larger_pass_never_takes_less_time(hardware, model, batch, past, strategy, grown):
    how = {"batch": batch, "past": past, "tokens": 2}
    small = roofline.predict_pass(hardware, model, **how, strategy=strategy)
    how[grown] += 1
    large = roofline.predict_pass(hardware, model, **how, strategy=strategy)
    assert large.bytes >= small.bytes
    assert large.flops > small.flops
    assert large.time_ms >= small.time_ms * (1 - ROUNDING)


rates = st.floats(0.5, 1e5)


@settings(max_examples=25)
@given(bandwidth=rates, peak=rates, factor=st.floats(1, 100), model=models(), batch=batches, past=contexts)
def test_a_faster_machine_never_takes_longer(bandwidth, peak, factor, model, batch, past, tmp_path_factory):
    def time_ms(bandwidth, peak):
        hardware = machine(made(bandwidth, {"fp16": peak}), tmp_path_factory)
        return roofline.predict_pass(hardware, model, batch=batch, past=past).time_ms

    time = time_ms(bandwidth, peak)
    assert time_ms(bandwidth * factor, peak) <= time * (1 + ROUNDING)
    assert time_ms(bandwidth, peak * factor) <= time * (1 + ROUNDING)
    assert time_ms(bandwidth * factor, peak * factor) == pytest.approx(time / factor, rel=1e-9)


@settings(max_examples=25)
@given(exponent=st.integers(-6, 6), bandwidth=rates, peak=rates, M=sizes, N=sizes, K=sizes)
def test_scaling_by_a_power_of_two_is_exact(exponent, bandwidth, peak, M, N, K, tmp_path_factory):
    scale = 2.0**exponent
    slow, fast = (
        roofline.predict_gemm(
            machine(made(bandwidth * by, {"fp16": peak * by}), tmp_path_factory), M, N, K, "fp16"
        )
        for by in (1, scale)
    )
    assert fast.predicted_time_us * scale == pytest.approx(slow.predicted_time_us, rel=1e-15)
    assert (fast.critical_ai, fast.bottleneck) == (
        pytest.approx(slow.critical_ai, rel=1e-15), slow.bottleneck
    )  # fmt: skip


@given(models(), contexts, batches, st.integers(2, 9), precisions)
def test_the_cache_grows_with_batch_and_context_in_proportion(model, tokens, batch, factor, precision):
    one = roofline.kv_cache_bytes(model, tokens, batch=batch, precision=precision)
    assert roofline.kv_cache_bytes(model, tokens * factor, batch=batch, precision=precision) == one * factor
    assert roofline.kv_cache_bytes(model, tokens, batch=batch * factor, precision=precision) == one * factor


@given(models(), contexts, st.integers(0, 1 << 12), precisions)
def test_a_recent_window_costs_no_more_than_16_bits(model, tokens, window, precision):
    def nbytes(recent_window):
        return roofline.kv_cache_bytes(model, tokens, precision=precision, recent_window=recent_window)

    wide = roofline.kv_cache_bytes(model, tokens, precision="fp32" if precision == "fp32" else "fp16")
    assert nbytes(0) <= nbytes(window) <= nbytes(window + 1) <= wide


@given(machines, st.integers(1, 64), st.integers(1, 8192), st.integers(128, 8192))
def test_a_quantised_product_moves_no_more(hardware, M, N, K):
    def nbytes(precision):
        return roofline.predict_gemm(hardware, M, N, K, precision).bytes

    # From 128 inputs on: of shorter rows a scale may weigh more than the bits saved.
    assert nbytes("int4") <= nbytes("nvfp4") * (1 + 2 / K) <= nbytes("fp8") * (1 + 2 / K)
    assert nbytes("fp8") <= nbytes("int8") <= nbytes("fp16") == nbytes("bf16") < nbytes("fp32")


@given(machines, models(), batches, contexts, strategies)
def test_a_quantised_pass_reads_no_more(hardware, model, batch, past, strategy):
    model = dataclasses.replace(model, d_ff=-(-model.d_ff // 128) * 128)
    got, wide = (
        roofline.predict_pass(hardware, model, batch=batch, past=past, strategy=name)
        for name in (strategy, "fp16_baseline")
    )
    assert got.weight_bytes <= wide.weight_bytes
    assert got.cache_bytes <= wide.cache_bytes
    assert got.flops >= wide.flops  # what rounding K and V takes
    assert got.activation_bytes == wide.activation_bytes


@given(
    machines, models(), st.sampled_from(["auto", "decode", "prefill"]), contexts, st.integers(1, 64),
    st.floats(0, 6), st.booleans(),
)  # fmt: skip
def test_the_recommendation_is_never_slower_than_the_baseline(
    hardware, model, phase, seq_len, batch, loss, storage_only
):
    got = roofline.recommend(
        hardware,
        model,
        phase=phase,
        seq_len=seq_len,
        batch=batch,
        max_quality_loss_pct=loss,
        allow_storage_only=storage_only,
    )
    assert got.predicted_time_ms <= got.baseline_time_ms
    assert got.quoted_loss_pct <= loss
    admitted = [one for one in got.candidates if one.admitted]
    assert got.predicted_time_ms == min(one.time_ms for one in admitted)
    assert got.strategy_name in [one.strategy_name for one in admitted]
    assert all(one.admitted == (one.refusal == "") for one in got.candidates)
    chosen = next(one for one in got.attentions if one.kernel == got.attention)
    assert chosen.time_ms == min(one.time_ms for one in got.attentions)


values = st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=300)


@given(values, precisions)
def test_decoding_gives_finite_values_of_the_same_sign(row, precision):
    got = roofline.round_trip(np.float32(row), precision)
    if precision == "fp16":  # has a largest value, beyond which is infinity
        got = np.nan_to_num(got, posinf=65504, neginf=-65504)
    assert np.isfinite(got).all()
    assert (got * np.sign(row) >= 0).all()


@given(values, st.sampled_from(["fp32", "fp16", "bf16", "fp8", "int8"]))
def test_what_was_decoded_comes_back_unchanged(row, precision):
    once = roofline.round_trip(np.clip(np.float32(row), -60000, 60000), precision)
    again = roofline.round_trip(once, precision)
    # A scale is absmax over the largest code: decoding and encoding it again may round it once more.
    np.testing.assert_allclose(again, once, rtol=0 if "p" in precision and precision != "fp8" else 3e-7)


@given(values, st.sampled_from(["fp32", "bf16", "fp8", "int8"]), st.integers(-20, 20))
def test_formats_with_a_scale_follow_a_power_of_two(row, precision, exponent):
    row = np.clip(np.float32(row), -1e20, 1e20)
    row[np.abs(row) < 1e-10] = 0  # far from numbers that lose bits when they shrink
    scaled = roofline.round_trip(row * np.float32(2.0**exponent), precision)
    np.testing.assert_array_equal(scaled, roofline.round_trip(row, precision) * np.float32(2.0**exponent))


@given(machines, models(), contexts)
def test_what_is_answered_survives_json(hardware, model, seq_len):
    def through_json(answer):
        return json.loads(json.dumps(dataclasses.asdict(answer), allow_nan=False))

    recommendation = roofline.recommend(hardware, model, seq_len=seq_len)
    assert type(recommendation).of(through_json(recommendation)) == recommendation
    assert type(hardware.info).of(through_json(hardware.info)) == hardware.info
    assert roofline.Model(**through_json(model)) == model


@given(
    st.floats(1e6, 1e13), st.floats(1e6, 1e13), st.floats(0, 1),
    st.dictionaries(
        st.tuples(precisions, st.integers(1, 1 << 20), st.integers(1, 1 << 20)), st.floats(1e-9, 10),
        min_size=1, max_size=5,
    ),
)  # fmt: skip
def test_a_calibration_survives_its_file(read, elementwise, overhead, products):
    text = json.dumps({
        "schema_version": 1, "machine": "made up", "kind": "cpu", "num_threads": 2, "time": "2026-01-01",
        "read_bytes_per_s": read, "elementwise_bytes_per_s": elementwise, "pass_overhead_s": overhead,
        "products": [
            {"precision": precision, "rows": rows, "in": 64, "out": out, "seconds": seconds}
            for (precision, rows, out), seconds in products.items()
        ],
        "attentions": [],
    })  # fmt: skip
    once = roofline.Calibration(text).json()
    assert roofline.Calibration(once).json() == once
    kept = json.loads(once)
    assert {key: kept[key] for key in json.loads(text)} == json.loads(text)
