"""The gradient of prefill_attention, judged by float64 autograd of plain PyTorch, and in training."""

import copy

import pytest
import torch
import torch.nn.functional as F
from kvfuse import KVCache, ops
from op_inputs import FLOATS, Layer, make_layer
from torch import Tensor, nn

# Of gradients computed in float32 and rounded to the dtype; relative to the largest gradient.
LIMITS = {torch.float32: 5e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}

SHAPES = {
    "from_the_start": {"lengths": (0, 0)},
    "behind_a_prefix": {"lengths": (5, 0, 70)},
    "grouped_queries": {"lengths": (3,), "heads": 6, "kv_heads": 2, "head_dim": 80},
    "a_head_each": {"lengths": (0, 2), "heads": 2, "kv_heads": 2, "head_dim": 16},
    "one_kv_head": {"lengths": (1, 0), "heads": 4, "kv_heads": 1, "head_dim": 128},
    "one_token": {"lengths": (4, 0), "q_len": 1},
}


def reference(q, k, v, k_prefix, v_prefix, lengths, scale) -> Tensor:
    """Causal attention in float64 that autograd can differentiate."""
    out, group = [], q.shape[1] // k.shape[1]
    for b, length in enumerate(lengths):
        keys, values = (
            torch.cat([prefix[b, :, :length].double(), rows[b]], 1).repeat_interleave(group, 0)
            for prefix, rows in ((k_prefix, k), (v_prefix, v))
        )
        visible = torch.ones(q.shape[2], keys.shape[1], dtype=torch.bool).tril(length)
        out.append((q[b] @ keys.mT * scale).masked_fill(~visible, float("-inf")).softmax(-1) @ values)
    return torch.stack(out)


def requiring_gradients(layer: Layer) -> list[Tensor]:
    """Its q, k and v, strided as a projection that is split gives them."""
    rows = (layer.q, layer.k, layer.v)
    return [x.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() for x in rows]


def assert_gradients_close(found: list[Tensor], want: list[Tensor], limit: float) -> None:
    for got, right in zip(found, want, strict=True):
        error = (got.cpu().double() - right).abs().max() / right.abs().max()
        assert error <= limit, f"relative error {error:.2g}"


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients(shape, dtype, device):
    scale = 0.11
    layer = make_layer(**({"q_len": 6, "dtype": dtype, "device": device} | SHAPES[shape]))
    rows, lengths = requiring_gradients(layer), layer.lengths
    exact = [x.detach().cpu().double().requires_grad_() for x in rows]
    right = reference(*exact, layer.k_cache.cpu(), layer.v_cache.cpu(), lengths, scale)
    out = ops.prefill_attention(*rows, *layer.cache, softmax_scale=scale)
    for tensor in (layer.k_cache, layer.v_cache):
        tensor.fill_(float("nan"))  # before the backward pass
    layer.cache_seqlens.fill_(1000)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    found = torch.autograd.grad(out, rows, weight.to(device))
    assert [x.dtype for x in found] == [dtype] * 3 and [x.shape for x in found] == [x.shape for x in rows]
    assert_gradients_close(found, torch.autograd.grad(right, exact, weight.double()), LIMITS[dtype])


def test_the_default_scale(device):
    layer = make_layer((2, 0), q_len=4, device=device)
    rows = requiring_gradients(layer)
    exact = [x.detach().cpu().double().requires_grad_() for x in rows]
    right = reference(*exact, layer.k_cache.cpu(), layer.v_cache.cpu(), layer.lengths, 64**-0.5)
    found = torch.autograd.grad(ops.prefill_attention(*rows, *layer.cache).sum(), rows)
    assert_gradients_close(found, torch.autograd.grad(right.sum(), exact), LIMITS[torch.float32])


