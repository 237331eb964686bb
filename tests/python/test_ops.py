"""The operators against float64 references and PyTorch's own attention."""

import threading

import kvfuse
import pytest
import reference
import torch
from kvfuse import _C, ops
from op_inputs import FLOATS, Layer, make_layer, one_thread, run
from torch import Tensor

TOKENS = (1, 3, 17, 128, 257, 1000)
HEAD_DIMS = {"cpu": kvfuse.build_info()["supported_head_dims"], "cuda": kvfuse.build_info()["cuda_head_dims"]}
TESTED_HEAD_DIMS = (16, 64, 80, 128)
APPENDING = (ops.append_decode_attention, ops.prefill_attention)

# Error of attention over an int8 cache, as a share of the result: what a 16-bit query and float32 sums may
# cost (the outlier channel is 50 times the others), beside the rounding of the result. CUDA rounds the
# weights of V to 11 bits besides.
INT8_ERROR = {"cpu": 2e-4, "cuda": 1e-3}


def ragged(tokens: int, batch: int) -> list[int]:
    """Lengths from 1 to `tokens`, the longest first."""
    return [max(1, tokens - b * tokens // batch) for b in range(batch)]


def sdpa(q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor:
    """PyTorch's own attention, in the dtype of q, one sequence at a time."""
    out = torch.empty_like(q)
    for b, length in enumerate(lengths):
        mask = torch.ones(q.shape[2], length, dtype=torch.bool, device=q.device).tril(length - q.shape[2])
        keys, values = (x[b : b + 1, :, :length] for x in (k, v))
        out[b] = torch.nn.functional.scaled_dot_product_attention(
            q[b : b + 1], keys, values, attn_mask=mask, enable_gqa=True
        )
    return out


def rms(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts).square().mean().sqrt()


def assert_close_enough(*results: tuple[Tensor, Layer, int]) -> None:
    """At most twice the error of PyTorch's own attention, and a rounding; root mean square over all results.

    A result comes with its inputs and the number of tokens that the operator appended.
    """
    errors, wants, torch_errors = [], [], []
    for out, layer, appended in results:
        assert out.dtype == layer.q.dtype and out.shape == layer.q.shape and out.device == layer.q.device
        assert out.transpose(1, 2).is_contiguous()
        lengths = [length + appended for length in layer.lengths]
        on_cpu = layer.to("cpu")
        want = reference.attention(on_cpu.q, *on_cpu.values(), lengths)
        wants.append(want.flatten())
        errors.append((out.cpu().double() - want).flatten())
        if not layer.scales:
            theirs = sdpa(layer.q, layer.k_cache, layer.v_cache, lengths)
            torch_errors.append((theirs.cpu().double() - want).flatten())
    share = torch.finfo(out.dtype).eps + (INT8_ERROR[out.device.type] if layer.scales else 0)
    allowed = share * rms(wants) + (2 * rms(torch_errors) if torch_errors else 0)
    assert rms(errors) <= allowed, f"error {rms(errors):.3g} > {allowed:.3g}"


@pytest.mark.parametrize("int8", [False, True], ids=["float_cache", "int8_cache"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("head_dim", TESTED_HEAD_DIMS)
@pytest.mark.parametrize("tokens", TOKENS)
@one_thread()
def test_attention_is_as_exact_as_pytorch(tokens, head_dim, dtype, int8, device):
    if head_dim not in HEAD_DIMS[device]:
        pytest.skip(f"no kernel for a head_dim of {head_dim} on {device}")
    decoded, appended, prefilled = [], [], []
    for batch in (1, 2, 7):
        options = {"head_dim": head_dim, "dtype": dtype, "int8": int8, "seed": batch, "device": device}
        layer = make_layer(ragged(tokens, batch), **options)
        decoded.append((ops.decode_attention(layer.q, *layer.cache, **layer.scales), layer, 0))
        layer = make_layer(ragged(tokens, batch), q_len=3, **options)
        appended.append((run(ops.append_decode_attention, layer), layer, 3))
        layer = make_layer(ragged(tokens, batch), q_len=70, **options)
        prefilled.append((run(ops.prefill_attention, layer), layer, 70))
    assert_close_enough(*decoded)
    assert_close_enough(*appended)
    assert_close_enough(*prefilled)


@pytest.mark.parametrize("int8", [False, True], ids=["float_cache", "int8_cache"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("prompt_len", [1, 63, 64, 200])
def test_prefill_of_an_empty_cache(prompt_len, dtype, int8, device):
    layer = make_layer((0, 0), q_len=prompt_len, dtype=dtype, int8=int8, device=device)
    assert_close_enough((run(ops.prefill_attention, layer), layer, prompt_len))


@pytest.mark.parametrize("op", ["kv_append", "append_decode_attention", "prefill_attention"])
@pytest.mark.parametrize("int8", [False, True], ids=["float_cache", "int8_cache"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_appended_rows_and_no_others_change(op, int8, dtype, device):
    layer = make_layer((5, 0, 9), q_len=2, dtype=dtype, int8=int8, device=device)
    before = layer.clone()
    query = () if op == "kv_append" else (layer.q,)
    getattr(ops, op)(*query, layer.k, layer.v, *layer.cache, **layer.scales)
    for b, length in enumerate(layer.lengths):
        for rows, cache, was in (
            (layer.k, layer.k_cache, before.k_cache),
            (layer.v, layer.v_cache, before.v_cache),
        ):
            want = reference.quantize(rows)[0] if int8 else rows
            torch.testing.assert_close(cache[b, :, length : length + 2], want[b], rtol=0, atol=0)
            for untouched in (slice(0, length), slice(length + 2, None)):
                torch.testing.assert_close(
                    cache[b, :, untouched], was[b, :, untouched], rtol=0, atol=0, equal_nan=True
                )
        for name, rows in (("k_scale", layer.k), ("v_scale", layer.v)) if int8 else ():
            want = reference.quantize(rows)[1]
            torch.testing.assert_close(
                layer.scales[name][b, :, length : length + 2], want[b], rtol=2e-7, atol=0
            )
            assert layer.scales[name][b, :, length + 2 :].isnan().all()
    assert torch.equal(layer.cache_seqlens, before.cache_seqlens)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("width", [1, 7, 64, 80])
def test_quantised_rows_are_within_half_a_step(dtype, width, device):
    x = (torch.randn(5, 3, width) * torch.logspace(-3, 3, 3)[:, None]).to(device, dtype)
    x[0, 0] = 0
    codes, scale = ops.quantize_kv(x)
    assert codes.dtype == torch.int8 and codes.shape == x.shape and codes.abs().max() == 127
    assert scale.dtype == torch.float32 and scale.shape == x.shape[:-1]
    assert scale[0, 0] == 0 and not codes[0, 0].any()
    torch.testing.assert_close(scale, x.float().abs().amax(-1) / 127, rtol=2e-7, atol=0)
    error = (reference.dequantize(codes, scale) - x.double()).abs()
    assert (error <= scale[..., None].double() * 0.5001).all()
    for out_dtype in FLOATS:
        back = ops.dequantize_kv(codes, scale, out_dtype)
        want = (codes.float() * scale[..., None]).to(out_dtype)
        torch.testing.assert_close(back, want, rtol=0, atol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_does_not_turn_plausible(bad, device):
    x = torch.ones(2, 64, device=device)
    x[1, 7] = bad
    codes, scale = ops.quantize_kv(x)
    assert ops.dequantize_kv(codes, scale, torch.float32)[1].isnan().all()
    assert ops.dequantize_kv(codes, scale, torch.float32)[0].isfinite().all()


@pytest.mark.parametrize("op", APPENDING)
@pytest.mark.parametrize("int8", [False, True], ids=["float_cache", "int8_cache"])
def test_strides_do_not_change_the_result(op, int8, device):
    layer = make_layer((40, 7), q_len=3, kv_heads=4, int8=int8, device=device)
    want = run(op, layer.clone())
    qkv = torch.cat(
        [x.transpose(1, 2).flatten(2) for x in (layer.q, layer.k, layer.v)], -1
    )  # as one projection gives
    fused = [x.unflatten(-1, (4, 64)).transpose(1, 2) for x in qkv.split(256, -1)]
    scattered = [x.mT.contiguous().mT for x in (layer.q, layer.k, layer.v)]  # the last dimension too
    for inputs in (fused, scattered):
        fresh = layer.clone()
        assert not inputs[0].is_contiguous()
        assert torch.equal(op(*inputs, *fresh.cache, **fresh.scales), want)
    q, cache = layer.q, layer.cache
    assert torch.equal(
        ops.decode_attention(scattered[0], *cache, **layer.scales),
        ops.decode_attention(q, *cache, **layer.scales),
    )


def test_softmax_scale(device):
    layer = make_layer(device=device)
    doubled = ops.decode_attention(layer.q, *layer.cache, softmax_scale=2 / 8)
    torch.testing.assert_close(doubled, ops.decode_attention(layer.q * 2, *layer.cache))


def test_a_query_that_sees_no_token_gives_zeros(device):
    layer = make_layer((0, 1), q_len=2, device=device)
    out = ops.decode_attention(layer.q, *layer.cache)
    assert not out[0].any() and not out[1, :, 0].any() and out[1, :, 1].any()


@pytest.mark.parametrize("int8", [False, True], ids=["float_cache", "int8_cache"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_softmax_lse_is_the_logarithm_of_the_sum_of_exponentials(dtype, int8, device):
    for lengths in ((0, 1), (700, 3)):
        layer = make_layer(lengths, q_len=3, dtype=dtype, int8=int8, device=device)
        lse = torch.full(layer.q.shape[:3], float("nan"), device=device)
        ops.decode_attention(layer.q, *layer.cache, **layer.scales, softmax_lse=lse)
        on_cpu = layer.to("cpu")
        want = reference.softmax_lse(on_cpu.q, on_cpu.values()[0], layer.lengths)
        torch.testing.assert_close(lse.cpu().double(), want, rtol=1e-5, atol=5e-3 if int8 else 1e-5)
        ops.append_decode_attention(layer.q, layer.k, layer.v, *layer.cache, **layer.scales, softmax_lse=lse)
        on_cpu = layer.to("cpu")
        want = reference.softmax_lse(on_cpu.q, on_cpu.values()[0], [length + 3 for length in lengths])
        torch.testing.assert_close(lse.cpu().double(), want, rtol=1e-5, atol=5e-3 if int8 else 1e-5)


def test_results_over_two_caches_are_merged_by_their_softmax_lse(device):
    layer = make_layer((300, 41), device=device)
    want = ops.decode_attention(layer.q, *layer.cache)
    parts, lses = [], torch.empty(2, *layer.q.shape[:3], device=device)
    for lse, first, end in ((lses[0], 0, 40), (lses[1], 40, 304)):
        cache = [x[:, :, first:end].contiguous() for x in (layer.k_cache, layer.v_cache)]
        lengths = (layer.cache_seqlens - first).clamp(max=end - first)
        parts.append(ops.decode_attention(layer.q, *cache, lengths, softmax_lse=lse))
    got = torch.lerp(*parts, torch.sigmoid(lses[1] - lses[0])[..., None])
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "op", ["kv_append", "append_decode_attention", "prefill_attention", "decode_attention"]
)
@pytest.mark.parametrize(("lengths", "q_len"), [((), 1), ((4, 2), 0)], ids=["no_sequence", "no_token"])
def test_empty_inputs(op, lengths, q_len, device):
    layer = make_layer(lengths, q_len=q_len, device=device)
    before = layer.clone()
    new = {"kv_append": (layer.k, layer.v), "decode_attention": (layer.q,)}.get(
        op, (layer.q, layer.k, layer.v)
    )
    out = getattr(ops, op)(*new, *layer.cache)
    assert out is None if op == "kv_append" else out.shape == layer.q.shape
    torch.testing.assert_close(layer.mutable, before.mutable, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("int8", [False, True], ids=["float_cache", "int8_cache"])
def test_the_cache_can_be_filled_to_the_brim_and_no_further(int8, device):
    layer = make_layer((4, 4), spare=0, int8=int8, device=device)  # capacity 5
    run(ops.append_decode_attention, layer)
    layer.cache_seqlens += torch.tensor([0, 1], device=device)
    before = layer.clone()
    for op in ("kv_append", "append_decode_attention", "prefill_attention"):
        query = () if op == "kv_append" else (layer.q,)
        rule = rf"kvfuse::{op}: expected cache_seqlens\[1\] \+ 1 <= 5 \(capacity of k_cache\), got 6"
        with pytest.raises(ValueError, match=rule):
            getattr(ops, op)(*query, layer.k, layer.v, *layer.cache, **layer.scales)
        torch.testing.assert_close(layer.mutable, before.mutable, rtol=0, atol=0)


@pytest.mark.parametrize("int8", [False, True], ids=["float_cache", "int8_cache"])
@pytest.mark.parametrize("q_len", [1, 3])
def test_the_same_bits_in_every_run_on_any_threads_and_alone_or_in_a_batch(int8, q_len, device):
    layer = make_layer((700, 513, 30, 1), q_len=q_len, int8=int8, device=device)
    for op in APPENDING:
        with one_thread():
            want = run(op, layer.clone())
        for _ in range(5):
            assert torch.equal(run(op, layer.clone()), want)
        for b in range(4) if device == "cpu" else ():  # a GPU cuts a length in more parts for a smaller batch
            assert torch.equal(run(op, layer.clone(slice(b, b + 1))), want[b : b + 1])


def test_inference_mode(device):
    with torch.inference_mode():
        layer = make_layer(q_len=3, device=device)
        out = run(ops.append_decode_attention, layer)
    assert torch.equal(out, run(ops.append_decode_attention, make_layer(q_len=3, device=device)))


@pytest.mark.parametrize("q_len", [1, 5])
@pytest.mark.parametrize("int8", [False, True], ids=["float_cache", "int8_cache"])
def test_a_workspace_is_used_again_and_again_and_changes_nothing(int8, q_len, device):
    layer = make_layer((2000, 3), q_len=q_len, int8=int8, device=device)
    workspace = ops.decode_workspace(layer.q, layer.k_cache)
    assert workspace.dtype == torch.uint8 and workspace.device == layer.q.device and not workspace.any()
    assert (workspace.numel() == 0) is (device == "cpu")
    appended, again = layer.clone(), layer.clone()
    want = run(ops.append_decode_attention, appended)
    for _ in range(3):
        fresh = layer.clone()
        out = ops.append_decode_attention(
            fresh.q, fresh.k, fresh.v, *fresh.cache, **fresh.scales, workspace=workspace
        )
        assert torch.equal(out, want)
        torch.testing.assert_close(fresh.mutable, appended.mutable, rtol=0, atol=0, equal_nan=True)
        attended = ops.decode_attention(again.q, *again.cache, **again.scales, workspace=workspace)
        assert torch.equal(attended, ops.decode_attention(again.q, *again.cache, **again.scales))


def test_trusting_the_lengths_ends_with_the_block_and_is_of_one_thread():
    assert not _C.lengths_are_trusted()
    with pytest.raises(KeyError), ops.trust_lengths():
        with ops.trust_lengths():
            assert _C.lengths_are_trusted()
        assert _C.lengths_are_trusted()
        seen = []
        thread = threading.Thread(target=lambda: seen.append(_C.lengths_are_trusted()))
        thread.start()
        thread.join()
        assert seen == [False]
        raise KeyError
    assert not _C.lengths_are_trusted()


@pytest.mark.parametrize("op", ["kv_append", "append_decode_attention", "prefill_attention"])
def test_trusted_lengths_that_are_wrong(op, device):
    layer = make_layer((4, 9), spare=0, device=device)  # capacity 10
    layer.cache_seqlens += torch.tensor([0, 1], device=device)
    before = layer.clone()
    tokens = (layer.k, layer.v) if op == "kv_append" else (layer.q, layer.k, layer.v)
    with ops.trust_lengths():
        if device == "cpu":  # always looks
            with pytest.raises(ValueError, match=r"expected cache_seqlens\[1\] \+ 1 <= 10"):
                getattr(ops, op)(*tokens, *layer.cache)
            return
        out = getattr(ops, op)(*tokens, *layer.cache)
    torch.testing.assert_close(layer.k_cache[1], before.k_cache[1], rtol=0, atol=0, equal_nan=True)
    if op != "kv_append":
        assert out[0].isfinite().all() and out[1].isnan().all()


def test_every_supported_head_size_runs(device):
    for head_dim in HEAD_DIMS[device]:
        layer = make_layer(head_dim=head_dim, device=device)
        assert_close_enough((ops.decode_attention(layer.q, *layer.cache), layer, 0))
