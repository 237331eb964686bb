"""Inputs of kvfuse::linear, and what judges its results: PyTorch's own operators in float64."""

import math

import torch
from kvfuse import ops
from torch import Tensor
from torch.nn import functional

FORMATS = ("float", "float packed", "int8", "int8 packed", "int4", "int4 packed")
# 32 roundings, relative to the sum of absolute values: sums of some 100 products err by their square root.
FLOAT32_NOISE = 32 * 2.0**-24


def values_of(codes: Tensor, scale: Tensor) -> Tensor:
    """What codes stand for, in float64."""
    if codes.dtype == torch.int8:
        return codes.double() * scale.double()[:, None]
    pairs = codes.unflatten(1, (-1, 16)).int()
    groups = torch.cat([pairs & 15, pairs >> 4], 2) - 8
    return (groups.double() * scale.double()[:, :, None]).flatten(1)


def rows_of(packed: Tensor) -> Tensor:
    """What ``pack_weight`` was given."""
    out, width = packed.shape
    if packed.dtype in (torch.int8, torch.uint8):
        if out * width == 0:
            return packed
        rows = packed ^ -128 if packed.dtype == torch.int8 else packed
        quads = rows.view(torch.int32)  # four bytes of an output, which stay together
        return rows_of(quads).contiguous().view(packed.dtype)
    flat, whole = packed.flatten(), out // 16 * 16
    panels = flat[: whole * width].view(out // 16, width, 16)
    rest = flat[whole * width :].view(width, out - whole)
    return torch.cat([panels.mT.reshape(whole, width), rest.T])


def has_library_products(dtype: torch.dtype) -> bool:
    return dtype == torch.bfloat16 and torch.cpu._is_avx512_bf16_supported()


def activation_step(x: Tensor, int8: bool, fine: bool) -> Tensor:
    """To which each element is rounded beside codes (docs/numerics.md)."""
    width = x.shape[-1]
    groups = functional.pad(x, (0, -width % 64 if int8 else 0)).unflatten(-1, (-1, 64 if int8 else 32))
    largest = groups.abs().amax(-1)
    if int8:
        fitting = min(32767, (2**31 - 1) // (127 * width))
        row_step = largest.amax(-1, True).clamp(min=1e-30) / (127 * 2 ** int(math.log2(fitting / 127)))
        power = (largest / row_step / 127).log2().sub(1e-6).ceil().clamp(min=0)
        whole = power >= power.median(-1, keepdim=True).values + 2
        step = row_step * torch.where(whole | fine, 0, power).exp2()
    else:
        step = largest / 127
    return step[..., None].expand_as(groups).flatten(-2)[..., :width].clamp(min=1e-30)


def inputs_of_products(given: dict, library: bool) -> tuple[Tensor, Tensor]:
    """The rows of x as a product takes them, in float64, and how far float32 can have moved each element."""
    x, dtype = given["x"].double(), given["x"].dtype
    if "norm_weight" in given:
        parameters = (
            None if t is None else t.double() for t in (given["norm_weight"], given.get("norm_bias"))
        )
        x = functional.layer_norm(x, x.shape[-1:], *parameters, given.get("norm_epsilon", 1e-5))
    noise = FLOAT32_NOISE * x.abs().amax(-1, True)
    low, high = x - noise, x + noise  # rounding is monotonic: what lies between stays between
    if "weight_scale" in given:
        step = activation_step(x, given["weight"].dtype == torch.int8, given.get("fine_activations", False))
        low, high = (low / step).round() * step - noise, (high / step).round() * step + noise
    elif library:
        low, high = low.to(dtype).double(), high.to(dtype).double()
    return (low + high) / 2, (high - low) / 2


def assert_right(out: Tensor, given: dict) -> None:
    """Against PyTorch's own operators in float64.

    What the operator says it rounds before the product is rounded here too: rows of x to integers beside
    codes, a layernorm's result to the dtype where the products are PyTorch's. So these move a result only
    where float32 ends on the other side of a tie. What is left is the rounding of float32, of the result to
    its dtype and, from PyTorch's products, of what GELU (a slope of 1.13 at most) is given.
    """
    x, dtype, gelu = given["x"], given["x"].dtype, given.get("gelu", "none")
    weight, scale, bias = given["weight"], given.get("weight_scale"), given.get("bias")
    packed = given.get("packed", False)
    library = not packed and scale is None and x.numel() > 32 * x.shape[-1] and has_library_products(dtype)
    if packed:
        if weight.dtype == torch.uint8:
            scale = rows_of(scale.view(len(weight), weight.shape[1] // 16))
        weight = rows_of(weight)
    weight = weight.double() if scale is None else values_of(weight, scale)
    bias = None if bias is None else bias.double()
    inputs, moved = inputs_of_products(given, library)

    def rounding(values: Tensor) -> Tensor:
        return torch.finfo(dtype).eps / 2 * values.abs().clamp(min=torch.finfo(dtype).tiny)

    want = functional.linear(inputs, weight, bias)
    sizes = functional.linear(inputs.abs(), weight.abs(), None if bias is None else bias.abs())
    allowed = moved @ weight.abs().T + FLOAT32_NOISE * sizes
    if gelu != "none":
        if library:
            allowed = allowed + rounding(want.abs() + allowed)
        want = functional.gelu(want, approximate="tanh" if gelu == "tanh" else "none")
        allowed = 1.13 * allowed + FLOAT32_NOISE * (1 + want.abs())
    allowed = allowed + rounding(want.abs() + allowed)
    assert out.shape == want.shape and out.dtype == dtype
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
    name, packed = weight_format.removesuffix(" packed"), weight_format.endswith(" packed")
    if name != "float":
        given["weight"], given["weight_scale"] = ops.quantize_weight(weight, name)
    if packed:
        given |= {"weight": ops.pack_weight(given["weight"]), "packed": True}
        if name == "int4":
            given["weight_scale"] = ops.pack_scales(given["weight_scale"])
    if bias:
        given["bias"] = normal(out)
    if norm:
        given |= {"norm_weight": normal(width, mean=1.0, deviation=0.2), "norm_bias": normal(width)}
    return given
