"""The cache classes against the tokens that went in, and in the hands of the operators."""

import copy
import io
from collections.abc import Callable

import pytest
import reference
import torch
import torch._dynamo.testing
from kvfuse import KVCache, LayerCache, ops
from op_inputs import FLOATS
from torch import Tensor

KINDS = ("model", "int8")
HEADS, KV_HEADS, HEAD_DIM = 4, 2, 64

of_either_kind = pytest.mark.parametrize("kind", KINDS)


def make_cache(n_layer=1, *, batch=2, capacity=9, **options) -> KVCache:
    return KVCache(n_layer, KV_HEADS, HEAD_DIM, batch=batch, capacity=capacity, **options)


def make_rows(count: int, *, batch=2, heads=KV_HEADS, seed=0, dtype=torch.float32) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(batch, heads, count, HEAD_DIM, generator=random).to(dtype)


def held(rows: Tensor, kind: str) -> Tensor:
    """What a cache makes of them."""
    return reference.dequantize(*reference.quantize(rows)).to(rows.dtype) if kind == "int8" else rows


def append(cache: KVCache, count: int, seed=0) -> tuple[Tensor, Tensor]:
    """Random tokens, the same in every owning layer."""
    layer = cache.layers[0]
    k, v = (make_rows(count, batch=cache.batch, seed=seed + i, dtype=layer.dtype) for i in range(2))
    for i in range(0, cache.n_layer, cache.sharing_group):
        cache.update(i, k.to(layer.k.device), v.to(layer.k.device))
    cache.advance(count)
    return k, v


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@of_either_kind
def test_what_goes_in_comes_out(kind, dtype, device):
    cache = make_cache(2, kv_cache_dtype=kind, dtype=dtype, device=device)
    parts = [append(cache, count, seed=count) for count in (4, 1, 3)]
    cache.update(1, cache.retrieve(0)[1][:, :, :1], cache.retrieve(0)[0][:, :, :1])  # in one layer alone
    assert cache.lengths == [8, 8] and cache.length == 8 and cache.cache_seqlens.tolist() == [8, 8]
    assert cache.cache_seqlens.dtype == torch.int32 and cache.cache_seqlens.device.type == device
    for layer in range(2):
        for found, rows in zip(cache.retrieve(layer), zip(*parts, strict=True), strict=True):
            assert found.shape == (2, KV_HEADS, 8, HEAD_DIM) and found.dtype == dtype
            assert torch.equal(found.cpu(), held(torch.cat(rows, 2), kind))


def test_retrieving_values_copies_nothing():
    cache = make_cache()
    append(cache, 3)
    assert cache.retrieve(0)[0].data_ptr() == cache.layer(0).k.data_ptr()


@of_either_kind
def test_sequences_of_different_lengths(kind, device):
    cache = make_cache(batch=3, kv_cache_dtype=kind, device=device)
    for tensor in (cache.layers[0].k_scale, cache.layers[0].v_scale) if kind == "int8" else ():
        tensor.fill_(float("nan"))
    k, v = make_rows(4, batch=3), make_rows(4, batch=3, seed=1)
    cache.update(0, k.to(device), v.to(device))
    cache.advance([4, 0, 2])
    assert cache.lengths == cache.cache_seqlens.tolist() == [4, 0, 2]
    for found, rows in zip(cache.retrieve(0), (k, v), strict=True):
        for b, length in enumerate(cache.lengths):
            assert torch.equal(found[b, :, :length].cpu(), held(rows, kind)[b, :, :length])
            assert (found[b, :, length:] == 0).all()
    cache.advance(2)
    assert cache.lengths == cache.cache_seqlens.tolist() == [6, 2, 4]


