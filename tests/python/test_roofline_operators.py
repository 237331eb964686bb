"""FLOPs and bytes of the 17 operators against sums that stand in the table: four passes of four models.

Every entry is over all layers. Bytes are weights, then K and V, then what is read and what is written. A
multiply-add is 2 FLOPs; softmax does 5 a score, GELU 9, SiLU and its product 5, LayerNorm 7, RMSNorm 4,
rotary positions 3 an element, quantising 2 a value.
"""

import dataclasses

import pytest
from kvfuse import roofline


def gpt2_step():
    """GPT-2 (12 layers, 12 heads of 64, with biases) in fp32: one token after 99, so 100 are seen."""
    L, H, D, V, S = 12, 768, 3072, 50257, 100
    square = L * (2 * H * H + H), 4 * L * (H * H + H + H + H)
    attention = 2 * L * S * H, 4 * L * (S * H + H)
    rows = {
        "embedding": (0, 4 * (H + H)),
        "q_proj": square,
        "k_proj": square,
        "v_proj": square,
        "attn_qk": attention,
        "attn_softmax": (5 * L * 12 * S, 0),
        "attn_av": attention,
        "o_proj": square,
        "ffn_gate": (0, 0),
        "ffn_up": (L * (2 * H * D + D), 4 * L * (H * D + D + H + D)),
        "ffn_act": (9 * L * D, 4 * L * (D + D)),
        "ffn_down": (L * (2 * D * H + H), 4 * L * (D * H + H + D + H)),
        "norm": (7 * H * 25, 4 * 25 * (2 * H + H + H)),  # two a layer and the last
        "position": (H, 4 * (H + H + H)),
        "residual": (2 * L * H, 4 * 2 * L * (H + H + H)),
        "kv_cache": (0, 4 * L * (2 * H + 2 * H)),
        "lm_head": (2 * V * H, 4 * (V * H + H + V)),
    }
    return "gpt2", {}, "fp32", {"past": 99}, rows


def gpt2_medium_prompt():
    """GPT-2 medium without biases in bf16, attention not fused: 5 tokens after 3, 3 scored, 2 sequences."""
    L, H, D, V, B, T = 24, 1024, 4096, 50257, 2, 5
    seen = [4, 5, 6, 7, 8]  # by each of the 5 tokens
    scores = 16 * B * T * 8  # hidden ones are written, too
    square = 2 * L * B * T * H * H, 2 * L * (H * H + B * T * (H + H))
    pairs = 2 * L * B * sum(seen) * H
    attention_bytes = 2 * L * (B * 8 * H + B * T * H + scores)
    rows = {
        "embedding": (0, 2 * B * T * (H + H)),
        "q_proj": square,
        "k_proj": square,
        "v_proj": square,
        "attn_qk": (pairs, attention_bytes),
        "attn_softmax": (5 * L * 16 * B * sum(seen), 2 * L * 2 * scores),
        "attn_av": (pairs, attention_bytes),
        "o_proj": square,
        "ffn_gate": (0, 0),
        "ffn_up": (2 * L * B * T * H * D, 2 * L * (H * D + B * T * (H + D))),
        "ffn_act": (9 * L * B * T * D, 2 * L * B * T * (D + D)),
        "ffn_down": (2 * L * B * T * D * H, 2 * L * (D * H + B * T * (D + H))),
        "norm": (7 * H * (48 * B * T + 3 * B), 2 * (49 * H + (48 * B * T + 3 * B) * (H + H))),
        "position": (B * T * H, 2 * B * T * (H + H + H)),
        "residual": (2 * L * B * T * H, 2 * 2 * L * B * T * (H + H + H)),
        "kv_cache": (0, 2 * L * B * T * (2 * H + 2 * H)),
        "lm_head": (2 * 3 * B * V * H, 2 * (V * H + 3 * B * (H + V))),
    }
    how = {"batch": B, "past": 3, "tokens": T, "scored": 3, "fused_attention": False}
    return "gpt2-medium", {"bias": False}, "bf16", how, rows


