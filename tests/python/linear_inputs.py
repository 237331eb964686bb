"""Inputs of kvfuse::linear, and its results in float64 by PyTorch's own operators."""

import torch
from kvfuse import ops
from torch import Tensor
from torch.nn import functional

FORMATS = ("float", "int8", "int4")


def values_of(codes: Tensor, scale: Tensor) -> Tensor:
    """What codes stand for, in float64."""
    if codes.dtype == torch.int8:
        return codes.double() * scale.double()[:, None]
    pairs = codes.unflatten(1, (-1, 16)).int()
    groups = torch.cat([pairs & 15, pairs >> 4], 2) - 8
    return (groups.double() * scale.double()[:, :, None]).flatten(1)


def expected(x, weight, bias=None, *, norm_weight=None, norm_bias=None, norm_epsilon=1e-5, gelu="none"):
    """PyTorch's own operators, in float64."""
    wide = [None if t is None else t.double() for t in (x, weight, bias, norm_weight, norm_bias)]
    x, weight, bias, norm_weight, norm_bias = wide
    if norm_weight is not None:
        x = functional.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, norm_epsilon)
    y = functional.linear(x, weight, bias)
    return y if gelu == "none" else functional.gelu(y, approximate="tanh" if gelu == "tanh" else "none")


def rounding_of_x(x, values, given) -> Tensor:
    """How far rounding the rows of x beside codes can move a result, GELU's slope of 1.13 included."""
    if "norm_weight" in given:
        norm_bias = given.get("norm_bias")
        x = functional.layer_norm(
            x.double(),
            x.shape[-1:],
            given["norm_weight"].double(),
            None if norm_bias is None else norm_bias.double(),
            given.get("norm_epsilon", 1e-5),
        )
    x, width = x.double(), x.shape[-1]
    if "weight_scale" not in given:
        return torch.zeros(())
    if given["weight"].dtype == torch.int8:
        levels = min(32767, (2**31 - 1) // (127 * width))
        step = x.abs().amax(-1, True).expand_as(x) / levels
    else:
        step = (
            (x.unflatten(-1, (-1, 32)).abs().amax(-1, True) / 127).expand(*x.shape[:-1], -1, 32).flatten(-2)
        )
    return 1.13 * (step / 2) @ values.abs().T


def assert_right(out: Tensor, given: dict) -> None:
    arguments = dict(given)
    scale = arguments.pop("weight_scale", None)
    if scale is not None:
        arguments["weight"] = values_of(arguments["weight"], scale)
    want = expected(**arguments)
    assert out.shape == want.shape and out.dtype == given["x"].dtype
    # Sums are of float32, and beyond 16 rows PyTorch rounds what is between the operations to the dtype.
    few = given["x"].numel() <= 16 * given["x"].shape[-1]
    size = given["x"].double().abs().amax().clamp(min=1) if given["x"].numel() else 1.0
    magnitude = want.abs() + 1
    allowed = rounding_of_x(given["x"], arguments["weight"], given)
    allowed = allowed + magnitude * torch.finfo(out.dtype).eps * (1 if few else 8) + 2e-5 * magnitude * size
    if not few:
        allowed = allowed + 0.05 * (torch.finfo(out.dtype).eps > 1e-4)
    assert ((out.double() - want).abs() <= allowed).all()  # false for NaN


def arguments_of(
    weight_format: str,
    dtype=torch.float32,
    rows=(3,),
    width=96,
    out=37,
    norm=True,
    bias=True,
    gelu="tanh",
    seed=0,
) -> dict:
    numbers = torch.Generator().manual_seed(seed)

    def normal(*shape: int, mean=0.0, deviation=1.0) -> Tensor:
        return (mean + deviation * torch.randn(shape, generator=numbers)).to(dtype)

    weight = normal(out, width, deviation=width**-0.5)
    given = {"x": normal(*rows, width), "weight": weight, "gelu": gelu}
    if weight_format != "float":
        given["weight"], given["weight_scale"] = ops.quantize_weight(weight, weight_format)
    if bias:
        given["bias"] = normal(out)
    if norm:
        given |= {"norm_weight": normal(width, mean=1.0, deviation=0.2), "norm_bias": normal(width)}
    return given