@of_either_kind
def test_trim_keeps_the_newest_tokens_and_crop_the_oldest(kind, device):
    cache = make_cache(3, batch=3, kv_cache_dtype=kind, sharing_group=2, device=device)
    k, v = make_rows(8, batch=3), make_rows(8, batch=3, seed=1)
    for layer in (0, 2):
        cache.update(layer, k.to(device), v.to(device))
    cache.advance([8, 3, 5])
    cache.trim(5)  # more than half: what moves overlaps where it goes
    assert cache.lengths == cache.cache_seqlens.tolist() == [5, 3, 5]
    first = [3, 0, 0]
    for layer in range(3):
        for found, rows in zip(cache.retrieve(layer), (k, v), strict=True):
            for b, length in enumerate(cache.lengths):
                want = held(rows, kind)[b, :, first[b] : first[b] + length]
                assert torch.equal(found[b, :, :length].cpu(), want)
    cache.crop(2)
    assert cache.lengths == cache.cache_seqlens.tolist() == [2, 2, 2]
    assert torch.equal(cache.retrieve(2)[0][0].cpu(), held(k, kind)[0, :, 3:5])
    cache.reset()
    assert cache.lengths == cache.cache_seqlens.tolist() == [0, 0, 0]
    assert cache.retrieve(0)[0].shape == (3, KV_HEADS, 0, HEAD_DIM)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_quantising_and_dequantising_a_filled_cache(dtype, device):
    cache = make_cache(2, dtype=dtype, device=device)
    k, v = append(cache, 5)
    bytes_of_values = cache.nbytes
    cache.dequantize()  # nothing to do
    cache.quantize()
    codes = cache.layer(1).k
    cache.quantize()
    assert cache.layer(1).k is codes and codes.dtype == torch.int8 and cache.kv_cache_dtype == "int8"
    assert cache.nbytes == bytes_of_values / dtype.itemsize * (1 + 4 / HEAD_DIM)
    for found, rows in zip(cache.retrieve(1), (k, v), strict=True):
        assert torch.equal(found.cpu(), held(rows, "int8"))
    cache.dequantize()
    assert cache.kv_cache_dtype == "model" and cache.nbytes == bytes_of_values
    for found, rows in zip(cache.retrieve(1), (k, v), strict=True):
        assert torch.equal(found.cpu(), held(rows, "int8"))
    append(cache, 1)


def test_bytes():
    cache = make_cache(5, batch=3, capacity=10, kv_cache_dtype="int8", sharing_group=2)
    of_a_token = 2 * KV_HEADS * (HEAD_DIM + 4)
    assert [cache.owns(layer) for layer in range(5)] == [True, False, True, False, True]
    assert cache.layer(3) is cache.layer(2) is cache.layers[1]
    assert cache.nbytes == 3 * 3 * 10 * of_a_token and cache.bytes_in_use == 0
    cache.advance([7, 0, 2])
    assert cache.bytes_in_use == 3 * (7 + 0 + 2) * of_a_token
    assert cache.layers[0].nbytes == 3 * 10 * of_a_token
    assert make_cache(2, dtype=torch.bfloat16).nbytes == 2 * 2 * 9 * 2 * KV_HEADS * HEAD_DIM * 2


@of_either_kind
def test_selecting_sequences(kind, device):
    def filled() -> LayerCache:
        cache = make_cache(batch=3, kv_cache_dtype=kind, device=device)
        append(cache, 4)
        return cache.layers[0]

    layer, before = filled(), filled().retrieve(4)
    memory = layer.k.data_ptr()
    layer.select_(torch.tensor([2, 0, 0], device=device))
    assert layer.k.data_ptr() == memory
    for found, rows in zip(layer.retrieve(4), before, strict=True):
        assert torch.equal(found, rows[[2, 0, 0]])
    layer = filled()
    layer.select_(torch.tensor([0, 0, 1, 1, 2, 2], device=device))
    assert layer.batch == 6
    for found, rows in zip(layer.retrieve(4), before, strict=True):
        assert torch.equal(found, rows.repeat_interleave(2, 0))


@of_either_kind
def test_growing(kind, device):
    cache = make_cache(kv_cache_dtype=kind, dtype=torch.float16, device=device)
    append(cache, 9)
    layer = cache.layers[0]
    larger = layer.grown(20)
    assert larger.capacity == 20 and larger.kv_cache_dtype == kind and larger.dtype == torch.float16
    assert larger.k.is_contiguous() and layer.capacity == 9
    for found, rows in zip(larger.retrieve(9), layer.retrieve(9), strict=True):
        assert torch.equal(found, rows)


