"""The operators as PyTorch sees them: opcheck, gradients, fake tensors, torch.compile and torch.export."""

import pytest
import reference
import torch
from kvfuse import ops
from op_inputs import Layer, make_layer, run

OPS = torch.ops.kvfuse

SAMPLES = {
    "float32": {},
    "bfloat16": {"dtype": torch.bfloat16, "lengths": (9,)},
    "float16_many_tokens": {"dtype": torch.float16, "q_len": 4},
    "int8": {"int8": True, "lengths": (300, 1)},
    "int8_bfloat16_queries": {"int8": True, "dtype": torch.bfloat16, "heads": 6, "kv_heads": 3},
    "one_kv_head": {"heads": 4, "kv_heads": 1, "head_dim": 128},
    "strided": {"q_len": 2, "head_dim": 80},
}


def calls_of(name: str) -> dict[str, tuple[tuple, dict]]:
    """Each operator's arguments for the sample called `name`."""
    layer = make_layer(**({"lengths": (5, 3)} | SAMPLES[name]))
    q, k, v = layer.q, layer.k, layer.v
    if name == "strided":
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    codes, scale = reference.quantize(k)
    return {
        "kv_append": ((k, v, *layer.cache), layer.scales),
        "decode_attention": ((q, *layer.cache), layer.scales),
        "append_decode_attention": ((q, k, v, *layer.cache), layer.scales),
        "prefill_attention": ((q, k, v, *layer.cache), layer.scales | {"softmax_scale": 0.1}),
        "quantize_kv": ((k,), {}),
        "dequantize_kv": ((codes, scale, q.dtype), {}),
    }


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("op", list(calls_of("float32")))
def test_opcheck(op, sample):
    args, kwargs = calls_of(sample)[op]
    assert set(torch.library.opcheck(getattr(OPS, op).default, args, kwargs).values()) == {"SUCCESS"}


@pytest.mark.parametrize("op", list(calls_of("float32")))
def test_gradients_are_refused(op):
    args, kwargs = calls_of("float32")[op]
    if op == "dequantize_kv":
        args = (args[0], args[1].requires_grad_(), args[2])
    else:
        args = (args[0].requires_grad_(), *args[1:])
    name = "scale" if op == "dequantize_kv" else {"kv_append": "k", "quantize_kv": "x"}.get(op, "q")
    torch.library.opcheck(getattr(OPS, op).default, args, kwargs, test_utils="test_autograd_registration")
    rule = f"kvfuse::{op}: expected {name} with requires_grad=False, got True .the operator has no gradient"
    with pytest.raises(NotImplementedError, match=rule):
        getattr(OPS, op)(*args, **kwargs)
    with torch.no_grad():
        getattr(OPS, op)(*args, **kwargs)


def test_autograd_notices_that_a_cache_it_saved_has_changed():
    layer = make_layer()
    weight = torch.ones((), requires_grad=True)
    product = (weight * layer.k_cache).sum()
    ops.kv_append(layer.k, layer.v, *layer.cache)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def decode_loop(q, k, v, k_cache, v_cache, cache_seqlens, k_scale, v_scale):
    """A prompt and three steps; the cache and its lengths are advanced in place."""
    scales = {"k_scale": k_scale, "v_scale": v_scale}
    out = [ops.prefill_attention(q, k, v, k_cache, v_cache, cache_seqlens, **scales)]
    cache_seqlens += q.shape[2]
    for _ in range(3):
        q, k, v = (x[:, :, -1:] + out[-1][:, : x.shape[1], -1:] for x in (q, k, v))
        out.append(ops.append_decode_attention(q, k, v, k_cache, v_cache, cache_seqlens, **scales))
        cache_seqlens += 1
    return torch.cat(out, 2)


@pytest.mark.parametrize("int8", [False, True], ids=["float_cache", "int8_cache"])
def test_compiled_decode_loop_equals_eager(int8):
    eager, compiled = (make_layer((0, 4), q_len=5, int8=int8) for _ in range(2))
    scales = (None, None)
    want = decode_loop(eager.q, eager.k, eager.v, *eager.cache, *(eager.scales.values() or scales))
    loop = torch.compile(decode_loop, fullgraph=True)
    got = loop(compiled.q, compiled.k, compiled.v, *compiled.cache, *(compiled.scales.values() or scales))
    assert torch.equal(got, want)
    assert torch.equal(compiled.cache_seqlens, eager.cache_seqlens)
    torch.testing.assert_close(compiled.mutable, eager.mutable, rtol=0, atol=0, equal_nan=True)


def test_export_with_a_dynamic_batch_and_capacity():
    class Step(torch.nn.Module):
        def forward(self, q, k, v, k_cache, v_cache, cache_seqlens):
            return ops.append_decode_attention(q, k, v, k_cache, v_cache, cache_seqlens)

    batch, capacity = torch.export.Dim("batch"), torch.export.Dim("capacity")
    shapes = ({0: batch},) * 3 + ({0: batch, 2: capacity},) * 2 + ({0: batch},)
    layer = make_layer()
    program = torch.export.export(Step(), (layer.q, layer.k, layer.v, *layer.cache), dynamic_shapes=shapes)
    other, same = (make_layer((3, 30, 300)) for _ in range(2))
    got = program.module()(other.q, other.k, other.v, *other.cache)
    assert torch.equal(got, run(ops.append_decode_attention, same))


def test_results_on_the_meta_device():
    layer = make_layer()
    layer = Layer(*(x.to("meta") for x in (layer.q, layer.k, layer.v, *layer.cache)))
    out = run(ops.append_decode_attention, layer)
    assert out.device.type == "meta" and out.shape == layer.q.shape and out.transpose(1, 2).is_contiguous()
    huge = torch.empty(2, 4, 2**31, 64, device="meta")
    out = ops.decode_attention(
        layer.q, huge[:, :2].contiguous(), huge[:, 2:].contiguous(), layer.cache_seqlens
    )
    assert out.shape == layer.q.shape
