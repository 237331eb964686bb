"""Matrix products and machines of the roofline against arithmetic that stands in the table beside each case.

A product [M, K] x [N, K]^T does 2 M N K FLOPs. It moves its weights N K in their format with the scales of
that format (INT8: 4 bytes a row; INT4: 2 bytes for 128 values; NVFP4: 1 byte for 16) and M K + M N
activations in 16 bits, in 32 beside FP32 weights.
"""

from fractions import Fraction as F

import pytest
from kvfuse import roofline

VENDOR, STUDY = "vendor", "reference"  # whose figures of the machine
ACTS = 2 * (4096 + 4096)  # of one row through 4096 x 4096
W = 4096 * 4096

# machine, profile, (M, N, K), format, bytes, GB/s, TFLOP/s, format of the arithmetic
PRODUCTS = [
    # The published GB10
    ("gb10", STUDY, (1, 4096, 4096), "fp16", 2 * W + ACTS, 287, 62, "fp16"),
    ("gb10", STUDY, (1, 4096, 4096), "fp8", W + ACTS, 287, 124, "fp8"),
    ("gb10", STUDY, (1, 4096, 4096), "int4", W // 2 + 2 * W // 128 + ACTS, 287, 248, "int4"),
    ("gb10", STUDY, (1, 4096, 4096), "nvfp4", W // 2 + W // 16 + ACTS, 287, 1000, "nvfp4"),
    ("gb10", STUDY, (1, 4096, 4096), "int8", W + 4 * 4096 + ACTS, 287, 62, "fp16"),
    ("gb10", STUDY, (1, 14336, 4096), "fp8", 14336 * 4096 + 2 * (4096 + 14336), 287, 124, "fp8"),
    ("gb10", STUDY, (1, 128256, 4096), "fp16", 2 * 128256 * 4096 + 2 * (4096 + 128256), 287, 62, "fp16"),
    ("gb10", STUDY, (2048, 4096, 4096), "fp16", 2 * W + 2048 * ACTS, 287, 62, "fp16"),
    ("gb10", STUDY, (2048, 4096, 4096), "nvfp4", 9 * W // 16 + 2048 * ACTS, 287, 1000, "nvfp4"),
    # The others as published
    ("b200", STUDY, (1, 4096, 4096), "fp16", 2 * W + ACTS, 8000, 180, "fp16"),
    ("b200", STUDY, (4096, 4096, 4096), "fp8", W + 4096 * ACTS, 8000, 4500, "fp8"),
    ("h100", STUDY, (64, 4096, 4096), "fp16", 2 * W + 64 * ACTS, 3350, 134, "fp16"),
    ("h100", STUDY, (1, 4096, 4096), "nvfp4", 9 * W // 16 + ACTS, 3350, 134, "fp16"),
    ("a100", STUDY, (1, 4096, 4096), "int4", W // 2 + W // 64 + ACTS, 2039, 624, "int4"),
    ("a100", STUDY, (1, 4096, 4096), "fp8", W + ACTS, 2039, 312, "fp16"),
    ("a6000", STUDY, (1, 4096, 4096), "bf16", 2 * W + ACTS, 768, 312, "bf16"),
    # The vendors' figures
    ("a6000", VENDOR, (1, 768, 768), "fp32", 4 * (768**2 + 768 + 768), 768, F("38.7"), "fp32"),
    ("a6000", VENDOR, (1, 50257, 768), "fp16", 2 * (50257 * 768 + 768 + 50257), 768, F("154.8"), "fp16"),
    ("a6000", VENDOR, (512, 3072, 768), "int8",
     3072 * (768 + 4) + 2 * 512 * (768 + 3072), 768, F("309.7"), "int8"),
    ("a6000", VENDOR, (1, 100, 130), "int4", 100 * (65 + 2 * 2) + 2 * (130 + 100), 768, F("619.3"), "int4"),
    ("rtx4090", VENDOR, (1, 11008, 4096), "fp8", 11008 * 4096 + 2 * (4096 + 11008), 1008, F("330.3"), "fp8"),
    ("rtx4090", VENDOR, (1024, 4096, 4096), "fp16", 2 * W + 1024 * ACTS, 1008, F("165.2"), "fp16"),
    ("rtx4090", VENDOR, (1, 4096, 11008), "nvfp4",
     4096 * 11008 * F(9, 16) + 2 * (4096 + 11008), 1008, F("165.2"), "fp16"),
    ("rtx4090", VENDOR, (300, 500, 700), "int8",
     500 * (700 + 4) + 2 * 300 * (700 + 500), 1008, F("660.6"), "int8"),
    ("a100-40", VENDOR, (1, 1024, 1024), "bf16", 2 * (1024**2 + 1024 + 1024), 1555, 312, "bf16"),
    ("a100-40", VENDOR, (128, 1024, 4096), "fp32", 4 * (1024 * 4096 + 128 * 5120), 1555, F("19.5"), "fp32"),
    ("a100-80", VENDOR, (1, 8192, 8192), "int8", 8192 * (8192 + 4) + 4 * 8192, 2039, 624, "int8"),
    ("a100-80", VENDOR, (4096, 8192, 8192), "int4",
     8192**2 // 2 + 8192**2 // 64 + 2 * 4096 * 2 * 8192, 2039, 1248, "int4"),
    ("h100", VENDOR, (1, 4096, 4096), "fp8", W + ACTS, 3350, F("1978.9"), "fp8"),
    ("h100", VENDOR, (7, 100, 130), "int8", 100 * (130 + 4) + 2 * 7 * (130 + 100), 3350, F("1978.9"), "int8"),
    ("h100", VENDOR, (1, 4096, 4096), "int4", W // 2 + W // 64 + ACTS, 3350, F("989.4"), "fp16"),
    ("h100", VENDOR, (16384, 4096, 4096), "bf16", 2 * W + 16384 * ACTS, 3350, F("989.4"), "bf16"),
    ("h200", VENDOR, (1, 28672, 8192), "fp8", 28672 * 8192 + 2 * (28672 + 8192), 4800, F("1978.9"), "fp8"),
    ("h200", VENDOR, (1, 1, 1), "fp32", 4 * 3, 4800, F("66.9"), "fp32"),
    ("h200", VENDOR, (1, 3, 17), "nvfp4", 3 * (F(17, 2) + 2) + 2 * (17 + 3), 4800, F("989.4"), "fp16"),
    ("b200", VENDOR, (1, 4096, 4096), "nvfp4", 9 * W // 16 + ACTS, 8000, 9000, "nvfp4"),
    ("b200", VENDOR, (8192, 8192, 8192), "nvfp4", 9 * 8192**2 // 16 + 2 * 2 * 8192**2, 8000, 9000, "nvfp4"),
    ("b200", VENDOR, (8192, 8192, 8192), "fp32", 4 * 3 * 8192**2, 8000, 80, "fp32"),
    ("gb10", VENDOR, (1, 4096, 4096), "fp16", 2 * W + ACTS, 273, 125, "fp16"),
    ("gb10", VENDOR, (4096, 14336, 4096), "nvfp4",
     14336 * 4096 * F(9, 16) + 2 * 4096 * 18432, 273, 500, "nvfp4"),
    ("gb10", VENDOR, (1, 4096, 4096), "fp32", 4 * (W + 8192), 273, 31, "fp32"),
]  # fmt: skip


def close(value):
    """Of the exact ratio no more than rounding."""
    return pytest.approx(float(value), rel=4e-15, abs=0)


@pytest.mark.parametrize(
    "case", PRODUCTS, ids=lambda case: "-".join([case[0], case[1], *map(str, case[2]), case[3]])
)
def test_product(case):
    name, profile, (M, N, K), precision, nbytes, bandwidth, peak, computed_in = case
    flops = 2 * M * N * K
    got = roofline.predict_gemm(roofline.get_hardware(name, profile), M, N, K, precision)
    assert got.flops == flops
    assert got.bytes == nbytes
    memory_us, compute_us = F(nbytes, 1000) / bandwidth, F(flops, 10**6) / peak
    assert got.memory_time_us == close(memory_us)
    assert got.compute_time_us == close(compute_us)
    assert got.predicted_time_us == close(max(memory_us, compute_us))
    assert got.bottleneck == ("memory" if memory_us > compute_us else "compute")
    assert got.ai == close(F(flops) / F(nbytes))
    assert got.critical_ai == close(F(peak) * 1000 / bandwidth)
    assert got.predicted_tflops == close(F(flops, 10**6) / max(memory_us, compute_us))
    assert got.predicted_bandwidth_gb_s == close(F(nbytes, 1000) / max(memory_us, compute_us))
    assert (got.computed_in, got.storage_only) == (computed_in, computed_in != precision)


# As given to two decimals: format, without scales, bytes, us, FLOPs a byte.
GOLDEN = [
    ("fp16", False, 33570816, "116.97", "0.9995"),
    ("fp8", False, 16793600, "58.51", "1.998"),
    ("int4", True, 8404992, "29.29", "3.992"),
    ("nvfp4", True, 8404992, "29.29", "3.992"),
    ("nvfp4", False, 9453568, "32.94", "3.549"),
]


@pytest.mark.parametrize(("precision", "payload_only", "nbytes", "time_us", "ai"), GOLDEN)
@pytest.mark.parametrize("name", ["b10", "B10", "GB10", "BLACKWELL_B10"])
def test_published_gemv(name, precision, payload_only, nbytes, time_us, ai):
    b10 = roofline.get_hardware(name, "reference")
    got = roofline.predict_gemv(b10, 4096, 4096, precision, payload_only=payload_only)
    assert got.bytes == nbytes
    assert f"{got.predicted_time_us:.2f}" == time_us
    assert f"{got.ai:.{len(ai) - 2}f}" == ai
    assert got.bottleneck == "memory"


# machine, profile, format, published TFLOP/s over GB/s as the published table rounds it
RIDGES = [
    ("gb10", "fp16", 62, 287, "216"), ("gb10", "fp8", 124, 287, "432"),
    ("gb10", "nvfp4", 1000, 287, "3484"), ("gb10", "int4", 248, 287, "864"),
    ("b200", "fp16", 180, 8000, "22.5"), ("b200", "fp8", 4500, 8000, "562.5"),
    ("b200", "nvfp4", 9000, 8000, "1125"), ("b200", "int4", 9000, 8000, "1125"),
    ("h100", "fp16", 134, 3350, "40.0"), ("h100", "fp8", 1979, 3350, "590.7"),
    ("h100", "int4", 3958, 3350, "1181.5"), ("a100", "fp16", 312, 2039, "153.0"),
    ("a100", "int4", 624, 2039, "306.0"), ("a6000", "bf16", 312, 768, "406.25"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "precision", "peak", "bandwidth", "printed"), RIDGES)
def test_published_ridge(name, precision, peak, bandwidth, printed):
    got = roofline.get_hardware(name, "reference").critical_ai(precision)
    assert got == close(F(peak * 1000, bandwidth))
    digits = len(printed.partition(".")[2])
    assert abs(got - float(printed)) < 0.51 * 10**-digits  # one of them is cut, not rounded


# The vendors' dense rates: GB/s, GB, then fp32, fp16, bf16, fp8, int8, int4, nvfp4; None: not native.
MACHINES = {
    "a6000": (768, 48, [38.7, 154.8, 154.8, None, 309.7, 619.3, None]),
    "rtx4090": (1008, 24, [82.6, 165.2, 165.2, 330.3, 660.6, 1321.2, None]),
    "a100-40": (1555, 40, [19.5, 312, 312, None, 624, 1248, None]),
    "a100-80": (2039, 80, [19.5, 312, 312, None, 624, 1248, None]),
    "h100": (3350, 80, [66.9, 989.4, 989.4, 1978.9, 1978.9, None, None]),
    "h200": (4800, 141, [66.9, 989.4, 989.4, 1978.9, 1978.9, None, None]),
    "b200": (8000, 180, [80, 2250, 2250, 4500, 4500, None, 9000]),
    "gb10": (273, 128, [31, 125, 125, 250, 250, None, 500]),
}


@pytest.mark.parametrize("name", MACHINES)
def test_machine(name):
    bandwidth, memory, peaks = MACHINES[name]
    info = roofline.get_hardware(name).info
    formats = ["fp32", "fp16", "bf16", "fp8", "int8", "int4", "nvfp4"]
    want = {precision: peak for precision, peak in zip(formats, peaks, strict=True) if peak is not None}
    assert info.bandwidth_gb_s.value == bandwidth
    assert info.memory_gb is not None and info.memory_gb.value == memory
    assert {precision: peak.value for precision, peak in info.peak_tflop_s.items()} == want
    figures = [info.bandwidth_gb_s, info.memory_gb, *info.peak_tflop_s.values()]
    assert all(len(figure.source) > 15 for figure in figures)
    assert set(MACHINES) == set(roofline.HardwareRegistry().names())