@pytest.mark.parametrize("wanted", range(3), ids=["q", "k", "v"])
def test_a_gradient_of_one_argument_alone(wanted, device):
    layer = make_layer((2, 0), q_len=4, device=device)
    rows = [layer.q, layer.k, layer.v]
    whole = [x.clone().requires_grad_() for x in rows]
    want = torch.autograd.grad(ops.prefill_attention(*whole, *layer.cache).square().sum(), whole)[wanted]
    rows[wanted].requires_grad_()
    ops.prefill_attention(*rows, *layer.cache).square().sum().backward()
    assert torch.equal(rows[wanted].grad, want)


def make_even_layer(**options) -> Layer:
    """Without an outlier channel, for comparisons that take numbers of size 1 for granted."""
    layer = make_layer(**options)
    for tensor in (layer.k, layer.v, layer.k_cache, layer.v_cache):
        tensor[..., 3] /= 50
    return layer


def make_small_layer(device: str) -> tuple[list[Tensor], Layer]:
    head_dim = 16 if device == "cpu" else 64
    sizes = {"heads": 2, "kv_heads": 1, "head_dim": head_dim, "q_len": 3}
    layer = make_even_layer(lengths=(2, 0), device=device, **sizes)
    return [x.requires_grad_() for x in (layer.q, layer.k, layer.v)], layer


def test_gradcheck(device):
    rows, layer = make_small_layer(device)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return ops.prefill_attention(q, k, v, *layer.cache)

    # float32, the widest dtype that there is: steps and tolerances are as wide as its rounding asks for.
    options = {"eps": 1e-2, "atol": 2e-3, "rtol": 2e-3}
    assert torch.autograd.gradcheck(attend, rows, **options)


def test_second_derivatives(device):
    rows, layer = make_small_layer(device)
    exact = [x.detach().cpu().double().requires_grad_() for x in rows]
    right = reference(
        *exact, layer.k_cache.cpu(), layer.v_cache.cpu(), layer.lengths, rows[0].shape[3] ** -0.5
    )
    out = ops.prefill_attention(*rows, *layer.cache)

    def second(out: Tensor, rows: list[Tensor]) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(out.square().sum(), rows, create_graph=True)
        return torch.autograd.grad(sum(x.square().sum() for x in first), rows)

    assert_gradients_close(second(out, rows), second(right, exact), 5e-5)


SAMPLES = [(shape, torch.float32) for shape in SHAPES] + [("behind_a_prefix", x) for x in FLOATS[1:]]


@pytest.mark.parametrize(("shape", "dtype"), SAMPLES, ids=str)
def test_opcheck(shape, dtype, device):
    layer = make_even_layer(**({"q_len": 3, "dtype": dtype, "device": device} | SHAPES[shape]))
    found = torch.library.opcheck(
        torch.ops.kvfuse.prefill_attention.default, (*requiring_gradients(layer), *layer.cache)
    )
    assert set(found.values()) == {"SUCCESS"} and len(found) == 4


def test_arguments_changed_before_the_backward_pass_are_noticed(device):
    layer = make_layer((0,), q_len=4, device=device)
    rows = requiring_gradients(layer)
    q = rows[0] * 1
    out = ops.prefill_attention(q, *rows[1:], *layer.cache)
    q.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_a_graph_that_saved_the_cache_notices_that_it_has_changed(device):
    layer = make_layer((0,), q_len=4, device=device)
    weight = torch.ones((), requires_grad=True, device=device)
    product = (weight * layer.k_cache).sum()
    ops.prefill_attention(*requiring_gradients(layer), *layer.cache)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.parametrize("row", range(3), ids=["q", "k", "v"])
def test_an_int8_cache_has_no_gradient(row, device):
    layer = make_layer((2,), q_len=4, int8=True, device=device)
    before = layer.clone()
    rows = [layer.q, layer.k, layer.v]
    rows[row].requires_grad_()
    rule = "expected a k_cache of the dtype of q where gradients are recorded, got int8 .rounding has no"
    with pytest.raises(NotImplementedError, match=f"^kvfuse::prefill_attention: {rule}"):
        ops.prefill_attention(*rows, *layer.cache, **layer.scales)
    torch.testing.assert_close(layer.mutable, before.mutable, rtol=0, atol=0, equal_nan=True)
    with torch.no_grad():
        assert not ops.prefill_attention(*rows, *layer.cache, **layer.scales).requires_grad


