"""Predictions on the roofline. Sizes and names that cannot be raise ValueError with one sentence."""

from collections.abc import Sequence
from typing import Any

from kvfuse import _C
from kvfuse.roofline.inputs import Hardware, Model, int64
from kvfuse.roofline.results import (
    AttentionPrediction,
    GemmPoint,
    GemmPrediction,
    GenerationPrediction,
    ModelPoint,
    PassPrediction,
    PrecisionInfo,
    PublishedRow,
    Recommendation,
    Strategy,
)

_native = _C.roofline


def _all_int64(field: str, values: Sequence[int]) -> list[int]:
    return [int64(field, value) for value in values]


def precisions() -> list[PrecisionInfo]:
    """The number formats."""
    return [PrecisionInfo.of(one) for one in _native.precisions()]


def strategies() -> list[Strategy]:
    """The six mixed-precision strategies."""
    return [Strategy.of(one) for one in _native.strategies()]


def op_names() -> list[str]:
    """The 17 operators."""
    return _native.op_names()


def attention_names() -> list[str]:
    return _native.attention_names()


def predict_gemm(
    hardware: Hardware, M: int, N: int, K: int, precision: str, *, payload_only: bool = False
) -> GemmPrediction:
    """M rows of activations times weights [N, K] in a format; ``payload_only`` leaves scales out."""
    sizes = _all_int64("M, N and K", [M, N, K])
    return GemmPrediction(**_native.predict_gemm(hardware.native, *sizes, precision, payload_only))


def predict_gemv(
    hardware: Hardware, N: int, K: int, precision: str, *, payload_only: bool = False
) -> GemmPrediction:
    """``predict_gemm`` of one row."""
    return predict_gemm(hardware, 1, N, K, precision, payload_only=payload_only)


def predict_pass(
    hardware: Hardware,
    model: Model,
    *,
    batch: int = 1,
    past: int = 0,
    tokens: int = 1,
    scored: int = 1,
    fused_attention: bool = True,
    strategy: str = "fp16_baseline",
    count_activations: bool = True,
) -> PassPrediction:
    """A pass over ``tokens`` new tokens a sequence after ``past`` earlier ones, with logits for ``scored``.

    ``strategy`` is one of ``strategies()`` or a format that everything is in. Without ``count_activations``
    weights, K and V are all that is moved.
    """
    sizes = [
        int64(*one) for one in [("batch", batch), ("past", past), ("tokens", tokens), ("scored", scored)]
    ]
    return PassPrediction.of(
        _native.predict_pass(
            hardware.native, model.native(), *sizes, fused_attention, strategy, count_activations
        )
    )


def predict_generation(
    hardware: Hardware,
    model: Model,
    *,
    batch: int = 1,
    prompt_length: int,
    new_tokens: int,
    strategy: str = "fp16_baseline",
    count_activations: bool = True,
) -> GenerationPrediction:
    """A prompt and ``new_tokens`` after it, with a cache."""
    sizes = [
        int64(*one)
        for one in [("batch", batch), ("prompt_length", prompt_length), ("new_tokens", new_tokens)]
    ]
    return GenerationPrediction(
        **_native.predict_generation(hardware.native, model.native(), *sizes, strategy, count_activations)
    )


def kv_cache_bytes(
    model: Model, tokens: int, *, batch: int = 1, precision: str = "fp16", recent_window: int = 0
) -> float:
    """K and V with their scales; the latest ``recent_window`` tokens stay in 16 bits."""
    sizes = [int64("tokens", tokens), int64("batch", batch)]
    return _native.kv_cache_bytes(model.native(), *sizes, precision, int64("recent_window", recent_window))


def kv_crossover_tokens(model: Model, *, batch: float = 1, strategy: str = "fp16_baseline") -> float:
    """The context from which on a decode step reads more K and V than weights."""
    return _native.kv_crossover_tokens(model.native(), strategy, batch)


def compare_attention(
    hardware: Hardware,
    *,
    batch: int = 1,
    n_head: int,
    n_kv_head: int,
    head_dim: int,
    query_tokens: int,
    kv_len: int,
    causal: bool = True,
    kept_share: float = 1.0,
    efficiencies: str = "papers",
) -> list[AttentionPrediction]:
    """One layer's attention by every kernel that does it.

    Args:
        kept_share: of the blocks of scores that FA4 computes; the others compute all.
        efficiencies: "papers" (as each kernel's authors report) or "reference" (the published comparison).
    """
    if efficiencies not in ("papers", "reference"):
        raise ValueError(f'roofline: efficiencies: expected "papers" or "reference", got {efficiencies!r}')
    sizes = [
        int64(*one)
        for one in [
            ("batch", batch),
            ("n_head", n_head),
            ("n_kv_head", n_kv_head),
            ("head_dim", head_dim),
            ("query_tokens", query_tokens),
            ("kv_len", kv_len),
        ]
    ]
    found = _native.compare_attention(
        hardware.native, *sizes, causal, kept_share, efficiencies == "reference"
    )
    return [AttentionPrediction(**one) for one in found]


def recommend(
    hardware: Hardware,
    model: Model,
    *,
    phase: str = "decode",
    seq_len: int = 4096,
    batch: int = 1,
    max_quality_loss_pct: float | None = None,
    min_speedup: float | None = None,
    allow_storage_only: bool = False,
    count_activations: bool = True,
) -> Recommendation:
    """The fastest strategy whose formats are quoted to lose no more than allowed (by default 1 %), and why.

    Args:
        phase: "decode", "prefill" or "auto".
        allow_storage_only: also formats that the machine does not compute in.
    """
    return Recommendation.of(
        _native.recommend(
            hardware.native,
            model.native(),
            phase,
            int64("seq_len", seq_len),
            int64("batch", batch),
            max_quality_loss_pct,
            min_speedup,
            allow_storage_only,
            count_activations,
        )
    )


def sweep_gemm(
    machines: Sequence[Hardware], shapes: Sequence[tuple[int, int, int]], precisions: Sequence[str]
) -> list[GemmPoint]:
    """Every (M, N, K) in every format on every machine, machines outermost; at most 1,000,000."""
    natives = [one.native for one in machines]
    sizes = [_all_int64("M, N and K", shape) for shape in shapes]
    return [GemmPoint(**one) for one in _native.sweep_gemm(natives, sizes, list(precisions))]


def sweep_models(
    machines: Sequence[Hardware],
    models: Sequence[Model],
    *,
    strategies: Sequence[str],
    batches: Sequence[int],
    contexts: Sequence[int],
    prefill: bool = False,
    count_activations: bool = True,
) -> list[ModelPoint]:
    """Every combination, machines outermost and contexts innermost; at most 1,000,000."""
    lists: list[Any] = [[one.native for one in machines], [one.native() for one in models], list(strategies)]
    sizes = [_all_int64("batches", batches), _all_int64("contexts", contexts)]
    return [ModelPoint(**one) for one in _native.sweep_models(*lists, *sizes, prefill, count_activations)]


def published_results() -> list[PublishedRow]:
    """The published expected results beside what full accounting gives."""
    return [PublishedRow(**one) for one in _native.published_results()]