def decode_loop(q: Tensor, k: Tensor, v: Tensor, cache: KVCache) -> Tensor:
    """A prompt, then single tokens; layer 1 borrows what layer 0 has."""
    seen, out = [k.shape[2], 1, 1, 1, 1], []
    for count in seen:
        q, k, v = (x[:, :, -count:] for x in (q, k, v))
        attend = ops.prefill_attention if count > 1 else ops.append_decode_attention
        y = attend(q, k, v, cache_seqlens=cache.cache_seqlens, **cache.layer(0).arguments)
        cache.advance(count)
        y = y + ops.decode_attention(q, cache_seqlens=cache.cache_seqlens, **cache.layer(1).arguments)
        q, k, v = q + y, k + y[:, :KV_HEADS], v - y[:, :KV_HEADS]
        out.append(y)
    return torch.cat(out, 2)


def loop_arguments(device: str) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (make_rows(5, heads=heads, seed=heads) for heads in (HEADS, KV_HEADS, KV_HEADS))
    return q.to(device), k.to(device), v.to(device)


@of_either_kind
def test_a_compiled_decode_loop_equals_eager(kind, device):
    eager, compiled = (make_cache(2, kv_cache_dtype=kind, sharing_group=2, device=device) for _ in range(2))
    want = decode_loop(*loop_arguments(device), eager)
    got = torch.compile(decode_loop, fullgraph=True)(*loop_arguments(device), compiled)
    assert torch.equal(got, want) and want.isfinite().all()
    assert compiled.lengths == eager.lengths == compiled.cache_seqlens.tolist() == [9, 9]
    for found, rows in zip(compiled.retrieve(1), eager.retrieve(1), strict=True):
        assert torch.equal(found, rows)


def test_a_compiled_step_is_not_compiled_anew_for_each_length(device):
    def step(q: Tensor, k: Tensor, v: Tensor, cache: KVCache) -> Tensor:
        cache.update(0, k, v)
        cache.advance(k.shape[2])
        return ops.decode_attention(q, cache_seqlens=cache.cache_seqlens, **cache.layer(0).arguments)

    counter = torch._dynamo.testing.CompileCounterWithBackend("inductor")
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    caches = [make_cache(capacity=40, device=device) for _ in range(2)]
    q, k, v = (x[:, :, :1] for x in loop_arguments(device))
    for _ in range(20):
        assert torch.equal(compiled(q, k, v, caches[0]), step(q, k, v, caches[1]))
    assert caches[0].lengths == [20, 20]
    assert counter.frame_count <= 2  # with the first length, and with any


MODES: dict[str, Callable] = {"inference": torch.inference_mode, "no_grad": torch.no_grad}


@pytest.mark.parametrize("used", MODES)
@pytest.mark.parametrize("made", MODES)
@of_either_kind
def test_a_cache_made_in_one_mode_serves_in_another(kind, made, used):
    with MODES[made]():
        cache = make_cache(kv_cache_dtype=kind)
        cache.layers[0].select_(torch.tensor([0, 1, 1]))
        cache.layers[0].select_(torch.tensor([0, 1]))
        append(cache, 3)
    with MODES[used]():
        append(cache, 2)
        cache.trim(4)
        cache.crop(3)
        cache.quantize()
        cache.dequantize()
    append(cache, 1)
    assert cache.lengths == cache.cache_seqlens.tolist() == [4, 4]


def test_copies_are_independent():
    cache = make_cache(kv_cache_dtype="int8")
    append(cache, 3)
    file = io.BytesIO()
    torch.save(cache, file)
    file.seek(0)
    for other in (copy.deepcopy(cache), torch.load(file, weights_only=False)):
        before = [x.clone() for x in cache.retrieve(0)]
        assert all(torch.equal(x, y) for x, y in zip(other.retrieve(0), before, strict=True))
        other.reset()
        append(other, 4, seed=9)
        assert cache.lengths == [3, 3]
        assert all(torch.equal(x, y) for x, y in zip(cache.retrieve(0), before, strict=True))