@pytest.mark.parametrize("name", ["k_cache", "v_cache", "v_scale"])
def test_the_cache_is_a_constant(name, device):
    layer = make_layer((2,), q_len=4, int8=name == "v_scale", device=device)
    (layer.scales["v_scale"] if name == "v_scale" else getattr(layer, name)).requires_grad_()
    rule = f"expected {name} with requires_grad=False, got True .the tokens in the cache are constants"
    with pytest.raises(NotImplementedError, match=f"^kvfuse::prefill_attention: {rule}"):
        ops.prefill_attention(layer.q, layer.k, layer.v, *layer.cache, **layer.scales)


def test_bad_arguments_are_named_with_gradients_too(device):
    layer = make_layer((2,), q_len=4, device=device)
    rows = requiring_gradients(layer)
    scale = torch.zeros(layer.k_cache.shape[:3], device=device)
    with pytest.raises(ValueError, match="expected no k_scale with a float32 cache"):
        ops.prefill_attention(*rows, *layer.cache, k_scale=scale)
    with pytest.raises(ValueError, match=r"expected q of shape \[batch, heads, q_len, head_dim\], got"):
        ops.prefill_attention(rows[0][0], *rows[1:], *layer.cache)
    with pytest.raises(ValueError, match=r"expected cache_seqlens\[0\] \+ 4 <= 9 .*, got 10"):
        ops.prefill_attention(*rows, *layer.cache[:2], layer.cache_seqlens + 4)


class Attention(nn.Module):
    """A layer of attention, grouped, by PyTorch or by kvfuse."""

    WIDTH, HEADS, KV_HEADS, HEAD_DIM = 32, 4, 2, 64

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Linear(self.WIDTH, (self.HEADS + 2 * self.KV_HEADS) * self.HEAD_DIM)
        self.contract = nn.Linear(self.HEADS * self.HEAD_DIM, self.WIDTH)

    def forward(self, x: Tensor, cache: KVCache | None) -> Tensor:
        batch, tokens, _ = x.shape
        heads = self.expand(x).view(batch, tokens, -1, self.HEAD_DIM).transpose(1, 2)
        q, k, v = heads.split([self.HEADS, self.KV_HEADS, self.KV_HEADS], 1)
        if cache is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:
            y = ops.prefill_attention(q, k, v, cache_seqlens=cache.cache_seqlens, **cache.layer(0).arguments)
        return x + self.contract(y.transpose(1, 2).reshape(batch, tokens, -1))


def losses(model: Attention, cache: KVCache | None, compiled: bool, device: str) -> list[float]:
    """Of training the model to tell which of the earlier tokens was largest."""
    optimiser = torch.optim.SGD(model.parameters(), 1.0)
    forward = torch.compile(model, fullgraph=True) if compiled else model
    random = torch.Generator().manual_seed(2)
    found = []
    for _ in range(12):
        x = torch.randn(3, 10, Attention.WIDTH, generator=random).to(device)
        loss = F.mse_loss(forward(x, cache), x.cummax(1).values)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_training_follows_scaled_dot_product_attention(compiled, device):
    torch.manual_seed(0)
    theirs = Attention().to(device)
    ours = copy.deepcopy(theirs)
    cache = KVCache(1, Attention.KV_HEADS, Attention.HEAD_DIM, batch=3, capacity=16, device=device)
    want = losses(theirs, None, False, device)
    got = losses(ours, cache, compiled, device)
    assert want[-1] < 0.8 * want[0]
    torch.testing.assert_close(got, want, rtol=1e-5, atol=0)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-4, atol=1e-6)
