"""Every operator on small inputs, for compute-sanitizer to watch: `python -m gpu_check.small_calls DEVICE`.

Inputs are made on the CPU and copied, so that the sanitizer sees all of them initialised. Results are checked
only for NaN: their values are the operator tests' concern.
"""

import itertools
import sys

import torch
from kvfuse import ops
from op_inputs import FLOATS, Layer, make_layer, run
from torch import Tensor

HEAD_DIMS = (64, 80)
APPENDING = {"append_decode_attention": (1, 3), "prefill_attention": (70,)}


def to_device(layer: Layer, device: str) -> Layer:
    tensors = (layer.q, layer.k, layer.v, *layer.cache)
    scales = {name: scale.to(device) for name, scale in layer.scales.items()}
    return Layer(*(tensor.to(device) for tensor in tensors), scales)


def expect_numbers(name: str, *results: Tensor) -> None:
    for result in results:
        if not bool(result.float().cpu().isfinite().all()):
            raise AssertionError(f"{name} gave NaN or an infinity")


def call_all(device: str, **options) -> None:
    """`options` go to make_layer."""
    layer = to_device(make_layer((70, 1), **options), device)
    expect_numbers("decode_attention", ops.decode_attention(layer.q, *layer.cache, **layer.scales))
    ops.kv_append(layer.k, layer.v, *layer.cache, **layer.scales)
    codes, scale = ops.quantize_kv(layer.k)
    expect_numbers("dequantize_kv", ops.dequantize_kv(codes, scale, layer.k.dtype))
    for name, token_counts in APPENDING.items():
        for q_len in token_counts:
            layer = to_device(make_layer((70, 1), q_len=q_len, **options), device)
            expect_numbers(name, run(getattr(ops, name), layer))


def main(device: str) -> None:
    for dtype, int8, head_dim in itertools.product(FLOATS, (False, True), HEAD_DIMS):
        call_all(device, dtype=dtype, int8=int8, head_dim=head_dim)
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(sys.argv[1])
