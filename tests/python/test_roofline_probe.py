"""C++ and Python give the same doubles, bit for bit: a program of the C++ library answers over a grid."""

import itertools
import subprocess

import pytest
from kvfuse import roofline

MACHINES = [(one.name, "vendor") for one in roofline.HardwareRegistry().all()] + [
    (name, "reference") for name in ("gb10", "b200", "h100", "a100-80")
]
LLAMAS = ("tinyllama-1.1b", "llama-2-13b", "llama-3-8b", "llama-3-70b")


def products():
    for (name, profile), M, K, precision in itertools.product(
        MACHINES, (1, 7, 4096), (17, 4096, 11008), ("fp16", "fp8", "int8", "int4", "nvfp4")
    ):
        got = roofline.predict_gemm(roofline.get_hardware(name, profile), M, 1000, K, precision)
        yield (
            f"gemm {name} {profile} {precision} {M} 1000 {K}",
            [got.flops, got.bytes, got.weight_bytes, got.ai, got.critical_ai, got.memory_time_us,
             got.compute_time_us, got.predicted_time_us, got.predicted_tflops, got.predicted_bandwidth_gb_s],
        )  # fmt: skip


def passes():
    strategies = [one.name for one in roofline.strategies()]
    for (name, profile), model, strategy, (batch, past, tokens) in itertools.product(
        MACHINES[::3], LLAMAS, strategies, ((1, 0, 1), (3, 4095, 1), (2, 100, 511))
    ):
        got = roofline.predict_pass(
            roofline.get_hardware(name, profile),
            roofline.Model.preset(model),
            batch=batch,
            past=past,
            tokens=tokens,
            strategy=strategy,
        )
        numbers = [got.flops, got.weight_bytes, got.cache_bytes, got.activation_bytes, got.bytes, got.ai,
                   got.memory_ms, got.compute_ms, got.time_ms, got.shortest_ms]  # fmt: skip
        for one in got.operators:
            numbers += [one.flops, one.bytes, one.ai, one.critical_ai, one.memory_ms, one.compute_ms,
                        one.time_ms]  # fmt: skip
        yield f"pass {name} {profile} {model} {strategy} {batch} {past} {tokens}", numbers


def attentions():
    for (name, profile), heads, kv_heads, queries, length in itertools.product(
        MACHINES, (8, 32), (1, 8), (1, 77), (77, 30011)
    ):
        found = roofline.compare_attention(
            roofline.get_hardware(name, profile),
            batch=3,
            n_head=heads,
            n_kv_head=kv_heads,
            head_dim=80,
            query_tokens=queries,
            kv_len=length,
        )
        numbers = [
            value
            for one in found
            for value in (
                one.flops,
                one.bytes,
                one.ai,
                one.memory_ms,
                one.compute_ms,
                one.time_ms,
                one.speedup,
            )
        ]
        yield f"attention {name} {profile} 3 {heads} {kv_heads} 80 {queries} {length}", numbers


def recommendations():
    for (name, profile), model, phase, seq_len in itertools.product(
        MACHINES, LLAMAS, ("auto", "decode", "prefill"), (127, 50001)
    ):
        got = roofline.recommend(
            roofline.get_hardware(name, profile),
            roofline.Model.preset(model),
            phase=phase,
            seq_len=seq_len,
            batch=3,
        )
        numbers = [got.predicted_time_ms, got.baseline_time_ms, got.predicted_speedup, got.memory_saving,
                   got.weight_bytes, got.kv_cache_bytes]  # fmt: skip
        for one in got.candidates:
            numbers += [one.time_ms, one.speedup, one.weight_bytes, one.kv_cache_bytes, one.memory_saving]
        yield f"recommend {name} {profile} {model} {phase} {seq_len} 3", numbers


@pytest.mark.parametrize("grid", [products, passes, attentions, recommendations])
def test_same_bits(built, grid):
    questions, answers = zip(*grid(), strict=True)
    result = subprocess.run(
        [built("tests/roofline_probe")],
        input="\n".join(questions) + "\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == len(questions) > 90
    for question, line, answer in zip(questions, lines, answers, strict=True):
        assert line.split() and [float.fromhex(word) for word in line.split()] == answer, question
