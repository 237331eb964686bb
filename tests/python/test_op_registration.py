"""The operators as PyTorch sees them: opcheck, gradients, fake tensors, torch.compile and torch.export."""

import kvfuse
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


def calls_of(name: str, device: str) -> dict[str, tuple[tuple, dict]]:
    """Each operator's arguments for the sample called `name`."""
    layer = make_layer(**({"lengths": (5, 3), "device": device} | SAMPLES[name]))
    q, k, v = layer.q, layer.k, layer.v
    if name == "strided":
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    codes, scale = reference.quantize(k)
    written = {"softmax_lse": torch.zeros(q.shape[:3], device=device)} if name.startswith("int8") else {}
    if name == "int8":
        written["workspace"] = ops.decode_workspace(q, layer.k_cache)
    return {
        "kv_append": ((k, v, *layer.cache), layer.scales),
        "decode_workspace": ((q, layer.k_cache), {}),
        "decode_attention": ((q, *layer.cache), layer.scales | written),
        "append_decode_attention": ((q, k, v, *layer.cache), layer.scales | written),
        "prefill_attention": ((q, k, v, *layer.cache), layer.scales | {"softmax_scale": 0.1}),
        "quantize_kv": ((k,), {}),
        "dequantize_kv": ((codes, scale, q.dtype), {}),
    }


OPERATORS = list(calls_of("float32", "cpu"))


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("op", OPERATORS)
def test_opcheck(op, sample, device):
    args, kwargs = calls_of(sample, device)[op]
    assert set(torch.library.opcheck(getattr(OPS, op).default, args, kwargs).values()) == {"SUCCESS"}


@pytest.mark.parametrize("op", [x for x in OPERATORS if x not in ("decode_workspace", "prefill_attention")])
def test_gradients_are_refused(op, device):
    args, kwargs = calls_of("float32", device)[op]
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


@pytest.mark.parametrize("written", ["k_cache", "v_scale", "workspace", "softmax_lse"])
def test_autograd_notices_that_what_it_saved_has_changed(written, device):
    layer = make_layer(int8=True, device=device)
    tensors = layer.scales | {"workspace": ops.decode_workspace(layer.q, layer.k_cache)}
    tensors["softmax_lse"] = torch.zeros(layer.q.shape[:3], device=device)
    weight = torch.ones((), requires_grad=True, device=device)
    product = (weight * (tensors | {"k_cache": layer.k_cache})[written]).sum()
    ops.append_decode_attention(layer.q, layer.k, layer.v, *layer.cache, **tensors)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def decode_loop(q, k, v, k_cache, v_cache, cache_seqlens, k_scale, v_scale, workspace=None):
    """A prompt and three steps; the cache and its lengths are advanced in place."""
    scales = {"k_scale": k_scale, "v_scale": v_scale}
    out = [ops.prefill_attention(q, k, v, k_cache, v_cache, cache_seqlens, **scales)]
    cache_seqlens += q.shape[2]
    for _ in range(3):
        q, k, v = (x[:, :, -1:] + out[-1][:, : x.shape[1], -1:] for x in (q, k, v))
        cache = (k_cache, v_cache, cache_seqlens)
        out.append(ops.append_decode_attention(q, k, v, *cache, **scales, workspace=workspace))
        cache_seqlens += 1
    return torch.cat(out, 2)


@pytest.mark.parametrize("int8", [False, True], ids=["float_cache", "int8_cache"])
def test_compiled_decode_loop_equals_eager(int8, device):
    eager, compiled = (make_layer((0, 4), q_len=5, int8=int8, device=device) for _ in range(2))
    workspace = ops.decode_workspace(compiled.q[:, :, :1], compiled.k_cache)
    scales = (None, None)
    want = decode_loop(eager.q, eager.k, eager.v, *eager.cache, *(eager.scales.values() or scales))
    loop = torch.compile(decode_loop, fullgraph=True)
    tensors = (*compiled.cache, *(compiled.scales.values() or scales), workspace)
    got = loop(compiled.q, compiled.k, compiled.v, *tensors)
    assert torch.equal(got, want)
    assert torch.equal(compiled.cache_seqlens, eager.cache_seqlens)
    torch.testing.assert_close(compiled.mutable, eager.mutable, rtol=0, atol=0, equal_nan=True)


