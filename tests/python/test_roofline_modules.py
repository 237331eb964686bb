"""The documented module and class names: thin, so what they say is what kvfuse.roofline says."""

import doctest
import importlib
import os
import subprocess
import sys
from dataclasses import asdict

import pytest
from conftest import REPOSITORY
from kvfuse import roofline
from kvfuse.roofline import (
    calculator_shell,
    dynamic_quant,
    flash_attention,
    hardware_registry,
    kernel_shell,
    mixed_precision,
    quantization_integration,
)
from kvfuse.roofline.measure import GEMMKernel

B10 = hardware_registry.BLACKWELL_B10
LLAMA = {"H": 4096, "L": 32, "nh": 32, "nkv": 8, "dh": 128, "dff": 14336}


def run(*words):
    result = subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY / "python")},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_calculator():
    assert B10.info.bandwidth_gb_s.value == 287
    calculator = calculator_shell.RooflineCalculator(B10)
    assert calculator.predict_gemv(300, 500, "FP8") == asdict(roofline.predict_gemv(B10, 300, 500, "fp8"))
    got = calculator.predict_gemm(64, 300, 500, "NVFP4")
    assert got == asdict(roofline.predict_gemm(B10, 64, 300, 500, "nvfp4"))
    assert {"predicted_time_us", "bottleneck", "ai", "critical_ai", "flops", "bytes"} <= set(got)
    with pytest.raises(ValueError, match="1 <= N <= 2147483648, got 0"):
        calculator.predict_gemv(0, 1, "fp8")


def test_the_engine():
    engine = quantization_integration.IntegratedQuantizationEngine(B10)
    got = engine.recommend(LLAMA, "decode", 4096)
    assert (got.config.strategy_name, got.flash_attention) == ("nvfp4_blackwell", "FA3")
    assert got.config.precisions.operators["ffn_down"] == "nvfp4"
    want = roofline.recommend(B10, roofline.Model.of_letters(LLAMA), phase="decode", seq_len=4096)
    assert got.recommendation == want
    assert (got.predicted_speedup, got.reasons) == (want.predicted_speedup, want.reasons)
    long = engine.recommend(roofline.published_model(), "decode", 32768, max_quality_loss=0.5)
    assert (long.config.strategy_name, long.kv_cache_mb, long.quality_loss) == ("fp16_baseline", 4096, 0)
    assert engine.recommend(LLAMA, "decode", 32768).kv_cache_mb == 1175
    assert engine.recommend(LLAMA, "decode", 4096, 64).memory_savings != got.memory_savings
    assert "speed-up of 50" in engine.recommend(LLAMA, "decode", 4096, min_speedup=50).reasons[-1]
    with pytest.raises(ValueError, match="expected the keys H, L, nh, nkv, dh, dff"):
        engine.recommend({"H": 4096}, "decode", 4096)


def test_the_others_are_the_same_objects():
    assert mixed_precision.strategies is roofline.strategies
    assert len(mixed_precision.op_names()) == 17
    assert dynamic_quant.DynamicQuantizer is roofline.DynamicQuantizer
    assert flash_attention.compare_attention is roofline.compare_attention
    assert hardware_registry.get_hardware is roofline.get_hardware
    assert kernel_shell.GEMMKernel is GEMMKernel


@pytest.mark.parametrize("name", ["", ".calculator_shell", ".quantization_integration"])
def test_examples_in_the_documentation(name):
    results = doctest.testmod(importlib.import_module(f"kvfuse.roofline{name}"))
    assert results.attempted > 0
    assert results.failed == 0


def test_the_calculator_as_a_program():
    lines = run("-m", "kvfuse.roofline.calculator_shell").splitlines()
    assert lines[0].startswith("NVIDIA GB10")
    assert lines[1] == "  FP16:  116.97 us, 1.00 FLOPs a byte, bound by memory"
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["FP16", "FP8", "INT4", "NVFP4"]


def test_the_demonstration():
    output = run(REPOSITORY / "examples" / "quantization_demo.py")
    assert "  fp16: 116.97 us, bound by memory" in output
    assert "Recommended: nvfp4_blackwell with FA3, because:" in output
    assert "  fp16: 4096 MiB\n  int8: 2112 MiB\n  nvfp4: 1175 MiB" in output
    assert "Step 1: nvfp4 -> fp8 (raised:" in output
    assert "Step 3: fp8 -> nvfp4 (lowered: calm for 2 steps)" in output
