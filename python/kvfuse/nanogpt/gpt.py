"""An unmodified nanoGPT ``GPT`` with a KV cache."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kvfuse import ops
from kvfuse.cache import KVCache
from kvfuse.nanogpt._linear import linear, linear_gelu
from kvfuse.nanogpt.attention import cached_attention
from kvfuse.versions import get_version_config

# How far logits may lie from nanoGPT's own, as a share of the largest, before ``patch`` takes the model for
# another one. Rounding alone stays a hundred times below in float32 and five times in the others.
_SAME_LOGITS = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}


class CachedGpt:
    """A nanoGPT ``GPT`` run with the KV cache of a version. It reads the model's parameters at each call.

    Dropout is left out, as in evaluation, and hooks on blocks and on their attention are not called.
    """

    def __init__(self, model: nn.Module, version: str) -> None:
        """For what may be wrong with either, see ``patch``."""
        self.version = get_version_config(version)
        if self.version["q_alignment_method"] == "fit":
            raise ValueError(
                f"kvfuse.nanogpt: expected a version whose weights are the model's own, got {version}, whose "
                "borrowing layers are fitted to calibration tokens (bench_runner does that)"
            )
        if self.version["weight_dtype"] != "model":
            raise ValueError(
                f"kvfuse.nanogpt: expected a version whose weights are the model's own, got {version}, whose "
                "weights are quantised (kvfuse.model.Gpt2 runs it)"
            )
        self.model = cast(Any, model)
        try:
            self.previous: Callable[..., Tensor] = self.model.generate
            _check_is_nanogpt(self)
        except AttributeError as error:
            raise TypeError(
                f"kvfuse.nanogpt: expected nanoGPT's GPT, got {type(model).__name__} (in which {error})"
            ) from error

    def make_cache(self, batch: int, capacity: int) -> KVCache:
        """An empty cache for ``capacity`` tokens of ``batch`` sequences, in the dtype that attention gets."""
        return self._make_cache(
            batch, capacity, self.version["kv_cache_dtype"], self.version["sharing_group"]
        )

    def _make_cache(self, batch: int, capacity: int, kv_cache_dtype: str, sharing_group: int) -> KVCache:
        config, weight = self.model.config, self.model.transformer.wte.weight
        kind = weight.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        return KVCache(
            config.n_layer,
            config.n_head,
            config.n_embd // config.n_head,
            batch=batch,
            capacity=capacity,
            kv_cache_dtype=kv_cache_dtype,
            sharing_group=sharing_group,
            dtype=dtype,
            device=weight.device,
        )

    @torch.no_grad()
    def forward(self, idx: Tensor, cache: KVCache, *, every_token: bool = False) -> Tensor:
        """Logits [batch, 1, vocab_size] of the last token of ``idx`` [batch, tokens], or of every token.

        The tokens follow those in ``cache``, which holds them afterwards.

        Raises:
            ValueError: the tokens would leave ``block_size`` or the cache's capacity, or are none.
        """
        transformer = self.model.transformer
        tokens, block_size = idx.size(1), self.model.config.block_size
        end = cache.length + tokens
        if tokens < 1 or end > min(block_size, cache.capacity):
            raise ValueError(
                f"kvfuse.nanogpt: expected 1 to {min(block_size, cache.capacity) - cache.length} tokens, to "
                f"follow {cache.length} within block_size {block_size} and the cache's capacity "
                f"{cache.capacity}, got {tokens}"
            )
        positions = cache.cache_seqlens[:, None] + torch.arange(tokens, device=idx.device)
        x = transformer.wte(idx) + transformer.wpe(positions)
        with ops.trust_lengths():  # checked above; CUDA would wait for each layer's
            for index, block in enumerate(transformer.h):
                queries_of = self._queries_of(index, cache)
                x = x + cached_attention(block.attn, block.ln_1(x), cache, index, queries_of)
                hidden = linear_gelu(block.mlp.c_fc, block.mlp.gelu, block.ln_2(x))
                x = x + linear(block.mlp.c_proj, hidden)
        cache.advance(tokens)
        x = transformer.ln_f(x if every_token else x[:, -1:])
        return linear(self.model.lm_head, x)

    def _queries_of(self, index: int, cache: KVCache) -> Any:
        """The attention whose weights make the queries of layer ``index``."""
        aligned = self.version["q_alignment_method"] == "copy"
        return self.model.transformer.h[index - index % cache.sharing_group if aligned else index].attn

    @torch.no_grad()
    def generate(
        self, idx: Tensor, max_new_tokens: int, temperature: float = 1.0, top_k: int | None = None
    ) -> Tensor:
        """Continues ``idx`` [batch, tokens] by ``max_new_tokens``, as nanoGPT's ``generate`` does.

        Beyond ``block_size`` nanoGPT lets each token see the last ``block_size``, whose positions change
        every time: there each token costs a pass over all of them. A model in training with dropout is left
        to nanoGPT's own method, since each of its passes drops anew.
        """
        drops = self.model.training and self.model.config.dropout > 0
        if drops or not self.version["use_cache"] or max_new_tokens < 1:
            return self.previous(idx, max_new_tokens, temperature, top_k)
        block_size = self.model.config.block_size
        cache = self.make_cache(idx.size(0), min(block_size, idx.size(1) + max_new_tokens))
        for _ in range(max_new_tokens):
            if idx.size(1) > block_size:
                cache.reset()
            unseen = idx[:, max(cache.length, idx.size(1) - block_size) :]
            logits = self.forward(unseen, cache)[:, -1, :] / temperature
            if top_k is not None:
                best, _ = torch.topk(logits, min(top_k, logits.size(-1)))
                logits[logits < best[:, [-1]]] = -float("inf")
            chosen = torch.multinomial(F.softmax(logits, dim=-1), num_samples=1)
            idx = torch.cat((idx, chosen), dim=1)
        return idx


def patch(model: nn.Module, version: str = "v2") -> nn.Module:
    """Gives ``model.generate`` of a nanoGPT ``GPT`` the KV cache of ``version``, and returns the model.

    Its signature and its meaning stay, and so does everything else: modules, parameters, ``forward`` and with
    it training. The cache lives as long as a call. A patched model may be patched again with another version,
    and copied.

    Raises:
        ValueError: an unknown version, one that takes fitted weights, or a model that computes something else
            than nanoGPT's.
        TypeError: something that is not nanoGPT's ``GPT``, or a dtype that the operators do not have.
        NotImplementedError: no kernel for the model's head_dim.
    """
    inner = _uncompiled(model)
    before = _patch_of(inner)
    cached_gpt = CachedGpt(inner, version)
    if before is not None:
        cached_gpt.previous = before.previous
    inner.generate = cached_gpt.generate
    return model


def unpatch(model: nn.Module) -> nn.Module:
    """Gives a patched model its own ``generate`` back, and returns the model.

    Raises:
        ValueError: the model is not patched.
    """
    inner = _uncompiled(model)
    patched = _patch_of(inner)
    if patched is None:
        raise ValueError(
            f"kvfuse.nanogpt.unpatch: expected a patched model, got {type(model).__name__} as it is"
        )
    del inner.generate
    if inner.generate != patched.previous:  # it was the object's own, not its class's
        inner.generate = patched.previous
    return model


def _uncompiled(model: nn.Module) -> Any:
    """What ``torch.compile`` wraps: it passes ``generate`` on."""
    return getattr(model, "_orig_mod", model)


def _patch_of(model: nn.Module) -> CachedGpt | None:
    owner = getattr(vars(model).get("generate"), "__self__", None)
    return owner if isinstance(owner, CachedGpt) else None


def _check_is_nanogpt(cached_gpt: CachedGpt) -> None:
    """Raises unless an unshared cache of the model's dtype gives the logits of the model itself."""
    model = cached_gpt.model
    tokens = min(4, model.config.block_size)
    idx = torch.arange(tokens, device=model.transformer.wte.weight.device)[None] % model.config.vocab_size
    want = _logits_in_evaluation(model, idx)
    got = cached_gpt.forward(idx, cached_gpt._make_cache(1, tokens, "model", 1))
    limit = _SAME_LOGITS[got.dtype] * float(want.abs().max())
    difference = float((got - want).abs().max())
    if difference > limit:  # false for NaN: a model that gives it gives it with a cache too
        raise ValueError(
            f"kvfuse.nanogpt: expected a model that computes what nanoGPT's GPT does, got logits that differ "
            f"by {difference:.3g} where {limit:.3g} is rounding (its layers or its forward were changed)"
        )


@torch.no_grad()
def _logits_in_evaluation(model: Any, idx: Tensor) -> Tensor:
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        return model(idx)[0]
    finally:
        for module, training in modes:
            module.training = training