def llama_3_long_context():
    """Llama-3 8B (32 query heads on 8 of K and V), NVFP4 weights and cache, the latest 256 tokens in 16 bits:
    one token of each of 4 sequences, the 1024th."""
    L, H, Q, KV, D, V, B, S = 32, 4096, 4096, 1024, 14336, 128256, 4, 1024
    nv = 9 / 16  # bytes: half a byte and a sixteenth of a scale
    kept = 8 * ((S - 256) * (64 + 8) + 256 * 128 * 2)  # K of a sequence in a layer: 8 heads of 128
    attention = 2 * L * B * S * Q, L * B * kept + 2 * L * B * Q
    narrow = 2 * L * B * H * KV, L * H * KV * nv + 2 * L * B * (H + KV)
    wide = 2 * L * B * H * Q, L * H * Q * nv + 2 * L * B * (H + Q)
    ffn = 2 * L * B * H * D, L * H * D * nv + 2 * L * B * (H + D)
    rows = {
        "embedding": (0, 2 * B * (H + H)),
        "q_proj": wide,
        "k_proj": narrow,
        "v_proj": narrow,
        "attn_qk": attention,
        "attn_softmax": (5 * L * B * 32 * S, 0),
        "attn_av": attention,
        "o_proj": wide,
        "ffn_gate": ffn,
        "ffn_up": ffn,
        "ffn_act": (5 * L * B * D, 2 * L * B * (D + D + D)),
        "ffn_down": ffn,
        "norm": (4 * B * 65 * H, 2 * 65 * H + 2 * B * 65 * (H + H)),
        "position": (3 * L * B * (Q + KV), 2 * L * B * 2 * (Q + KV)),
        "residual": (2 * L * B * H, 2 * 2 * L * B * (H + H + H)),
        "kv_cache": (2 * 2 * L * B * KV, 2 * L * B * 8 * 128 * 2 + 2 * L * B * 2 * KV),
        "lm_head": (2 * B * V * H, 2 * (V * H + B * (H + V))),
    }
    return "llama-3-8b", {}, "nvfp4_long_context", {"batch": B, "past": S - 1}, rows


def tinyllama_prompt_in_int8():
    """TinyLlama (32 query heads on 4) with everything in INT8, a float a row: a prompt of 7; of its 22 layers
    11 borrow K and V."""
    L, OWN, H, Q, KV, D, V, T = 22, 11, 2048, 2048, 256, 5632, 32000, 7
    row = T * 4 * (64 + 4)  # K of a layer: 7 tokens, 4 heads of 64 codes and a float
    pairs = 1 + 2 + 3 + 4 + 5 + 6 + 7
    attention = 2 * L * pairs * Q, L * row + 2 * L * T * Q
    square = 2 * L * T * H * Q, L * Q * (H + 4) + 2 * L * T * (H + Q)
    narrow = 2 * OWN * T * H * KV, OWN * KV * (H + 4) + 2 * OWN * T * (H + KV)
    up = 2 * L * T * H * D, L * D * (H + 4) + 2 * L * T * (H + D)
    rows = {
        "embedding": (0, T * (H + 4) + 2 * T * H),
        "q_proj": square,
        "k_proj": narrow,
        "v_proj": narrow,
        "attn_qk": attention,
        "attn_softmax": (5 * L * pairs * 32, 0),
        "attn_av": attention,
        "o_proj": square,
        "ffn_gate": up,
        "ffn_up": up,
        "ffn_act": (5 * L * T * D, 2 * L * T * (D + D + D)),
        "ffn_down": (2 * L * T * H * D, L * H * (D + 4) + 2 * L * T * (D + H)),
        "norm": (4 * H * (44 * T + 1), 45 * (H + 4) + 2 * (44 * T + 1) * (H + H)),
        "position": (3 * T * (L * Q + OWN * KV), 2 * 2 * T * (L * Q + OWN * KV)),
        "residual": (2 * L * T * H, 2 * 2 * L * T * (H + H + H)),
        "kv_cache": (2 * 2 * OWN * T * KV, 2 * OWN * row + 2 * OWN * T * 2 * KV),
        "lm_head": (2 * V * H, V * (H + 4) + 2 * (H + V)),
    }
    return "tinyllama-1.1b", {"borrowing_layers": 11}, "int8", {"tokens": T}, rows


PASSES = {make.__name__: make() for make in (
    gpt2_step, gpt2_medium_prompt, llama_3_long_context, tinyllama_prompt_in_int8
)}  # fmt: skip
CASES = [(name, op) for name, (*_, rows) in PASSES.items() for op in rows]


def predict(name):
    preset, changes, strategy, how, rows = PASSES[name]
    model = dataclasses.replace(roofline.Model.preset(preset), **changes)
    return roofline.predict_pass(roofline.get_hardware("h100"), model, strategy=strategy, **how), rows


@pytest.mark.parametrize(("name", "op"), CASES)
def test_operator(name, op):
    got, rows = predict(name)
    one = next(one for one in got.operators if one.op == op)
    assert (one.flops, one.bytes) == rows[op]


@pytest.mark.parametrize("name", PASSES)
def test_pass_is_their_sum(name):
    got, rows = predict(name)
    assert list(rows) == roofline.op_names()
    assert got.flops == sum(flops for flops, _ in rows.values())
    assert got.bytes == sum(nbytes for _, nbytes in rows.values())


def test_without_logits_the_head_is_not_read():
    model = roofline.Model.preset("llama-3-8b")
    hardware = roofline.get_hardware("h100")
    scored, silent = (
        roofline.predict_pass(hardware, model, past=5, tokens=3, scored=scored) for scored in (1, 0)
    )
    head = 2 * (128256 * 4096 + 4096 + 128256)
    last_norm = 2 * 4096 * (1 + 2)  # its weight, and a row in and out
    assert scored.bytes - silent.bytes == head + last_norm
    assert silent.operators[-1].bytes == 0