def test_a_workspace_can_be_made_inside_a_compiled_function(device):
    def step(q, k, v, k_cache, v_cache, cache_seqlens):
        workspace = ops.decode_workspace(q, k_cache)
        return ops.append_decode_attention(q, k, v, k_cache, v_cache, cache_seqlens, workspace=workspace)

    layer, same = (make_layer((300, 40), device=device) for _ in range(2))
    got = torch.compile(step, fullgraph=True)(layer.q, layer.k, layer.v, *layer.cache)
    assert torch.equal(got, run(ops.append_decode_attention, same))


def test_softmax_lse_in_a_compiled_function(device):
    def step(q, k_cache, v_cache, cache_seqlens):
        lse = q.new_empty(q.shape[:3])
        return ops.decode_attention(q, k_cache, v_cache, cache_seqlens, softmax_lse=lse), lse

    layer = make_layer((300, 40), device=device)
    got = torch.compile(step, fullgraph=True)(layer.q, *layer.cache)
    torch.testing.assert_close(got, step(layer.q, *layer.cache), rtol=0, atol=0)


@pytest.mark.parametrize("int8", [False, True], ids=["float_cache", "int8_cache"])
def test_a_captured_graph_follows_the_growing_length(int8, device):
    if device == "cpu":
        pytest.skip("the CPU has no graphs")
    layer, same = (make_layer((1000, 3), int8=int8, spare=9, device=device) for _ in range(2))
    workspace = ops.decode_workspace(layer.q, layer.k_cache)

    def step():
        tensors = (layer.q, layer.k, layer.v, *layer.cache)
        out = ops.append_decode_attention(*tensors, **layer.scales, workspace=workspace)
        layer.cache_seqlens.add_(1)
        return out

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    for _ in range(5):
        graph.replay()
        assert torch.equal(out, run(ops.append_decode_attention, same))
        same.cache_seqlens.add_(1)
    torch.testing.assert_close(layer.mutable, same.mutable, rtol=0, atol=0, equal_nan=True)


def test_export_with_a_dynamic_batch_and_capacity(device):
    class Step(torch.nn.Module):
        def forward(self, q, k, v, k_cache, v_cache, cache_seqlens):
            return ops.append_decode_attention(q, k, v, k_cache, v_cache, cache_seqlens)

    batch, capacity = torch.export.Dim("batch"), torch.export.Dim("capacity")
    shapes = ({0: batch},) * 3 + ({0: batch, 2: capacity},) * 2 + ({0: batch},)
    layer = make_layer(device=device)
    program = torch.export.export(Step(), (layer.q, layer.k, layer.v, *layer.cache), dynamic_shapes=shapes)
    other, same = (make_layer((3, 30, 300), device=device) for _ in range(2))
    got = program.module()(other.q, other.k, other.v, *other.cache)
    assert torch.equal(got, run(ops.append_decode_attention, same))


def test_an_operator_says_which_backend_it_has_no_kernel_for():
    layer = make_layer()
    rule = "kvfuse::decode_attention: expected tensors of a backend that it has a kernel for, got "
    with pytest.raises(NotImplementedError, match=f"{rule}SparseCPU$"):
        OPS.decode_attention(layer.q.to_sparse(), *layer.cache)
    with pytest.raises(TypeError, match="kvfuse::quantize_kv: expected x to be a tensor, got None"):
        OPS.quantize_kv(None)


@pytest.mark.parametrize("op", OPERATORS)
def test_cuda_tensors_without_the_cuda_operators(op):
    if kvfuse.build_info()["cuda_loaded"]:
        pytest.skip("the CUDA operators are loaded")
    args, kwargs = calls_of("float32", "cpu")[op]
    remedy = "is not loaded: importing kvfuse does that" if kvfuse.build_info()["cuda"] else "KVFUSE_CUDA=on"
    cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)  # as if the tensors were on a GPU
    with pytest.raises(NotImplementedError, match=rf"kvfuse::{op}: .* got CUDA \(.*{remedy}"):
        getattr(OPS, op).default.redispatch(cuda, *args, **kwargs)


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
