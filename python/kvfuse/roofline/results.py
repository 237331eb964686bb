"""What the toolkit answers, field by field as in the C++ library (csrc/roofline); units are in the names."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """A number of a machine and where it is from."""

    value: float
    source: str


@dataclass(frozen=True)
class HardwareInfo:
    """A machine: memory bandwidth and dense peaks by format; a format that is absent is not native."""

    name: str
    title: str
    kind: str  # "gpu" or "cpu"
    profile: str  # "vendor", "reference", "user" or "calibrated"
    aliases: list[str]
    bandwidth_gb_s: Figure
    peak_tflop_s: dict[str, Figure]
    memory_gb: Figure | None
    l2_mb: Figure | None
    multiprocessors: Figure | None
    note: str

    @classmethod
    def of(cls, data: dict[str, Any]) -> "HardwareInfo":
        figures = {key: data[key] for key in ("bandwidth_gb_s", "memory_gb", "l2_mb", "multiprocessors")}
        known = {key: Figure(**value) if value else None for key, value in figures.items()}
        peaks = {name: Figure(**peak) for name, peak in data["peak_tflop_s"].items()}
        return cls(**data | known | {"peak_tflop_s": peaks})


@dataclass(frozen=True)
class PrecisionInfo:
    """A number format."""

    name: str
    description: str
    payload_bits: float
    bytes_per_element: float  # scales of blocks included
    quoted_loss_pct: tuple[float, float] | None

    @classmethod
    def of(cls, data: dict[str, Any]) -> "PrecisionInfo":
        loss = data["quoted_loss_pct"]
        return cls(**data | {"quoted_loss_pct": None if loss is None else (loss[0], loss[1])})


@dataclass(frozen=True)
class GemmPrediction:
    """A matrix product [M, K] x [N, K]^T on the roofline."""

    M: int
    N: int
    K: int
    precision: str  # of the weights
    computed_in: str
    storage_only: bool  # the format is not native: it saves bytes and is widened before the product
    flops: float
    bytes: float
    weight_bytes: float
    ai: float  # FLOPs a byte
    critical_ai: float  # from there on the arithmetic is the slower limit
    memory_time_us: float
    compute_time_us: float
    predicted_time_us: float
    bottleneck: str  # "memory" or "compute"
    predicted_tflops: float
    predicted_bandwidth_gb_s: float


@dataclass(frozen=True)
class GemmPoint(GemmPrediction):
    """One of a sweep."""

    hardware: str


@dataclass(frozen=True)
class OperatorPrediction:
    """One of the 17 operators, over all layers of a pass."""

    op: str
    precision: str
    computed_in: str
    storage_only: bool
    flops: float
    bytes: float
    ai: float  # 0 where nothing is moved
    critical_ai: float
    memory_ms: float
    compute_ms: float
    time_ms: float
    bound: str


@dataclass(frozen=True)
class PassPrediction:
    """A forward pass: ``time_ms`` with operators one after the other, ``shortest_ms`` if they overlap."""

    batch: int
    past: int
    tokens: int
    scored: int
    operators: list[OperatorPrediction]
    flops: float
    weight_bytes: float
    cache_bytes: float
    activation_bytes: float
    bytes: float
    ai: float
    memory_ms: float
    compute_ms: float
    time_ms: float
    shortest_ms: float
    bound: str

    @classmethod
    def of(cls, data: dict[str, Any]) -> "PassPrediction":
        return cls(**data | {"operators": [OperatorPrediction(**one) for one in data["operators"]]})


@dataclass(frozen=True)
class GenerationPrediction:
    """A prompt and the tokens generated after it, with a cache."""

    prefill_ms: float
    first_decode_ms: float
    last_decode_ms: float
    decode_ms: float
    total_ms: float
    tokens_per_s: float
    kv_cache_bytes: float
    weight_bytes: float
    resident_bytes: float
    fits_memory: bool


@dataclass(frozen=True)
class AttentionPrediction:
    """One layer's attention by one kernel; ``speedup`` is over FA1 in 16 bits."""

    kernel: str
    precision: str
    flops: float
    bytes: float
    ai: float
    memory_ms: float
    compute_ms: float
    memory_efficiency: float
    compute_efficiency: float
    source: str  # of the efficiencies
    time_ms: float
    bound: str
    speedup: float


@dataclass(frozen=True)
class Precisions:
    """The format of each operator; that of ``kv_cache`` is how K and V are kept."""

    operators: dict[str, str]
    activations: str
    kv_recent_window: int


@dataclass(frozen=True)
class Strategy:
    """A mixed-precision strategy."""

    name: str
    description: str
    quoted_loss_pct: float
    precisions: Precisions

    @classmethod
    def of(cls, data: dict[str, Any]) -> "Strategy":
        return cls(**data | {"precisions": Precisions(**data["precisions"])})


@dataclass(frozen=True)
class Candidate:
    """A strategy as the recommendation weighed it."""

    strategy_name: str
    time_ms: float
    speedup: float  # over fp16_baseline
    weight_bytes: float
    kv_cache_bytes: float
    memory_saving: float
    quoted_loss_pct: float
    bound: str
    admitted: bool
    refusal: str  # why not, if it is not


@dataclass(frozen=True)
class Recommendation:
    """What to run with, and why."""

    strategy_name: str
    attention: str
    setting: str  # "decode", "prefill" or "long_context"
    predicted_time_ms: float
    baseline_time_ms: float
    predicted_speedup: float
    memory_saving: float
    weight_bytes: float
    kv_cache_bytes: float
    quoted_loss_pct: float
    meets_min_speedup: bool
    bottleneck: str
    precisions: Precisions
    prediction: PassPrediction
    candidates: list[Candidate]
    attentions: list[AttentionPrediction]
    reasons: list[str]

    @classmethod
    def of(cls, data: dict[str, Any]) -> "Recommendation":
        return cls(
            **data
            | {
                "precisions": Precisions(**data["precisions"]),
                "prediction": PassPrediction.of(data["prediction"]),
                "candidates": [Candidate(**one) for one in data["candidates"]],
                "attentions": [AttentionPrediction(**one) for one in data["attentions"]],
            }
        )


@dataclass(frozen=True)
class PublishedRow:
    """A published figure beside what this library's accounting gives."""

    table: str
    name: str
    unit: str
    as_published: float
    complete: float | None  # weights, scales, K and V counted once each
    compat: float | None  # by the formula that the published figure follows, where one is known
    note: str


@dataclass(frozen=True)
class ModelPoint:
    """One pass of a sweep over models."""

    hardware: str
    model: str
    strategy: str
    batch: int
    context: int
    time_ms: float
    tokens_per_s: float
    flops: float
    bytes: float
    ai: float
    bound: str
    weight_bytes: float
    kv_cache_bytes: float
    fits_memory: bool
