"""Operators of linear layers: results against float64, registration, messages, fuzzing."""

import os
import random
import re

import pytest
import torch
from kvfuse import ops
from linear_inputs import FORMATS, arguments_of, assert_right, rows_of, values_of
from op_inputs import FLOATS, one_thread
from torch import Tensor

OPS = torch.ops.kvfuse
CALLS = int(os.environ.get("KVFUSE_FUZZ_CALLS", "1000"))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("weight_format", FORMATS)
def test_linear(weight_format, dtype):
    for rows in [(), (1,), (2, 2), (32,), (33,), (5, 8), (0,)]:
        for norm in (False, True):
            for gelu in ("none", "tanh", "exact"):
                given = arguments_of(weight_format, dtype, rows, norm=norm, bias=norm, gelu=gelu)
                assert_right(ops.linear(**given), given)


@pytest.mark.parametrize("rows", [1, 40])
def test_fine_activations(rows):
    given = arguments_of("int8", rows=(rows,), width=768, norm=False, gelu="none")
    given["x"][:, 100] = 50.0  # the block that holds it keeps all its bits
    fine = given | {"fine_activations": True}
    assert_right(ops.linear(**given), given)
    assert_right(ops.linear(**fine), fine)
    exact = torch.nn.functional.linear(
        given["x"].double(), values_of(given["weight"], given["weight_scale"]), given["bias"].double()
    )
    coarse_error, fine_error = (
        (ops.linear(**arguments) - exact).square().mean().sqrt() for arguments in (given, fine)
    )
    assert 0 < 4 * fine_error < coarse_error < 0.02


def test_linear_of_a_strided_x():
    given = arguments_of("int8")
    whole = given["x"]
    given["x"] = whole.t().contiguous().t()
    assert not given["x"].is_contiguous()
    assert torch.equal(ops.linear(**given), ops.linear(**(given | {"x": whole})))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("weight_format", ["int8", "int4"])
def test_quantize_weight(weight_format, dtype):
    weight = (0.02 * torch.randn(33, 160, generator=torch.Generator().manual_seed(1))).to(dtype)
    weight[5] = 0
    codes, scale = ops.quantize_weight(weight, weight_format)
    back, weight = values_of(codes, scale), weight.double()
    assert (back[5] == 0).all() and (scale[5] == 0).all()
    if weight_format == "int8":
        step = weight.abs().amax(1, True) / 127
        assert ((back - weight).abs() <= step * 0.5001).all()
    else:
        plain = weight.unflatten(1, (-1, 32))
        step = (plain.abs().amax(2, True) / 7).clamp(min=1e-30)
        plain_error = ((plain / step).round() * step - plain).square().sum()
        assert (back - weight).square().sum() <= 0.75 * plain_error


@pytest.mark.parametrize("dtype", [*FLOATS, torch.int8, torch.uint8])
def test_pack_weight(dtype):
    sizes = [(1, 16), (16, 32), (40, 96), (0, 16), (33, 0)]
    if dtype != torch.uint8:
        sizes += [(1, 4), (16, 20), (0, 8)]
    if dtype in FLOATS:
        sizes += [(1, 1), (17, 5)]
    for out, width in sizes:
        weight = torch.empty(width, out).uniform_(-128, 128).to(torch.int32).to(dtype).t()  # not contiguous
        packed = ops.pack_weight(weight)
        assert packed.is_contiguous() and torch.equal(rows_of(packed), weight)
        assert packed.data_ptr() != weight.data_ptr() or not out * width


def check_registration(op, *args, **kwargs):
    assert set(torch.library.opcheck(op.default, args, kwargs).values()) == {"SUCCESS"}


@pytest.mark.parametrize("weight_format", FORMATS)
def test_opcheck_of_linear(weight_format):
    given = arguments_of(weight_format)
    check_registration(OPS.linear, *(given.pop(name) for name in ("x", "weight", "bias")), **given)


def test_opcheck_of_what_makes_weights():
    for weight_format in ("int8", "int4"):
        check_registration(OPS.quantize_weight, torch.randn(6, 64), weight_format)
    for weight in (torch.randn(37, 64), torch.randn(64, 37).t(), CODES):
        check_registration(OPS.pack_weight, weight)


def test_gradients_are_refused():
    given = arguments_of("float")
    with pytest.raises(
        NotImplementedError, match=r"kvfuse::linear: expected x with requires_grad=False, got True"
    ):
        ops.linear(**(given | {"x": given["x"].requires_grad_()}))
    with pytest.raises(
        NotImplementedError, match=r"kvfuse::quantize_weight: expected weight with requires_grad"
    ):
        ops.quantize_weight(torch.randn(2, 32, requires_grad=True), "int4")
    with pytest.raises(NotImplementedError, match=r"kvfuse::pack_weight: expected weight with requires_grad"):
        ops.pack_weight(torch.randn(2, 32, requires_grad=True))


