"""The number formats against their definitions, against PyTorch and numpy, and by hand."""

from fractions import Fraction as F

import numpy as np
import pytest
from kvfuse import roofline

torch = pytest.importorskip("torch")


def trip(values, precision):
    return roofline.round_trip(np.asarray(values, np.float32), precision)


def at_scale_one(values, largest):
    """Values as FP8 rounds them when the tensor's scale is 1: ``largest`` is in the row."""
    return trip(np.concatenate([np.asarray(values, np.float32), [largest]]).astype(np.float32), "fp8")[:-1]


def test_fp8_keeps_every_code():
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    assert np.isnan(codes).sum() == 2
    values = codes[~np.isnan(codes)]
    got = at_scale_one(values, 448)
    np.testing.assert_array_equal(got, values)
    np.testing.assert_array_equal(np.signbit(got), np.signbit(values))  # both zeros


def test_fp8_rounds_as_torch():
    codes = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    middles = (codes[1:] + codes[:-1]) / 2  # ties go to the even code
    beside = [torch.nextafter(middles, torch.tensor(side)) for side in (0.0, 1e9)]
    random = torch.randn(20000, generator=torch.Generator().manual_seed(2)) * torch.logspace(-4, 2, 20000)
    values = torch.cat([middles, *beside, random]).clamp(-448, 448)
    values = torch.cat([values, -values])
    want = values.to(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(at_scale_one(values.numpy(), 448), want)


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_16_bits_round_as_torch(precision, dtype):
    bits = torch.randint(-(2**31), 2**31, (20000,), generator=torch.Generator().manual_seed(3))
    values = bits.to(torch.int32).view(torch.float32)
    values = values[values.isfinite() & (values.abs() < (65504 if precision == "fp16" else 3e38))]
    small = torch.randn(20000, generator=torch.Generator().manual_seed(4)) * torch.logspace(-9, 4, 20000)
    values = torch.cat([values, small])
    np.testing.assert_array_equal(trip(values.numpy(), precision), values.to(dtype).float().numpy())


# An element alone fixes its scale; the other stands beside it in the same row.
# format, row, what comes back as exact fractions
BY_HAND = [
    # INT8: scale = largest / 127, codes rounded to nearest, ties to even
    ("int8", [127, -127, 1.4, 0.5, 1.5, 2.5], [127, -127, 1, 0, 2, 2]),
    ("int8", [254, 1, 3, -3, 100], [254, 0, 4, -4, 100]),  # scale 2: 0.5 to 0, 1.5 to 2
    ("int8", [63.5, -0.2, 0.25, 0.26, 31.3], [F("63.5"), 0, 0, F("0.5"), F("31.5")]),
    ("int8", [0, 0, 0], [0, 0, 0]),
    ("int8", [-127], [-127]),
    # INT4: scale = largest / 7 as a half, codes -7 to 7
    ("int4", [7, -7, 1.4, 0.5, 1.5, -6.6], [7, -7, 1, 0, 2, -7]),
    ("int4", [14, -5, 3, 1], [14, -4, 4, 0]),  # scale 2: -2.5 to -2, 1.5 to 2, 0.5 to 0
    ("int4", [1.75, 0.3, -0.8], [F("1.75"), F("0.25"), F("-0.75")]),
    ("int4", [1] + [0] * 5, [7 * F(1170, 8192), 0, 0, 0, 0, 0]),  # 1/7 as a half: 1170 / 8192
    # NVFP4: absmax 2688 = 6 x 448 makes the tensor's scale 1; of a block absmax / 6 as E4M3; values of E2M1
    ("nvfp4", [2688, -448, 224, 1344], [2688, -448, 224, 1344]),  # 448 x 6, -1, 0.5, 3
    ("nvfp4", [2688, 448 * 1.25, 448 * 2.5, 448 * 5], [2688, 448, 448 * 2, 448 * 4]),  # ties to even
    ("nvfp4", [2688] + [0] * 15 + [12, 3, -1, 1, 4, 8, 7], [2688] + [0] * 15 + [12, 3, -1, 1, 4, 8, 8]),
    ("nvfp4", [2688] + [0] * 15 + [6, 0.2, 0.3, 5.1], [2688] + [0] * 15 + [6, 0, F("0.5"), 6]),
    ("nvfp4", [2688] + [0] * 15 + [7.5, 5, 2], [2688] + [0] * 15 + [F("7.5"), 5, F("1.875")]),  # scale 1.25
    ("nvfp4", [2688] + [0] * 15 + [6.3, 6], [2688] + [0] * 15 + [6, 6]),  # 1.05 is 1 in E4M3
    ("nvfp4", [2688] + [0] * 15 + [6.6, 6], [2688] + [0] * 15 + [F("6.75"), F("6.75")]),  # 1.1 is 1.125
    ("nvfp4", [0] * 20, [0] * 20),
    # FP8: scale = largest / 448
    ("fp8", [448, 1.0625, 1.1875, 2.125, 0.001953125], [448, 1, F("1.25"), 2, F(1, 512)]),
    ("fp8", [896, 2, -1, 2.125, 500], [896, 2, -1, 2, 512]),  # scale 2
    ("fp8", [448, 2**-10, 1.5 * 2**-10, 2**-11], [448, 0, F(1, 512), 0]),  # below the least, a tie to 0
    ("fp8", [0, 0], [0, 0]),
]


@pytest.mark.parametrize(("precision", "row", "want"), BY_HAND)
def test_by_hand(precision, row, want):
    np.testing.assert_array_equal(trip(row, precision), [float(value) for value in want])


def nearest(values, table):
    """The nearest of an ascending table of values, of ties the one at the even index."""
    index = np.clip(np.searchsorted(table, values), 1, len(table) - 1)
    below, above = values - table[index - 1], table[index] - values
    up = (above < below) | ((above == below) & (index % 2 == 0))
    return np.where(up, table[index], table[index - 1])


def nvfp4_by_definition(matrix):
    """In float32 as the format's scales are; rounding by search in the tables of values."""
    e2m1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    e4m3 = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    tensor_scale = np.abs(matrix).max() / np.float32(6 * 448)
    result = np.empty_like(matrix)
    for start in range(0, matrix.shape[1], 16):
        block = matrix[:, start : start + 16]
        most = np.abs(block).max(axis=1, keepdims=True)
        scale = nearest(most / np.float32(6) / tensor_scale, e4m3).astype(np.float32) * tensor_scale
        with np.errstate(divide="ignore", invalid="ignore"):
            codes = np.minimum(np.where(scale > 0, np.abs(block) / scale, 0), 6)
        result[:, start : start + 16] = np.sign(block) * nearest(codes, e2m1) * scale
    return result


def int4_by_definition(matrix):
    result = np.empty_like(matrix)
    for start in range(0, matrix.shape[1], 128):
        block = matrix[:, start : start + 128]
        most = np.abs(block).max(axis=1, keepdims=True)
        scale = (most / np.float32(7)).astype(np.float16).astype(np.float32)
        result[:, start : start + 128] = np.clip(np.rint(block / scale), -7, 7) * scale
    return result


@pytest.mark.parametrize("columns", [1, 15, 16, 17, 127, 128, 129, 300])
@pytest.mark.parametrize("precision", ["nvfp4", "int4"])
def test_by_definition(precision, columns):
    random = np.random.default_rng(columns)
    matrix = random.normal(size=(9, columns)).astype(np.float32)
    matrix *= np.exp(random.normal(size=matrix.shape)).astype(np.float32)
    matrix[3, 0] *= 50  # an outlier: most blocks are small beside the tensor
    definition = nvfp4_by_definition if precision == "nvfp4" else int4_by_definition
    np.testing.assert_array_equal(trip(matrix, precision), definition(matrix))


def test_int8_is_that_of_the_cache():
    """The codec does to a tensor what this project's operators do to it, bit for bit."""
    import kvfuse

    values = torch.randn(2, 3, 40, 64, generator=torch.Generator().manual_seed(5)) * 7
    codes, scale = kvfuse.ops.quantize_kv(values)
    decoded = kvfuse.ops.dequantize_kv(codes, scale, torch.float32)
    np.testing.assert_array_equal(trip(values.reshape(-1, 64), "int8"), decoded.reshape(-1, 64))


@pytest.mark.parametrize("precision", ["fp8", "int8", "int4", "nvfp4"])
def test_no_value_is_further_off_than_its_step(precision):
    """Half the distance between neighbours: of integers the scale, of floats a share of the value."""
    values = np.random.default_rng(6).normal(size=(16, 128)).astype(np.float32)
    error = np.abs(trip(values, precision).astype(np.float64) - values)
    row_max = np.abs(values).max(axis=1, keepdims=True)
    if precision == "nvfp4":  # E2M1 has steps up to 2 of 6; the block's scale is off by up to 1 in 16
        bound = np.repeat(np.abs(values).reshape(16, 8, 16).max(axis=2), 16, axis=1) / 6 * (1 + 1 / 16)
    else:
        bound = {"int8": row_max / 254, "int4": row_max / 14 * 1.001}.get(
            precision, np.maximum(np.abs(values) / 16, np.abs(values).max() / 448 / 1024)
        )
    assert (error <= bound * (1 + 1e-6)).all()
    assert error.max() > bound.max() / 10  # the bound says something
