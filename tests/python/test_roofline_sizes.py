"""Sizes of caches and weights, and attention kernels, against arithmetic that stands in the table."""

import dataclasses

import pytest
from kvfuse import roofline

# model, changes, tokens, batch, format, latest tokens in 16 bits, bytes:
# K and V x layers that own them x heads x tokens x sequences x bytes of a row
CACHES = [
    ("llama-3-8b", {}, 1, 1, "fp16", 0, 2 * 32 * 8 * 128 * 2),
    ("llama-3-8b", {}, 4096, 1, "fp16", 0, 2 * 32 * 8 * 4096 * 128 * 2),
    ("llama-3-8b", {}, 32768, 1, "fp16", 0, 4096 * 2**20),
    ("llama-3-8b", {}, 32768, 1, "nvfp4", 0, 1152 * 2**20),
    ("llama-3-8b", {}, 32768, 1, "nvfp4", 256, 1175 * 2**20),
    ("llama-3-8b", {}, 32768, 64, "fp16", 0, 64 * 4096 * 2**20),
    ("llama-3-8b", {}, 200, 3, "nvfp4", 256, 2 * 32 * 8 * 200 * 3 * 128 * 2),  # all are recent
    ("llama-3-8b", {}, 257, 1, "nvfp4", 256, 2 * 32 * 8 * (1 * (64 + 8) + 256 * 256)),
    ("llama-3-8b", {}, 100, 2, "fp8", 0, 2 * 32 * 8 * 100 * 2 * 128),
    ("llama-3-8b", {}, 100, 2, "int8", 0, 2 * 32 * 8 * 100 * 2 * (128 + 4)),
    ("llama-3-8b", {}, 100, 2, "int4", 0, 2 * 32 * 8 * 100 * 2 * (64 + 2)),
    ("llama-3-8b", {}, 100, 2, "fp32", 0, 2 * 32 * 8 * 100 * 2 * 512),
    ("llama-3-8b", {}, 0, 1, "fp16", 0, 0),
    ("llama-2-7b", {}, 4096, 1, "fp16", 0, 2 * 32 * 32 * 4096 * 128 * 2),
    ("llama-2-70b", {}, 4096, 8, "bf16", 0, 2 * 80 * 8 * 4096 * 8 * 128 * 2),
    ("tinyllama-1.1b", {}, 2048, 1, "int8", 0, 2 * 22 * 4 * 2048 * (64 + 4)),
    ("gpt2", {}, 1024, 1, "fp32", 0, 2 * 12 * 12 * 1024 * 64 * 4),
    ("gpt2", {}, 1024, 16, "int8", 0, 2 * 12 * 12 * 1024 * 16 * (64 + 4)),
    ("gpt2-medium", {}, 1024, 1, "fp16", 0, 100663296),  # 98,304 bytes a token
    ("gpt2-medium", {"borrowing_layers": 12}, 1024, 1, "fp16", 0, 100663296 // 2),
    ("gpt2-xl", {}, 7, 5, "int4", 0, 2 * 48 * 25 * 7 * 5 * (32 + 2)),
]


@pytest.mark.parametrize(("name", "changes", "tokens", "batch", "precision", "window", "nbytes"), CACHES)
def test_cache(name, changes, tokens, batch, precision, window, nbytes):
    model = dataclasses.replace(roofline.Model.preset(name), **changes)
    got = roofline.kv_cache_bytes(model, tokens, batch=batch, precision=precision, recent_window=window)
    assert got == nbytes


# layers x (Q and O: 2 H H, K and V: 2 H kv, FFN: 3 H d_ff, norms: 2 H), embedding and head, the last norm
V2 = 2 * 32000  # rows of embedding and head
WEIGHTS = {
    "tinyllama-1.1b": 22 * (2 * 2048**2 + 2 * 2048 * 256 + 3 * 2048 * 5632 + 2 * 2048) + V2 * 2048 + 2048,
    "llama-2-7b": 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) + V2 * 4096 + 4096,
    "llama-2-13b": 40 * (4 * 5120**2 + 3 * 5120 * 13824 + 2 * 5120) + V2 * 5120 + 5120,
    "llama-2-70b": 80 * (2 * 8192**2 + 2 * 8192 * 1024 + 3 * 8192 * 28672 + 2 * 8192) + V2 * 8192 + 8192,
    "llama-3-8b": 8030261248,  # as its checkpoint counts them
    "llama-3-70b": 70553706496,
    "mistral-7b": 7241732096,
    # GPT-2, head tied to the embedding: (V + 1024) H + layers x (12 H^2 + 13 H) + 2 H
    "gpt2": (50257 + 1024) * 768 + 12 * (12 * 768**2 + 13 * 768) + 2 * 768,
    "gpt2-medium": (50257 + 1024) * 1024 + 24 * (12 * 1024**2 + 13 * 1024) + 2 * 1024,
    "gpt2-large": (50257 + 1024) * 1280 + 36 * (12 * 1280**2 + 13 * 1280) + 2 * 1280,
    "gpt2-xl": 1557611200,
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights(name):
    assert roofline.Model.preset(name).native().count_weights()["total"] == WEIGHTS[name]


def test_weights_of_transformers():
    """The same count as transformers makes when it builds the model, without its memory."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    with torch.device("meta"):
        built = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                hidden_size=4096,
                num_hidden_layers=32,
                num_attention_heads=32,
                num_key_value_heads=8,
                intermediate_size=14336,
                vocab_size=128256,
            )
        )
    assert sum(one.numel() for one in built.parameters()) == WEIGHTS["llama-3-8b"]


# batch, query heads, heads of K and V, head_dim, queries, length, causal; pairs of query and key; one layer
# Bytes: queries and results in 16 bits, then K and V once, in the kernel's format
ATTENTIONS = [
    ("FA2", (1, 32, 8, 128, 1, 4096, True), 4096, 2 * 32 * 128 * 2 + 2 * 8 * 4096 * 128 * 2),
    ("FA3", (1, 32, 8, 128, 1, 4096, True), 4096, 2 * 32 * 128 * 2 + 2 * 8 * 4096 * 128),
    ("kvfuse-int8", (1, 32, 8, 128, 1, 4096, True), 4096, 2 * 32 * 128 * 2 + 2 * 8 * 4096 * (128 + 4)),
    ("FA1", (1, 12, 12, 64, 5, 5, True), 15, 5 * 2 * 12 * 64 * 2 + 5 * 2 * 12 * 64 * 2),
    ("FA1", (1, 12, 12, 64, 5, 5, False), 25, 5 * 2 * 12 * 64 * 2 + 5 * 2 * 12 * 64 * 2),
    ("FA2", (3, 12, 4, 64, 2, 9, True), 3 * (8 + 9), 3 * (2 * 2 * 12 * 64 * 2 + 9 * 2 * 4 * 64 * 2)),
    ("FA4", (3, 12, 4, 64, 2, 9, True), 3 * (8 + 9), 3 * (2 * 2 * 12 * 64 * 2 + 9 * 2 * 4 * 64)),
    # Without fusing scores and probabilities are written and read: 4 times 2 bytes for each pair, hidden too
    ("standard", (1, 12, 12, 64, 5, 5, True), 15, 5 * 2 * 12 * 64 * 2 + 5 * 2 * 12 * 64 * 2 + 8 * 12 * 25),
]


@pytest.mark.parametrize(("kernel", "shape", "pairs", "nbytes"), ATTENTIONS)
def test_attention(kernel, shape, pairs, nbytes):
    batch, heads, kv_heads, head_dim, queries, length, causal = shape
    found = roofline.compare_attention(
        roofline.get_hardware("h100"),
        batch=batch,
        n_head=heads,
        n_kv_head=kv_heads,
        head_dim=head_dim,
        query_tokens=queries,
        kv_len=length,
        causal=causal,
    )
    got = next(one for one in found if one.kernel == kernel)
    assert got.flops == 2 * 2 * heads * head_dim * pairs  # scores, and their sum of values
    assert got.bytes == nbytes
    # The INT8 kernel widens in registers: its arithmetic is that of 16 bits.
    peak = {"FA3": 1978.9, "FA4": 1978.9}.get(kernel, 989.4)
    assert got.memory_ms == pytest.approx(nbytes / 3350e6, rel=1e-14)
    assert got.compute_ms == pytest.approx(got.flops / (peak * 1e9), rel=1e-14)
    reached = max(got.memory_ms / got.memory_efficiency, got.compute_ms / got.compute_efficiency)
    assert got.time_ms == pytest.approx(reached, rel=1e-14)


# From 'tokens' on K and V outweigh the weights: resident bytes over bytes of a token of all sequences
CROSSOVERS = [
    ("published", "fp16_baseline", 1, (6979321856 + 65 * 4096) * 2 / 131072),
    ("published", "fp16_baseline", 64, (6979321856 + 65 * 4096) * 2 / (64 * 131072)),
    ("published", "fp8_balanced", 1, (6979321856 + 2 * 65 * 4096) / 65536),
    ("published", "nvfp4_blackwell", 2, (6979321856 * 9 / 16 + 2 * 65 * 4096) / (2 * 65536)),
    ("gpt2", "fp32", 8, 4 * 124439808 / (8 * 2 * 12 * 768 * 4)),
]


@pytest.mark.parametrize(("name", "strategy", "batch", "tokens"), CROSSOVERS)
def test_crossover(name, strategy, batch, tokens):
    model = roofline.published_model() if name == "published" else roofline.Model.preset(name)
    got = roofline.kv_crossover_tokens(model, batch=batch, strategy=strategy)
    assert got == pytest.approx(tokens, rel=1e-14)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens": -1}, r"0 <= tokens <= 67108864, got -1"),
        ({"tokens": 1, "batch": 0}, r"1 <= batch <= 1048576, got 0"),
        ({"tokens": 1, "recent_window": -5}, r"0 <= recent_window <= 67108864, got -5"),
        ({"tokens": 2**70}, "tokens to fit 64 bits"),
        ({"tokens": 1, "precision": "fp5"}, r"did you mean fp8\?"),
    ],
)
def test_wrong_cache(arguments, message):
    with pytest.raises(ValueError, match=message):
        roofline.kv_cache_bytes(roofline.Model.preset("gpt2"), **arguments)