def test_compiled_and_exported_with_a_dynamic_batch():
    given = arguments_of("int4")

    class Layer(torch.nn.Module):
        def forward(self, x):
            return ops.linear(**(given | {"x": x}))

    shapes = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(Layer(), (given["x"],), dynamic_shapes=shapes).module()
    for rows in (3, 7, 40):
        x = torch.randn(rows, 96)
        assert torch.equal(exported(x), Layer()(x))


CODES = torch.zeros(4, 32, dtype=torch.uint8)
BAD_ARGUMENTS = {
    "no_x": ({"x": None}, TypeError, "expected x to be a tensor, got None"),
    "x_dtype": (
        {"x": torch.zeros(2, 64).long()},
        TypeError,
        "expected x of dtype float32, bfloat16 or float16, got int64",
    ),
    "x_rank": (
        {"x": torch.zeros(())},
        ValueError,
        "expected x of shape [..., in] with at least one input, got []",
    ),
    "no_inputs": ({"x": torch.zeros(2, 0)}, ValueError, "with at least one input, got [2, 0]"),
    "weight_dtype": (
        {"weight": torch.zeros(4, 64).half()},
        TypeError,
        "expected weight of dtype float32 (that of x), int8 or uint8 (codes of quantize_weight), got float16",
    ),
    "weight_rank": ({"weight": torch.zeros(64)}, ValueError, "expected weight of shape [out, in]"),
    "weight_shape": (
        {"weight": torch.zeros(4, 63)},
        ValueError,
        "expected weight of shape [4, 64] (out, the inputs of x)",
    ),
    "weight_strides": (
        {"weight": torch.zeros(64, 4).t()},
        ValueError,
        "expected a contiguous weight, got strides",
    ),
    "weight_device": (
        {"weight": torch.zeros(4, 64, device="meta")},
        ValueError,
        "expected weight on the device of x",
    ),
    "int4_shape": (
        {"weight": torch.zeros(4, 64).byte()},
        ValueError,
        "expected weight of shape [4, 32] (out, half",
    ),
    "int4_groups": (
        {"x": torch.zeros(2, 48), "weight": CODES},
        ValueError,
        "expected x with a last dimension that is a multiple of 32, "
        "the inputs that share a scale of int4 codes, got 48",
    ),
    "too_many_inputs": (
        {"x": torch.zeros(1, 2**20 + 32), "weight": torch.zeros(1, 2**20 + 32).char()},
        ValueError,
        "expected x with at most 1048576 inputs beside codes, got 1048608",
    ),
    "no_scale": (
        {"weight": CODES},
        ValueError,
        "expected weight_scale with a weight of dtype uint8, got None",
    ),
    "scale": (
        {"weight_scale": torch.zeros(4)},
        ValueError,
        "expected no weight_scale with a weight of dtype float32",
    ),
    "scale_dtype": (
        {"weight": CODES, "weight_scale": torch.zeros(4, 2)},
        TypeError,
        "expected weight_scale of dtype float16",
    ),
    "scale_shape": (
        {"weight": CODES, "weight_scale": torch.zeros(4).half()},
        ValueError,
        "expected weight_scale of shape [4, 2] (out, groups of 32 inputs), got [4]",
    ),
    "scale_not_packed": (
        {"weight": CODES, "weight_scale": torch.zeros(4, 2).half(), "packed": True},
        ValueError,
        "expected weight_scale of shape [8] (out times groups of 32 inputs, packed and flattened), "
        "got [4, 2]",
    ),
    "scale_packed_alone": (
        {"weight": CODES, "weight_scale": ops.pack_scales(torch.zeros(4, 2).half())},
        ValueError,
        "expected weight_scale of shape [4, 2] (out, groups of 32 inputs), got [8]",
    ),
    "packed_quads": (
        {
            "x": torch.zeros(3, 6),
            "weight": torch.zeros(4, 6).char(),
            "weight_scale": torch.zeros(4),
            "packed": True,
        },
        ValueError,
        "expected x with a last dimension that is a multiple of 4, the inputs of packed int8 codes that stay "
        "together, got 6",
    ),
    "bias_dtype": (
        {"bias": torch.zeros(4).half()},
        TypeError,
        "expected bias of dtype float32 (that of x), got float16",
    ),
    "bias_shape": ({"bias": torch.zeros(5)}, ValueError, "expected bias of shape [4] (out), got [5]"),
    "norm_shape": (
        {"norm_weight": torch.zeros(4)},
        ValueError,
        "expected norm_weight of shape [64] (in), got [4]",
    ),
    "norm_bias_alone": (
        {"norm_bias": torch.zeros(64)},
        ValueError,
        "expected no norm_bias without a norm_weight",
    ),
    "epsilon": ({"norm_epsilon": -1.0}, ValueError, "expected a finite norm_epsilon >= 0, got -1"),
    "gelu": ({"gelu": "yes"}, ValueError, 'expected gelu to be "none", "tanh" or "exact", got "yes"'),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments(case):
    changed, error, message = BAD_ARGUMENTS[case]
    given = {"x": torch.zeros(2, 64), "weight": torch.zeros(4, 64)} | changed
    with pytest.raises(error, match=re.escape(message)) as raised:
        OPS.linear(**given)
    assert str(raised.value).startswith("kvfuse::linear: expected ")


def test_bad_weights():
    weight = torch.randn(5, 64)
    for bad, changed, message in [
        ("int8", {(3, 7): float("nan")}, "in row 3"),
        ("int4", {(4, 63): float("-inf"), (2, 0): float("inf")}, "in row 2"),
        ("int4", {(1, 1): 1e6}, "in row 1"),
    ]:
        damaged = weight.clone()
        for at, value in changed.items():
            damaged[at] = value
        with pytest.raises(ValueError, match=f"kvfuse::quantize_weight: expected finite values .* {message}"):
            ops.quantize_weight(damaged, bad)
    with pytest.raises(ValueError, match=r"multiple of 32, .* got 33"):
        ops.quantize_weight(torch.randn(5, 33), "int4")
    with pytest.raises(ValueError, match='expected format to be "int8" or "int4", got "int2"'):
        OPS.quantize_weight(weight, "int2")
    with pytest.raises(ValueError, match=r"expected weight of shape \[out, in\], got \[5\]"):
        OPS.quantize_weight(torch.randn(5), "int8")
    with pytest.raises(TypeError, match="expected weight of dtype float32, bfloat16 or float16, got int64"):
        OPS.quantize_weight(torch.zeros(5, 32).long(), "int8")
    with pytest.raises(
        ValueError, match=r"kvfuse::pack_weight: expected weight of shape \[out, in\], or of .*, got \[5\]"
    ):
        OPS.pack_weight(torch.randn(5))
    with pytest.raises(
        TypeError,
        match=r"weight of dtype float32, bfloat16, float16, int8 or uint8 \(codes of .*\), got int64",
    ):
        OPS.pack_weight(torch.zeros(5, 32).long())
    with pytest.raises(ValueError, match=r"weight with a last dimension that is a multiple of 4, .* got 30"):
        OPS.pack_weight(torch.zeros(5, 30).char())
    with pytest.raises(ValueError, match=r"multiple of 16, the bytes of a group of int4 codes, got 24"):
        OPS.pack_weight(torch.zeros(5, 24, dtype=torch.uint8))


def random_arguments(choose, seed: int) -> dict:
    """Mostly valid arguments, some with one that is not."""
    given = arguments_of(
        choose(FORMATS),
        choose(FLOATS),
        choose([(), (1,), (0,), (2, 3), (33,)]),
        choose([32, 64, 96, 160]),
        choose([0, 1, 9, 70]),
        choose([False, True]),
        choose([False, True]),
        choose(["none", "tanh", "exact"]),
        seed,
    )
    if choose([False, True]):
        return given
    name = choose(list(given))
    wrong = [
        None,
        "x",
        torch.zeros(3),
        torch.zeros(2, 5),
        torch.zeros(9, 64).char(),
        torch.zeros((), device="meta"),
    ]
    if isinstance(given[name], Tensor):
        wrong += (
            [given[name][..., :-1], given[name].double(), given[name][..., None], given[name].t()]
            if given[name].dim() == 2
            else []
        )
    return given | {name: choose(wrong)}


@one_thread()
def test_random_arguments_give_the_right_result_or_an_exception():
    choose, results = random.Random(0).choice, 0
    for seed in range(CALLS):
        given = random_arguments(choose, seed)
        try:
            out = OPS.linear(**given)
        except (ValueError, TypeError, NotImplementedError) as error:
            assert str(error).startswith("kvfuse::linear: expected ") and ", got " in str(error), error
        except RuntimeError as error:
            assert "kvfuse::" in str(error)
        else:
            if not out.is_meta:
                assert_right(out, {name: value for name, value in given.items() if value is not None})
            results += 1
    assert CALLS / 4 < results < CALLS  # both outcomes are exercised