def unchanged(cache: KVCache, call: Callable[[], object], error: type[Exception], message: str) -> None:
    before = copy.deepcopy(cache)
    with pytest.raises(error, match=message):
        call()
    assert cache.lengths == before.lengths == cache.cache_seqlens.tolist()
    for layer, same in zip(cache.layers, before.layers, strict=True):
        assert torch.equal(layer.k, same.k) and torch.equal(layer.v, same.v)


@of_either_kind
def test_the_capacity_can_be_filled_but_not_passed(kind):
    cache = make_cache(kv_cache_dtype=kind)
    append(cache, 8)
    append(cache, 1)
    k = make_rows(1)
    rule = r"kvfuse::kv_append: expected cache_seqlens\[0\] \+ 1 <= 9 \(capacity of k_cache\), got 10"
    unchanged(cache, lambda: cache.update(0, k, k), ValueError, rule)
    rule = r"^KVCache: expected length 9 \+ 1 <= capacity 9, got 10 \(make the cache larger, or trim it\)$"
    unchanged(cache, lambda: cache.advance(1), ValueError, rule)
    unchanged(cache, lambda: cache.advance([0, 1]), ValueError, rule)


def test_errors_of_use():
    cache = make_cache(3, sharing_group=2)
    append(cache, 4)
    k = make_rows(1)
    cases = [
        (lambda: cache.update(1, k, k), ValueError, "a layer that owns its keys and values, one in 2, got 1"),
        (lambda: cache.update(3, k, k), IndexError, r"a layer in \[0, 2\], got 3"),
        (lambda: cache.layer(-1), IndexError, r"a layer in \[0, 2\], got -1"),
        (lambda: cache.advance(-1), ValueError, "tokens >= 0 to advance by, got -1"),
        (lambda: cache.advance([1]), ValueError, "tokens for 2 sequences, got 1"),
        (lambda: cache.crop(5), ValueError, "0 <= length <= 4 to crop to, got 5"),
        (lambda: cache.crop(-1), ValueError, "0 <= length <= 4 to crop to, got -1"),
        (lambda: cache.trim(-1), ValueError, "keep >= 0 to trim to, got -1"),
        (lambda: cache.layers[0].retrieve(10), ValueError, "0 <= length <= capacity 9 to retrieve, got 10"),
        (lambda: cache.layers[0].grown(8), ValueError, "capacity >= 9 to grow to, got 8"),
        (lambda: cache.layers[0].select_(torch.zeros(0, dtype=torch.int64)), ValueError, "an index .batch"),
    ]
    for call, error, message in cases:
        unchanged(cache, call, error, f"^KVCache: expected {message}")
    wrong = make_rows(1, dtype=torch.float16)
    unchanged(cache, lambda: cache.update(0, wrong, wrong), TypeError, "expected k_cache of dtype float16")
    unchanged(cache, lambda: cache.layers[0].select_(torch.tensor([0, 2])), IndexError, "out of range")


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"n_layer": 0}, ValueError, "n_layer >= 1, got 0"),
        ({"kv_heads": 0}, ValueError, "kv_heads >= 1, got 0"),
        ({"head_dim": -1}, ValueError, "head_dim >= 1, got -1"),
        ({"batch": 0}, ValueError, "batch >= 1, got 0"),
        ({"capacity": 0}, ValueError, "capacity >= 1, got 0"),
        ({"sharing_group": 0}, ValueError, "sharing_group >= 1, got 0"),
        ({"kv_cache_dtype": "int4"}, ValueError, "a kv_cache_dtype of model or int8, got int4"),
        ({"dtype": torch.float64}, TypeError, "a dtype of float32, bfloat16 or float16, got torch.float64"),
    ],
)
def test_errors_of_making(changed, error, message):
    given = {"n_layer": 1, "kv_heads": 1, "head_dim": 64, "batch": 1, "capacity": 1} | changed
    with pytest.raises(error, match=f"^KVCache: expected {message}$"):
        KVCache(**given)
