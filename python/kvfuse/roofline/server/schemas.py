"""Requests and answers of the API, as far as the library's own types are not answers themselves."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from kvfuse.roofline.inputs import Model
from kvfuse.roofline.measured import SkippedRecord, ValidatedRecord
from kvfuse.roofline.results import AttentionPrediction, GemmPrediction
from kvfuse.roofline.server.settings import Limits

# The library states upper bounds and which names there are, and refuses the rest with a sentence of its own.
Size = Annotated[int, Field(strict=True, ge=1)]
Count = Annotated[int, Field(strict=True, ge=0)]
SeqLen = Annotated[
    int,
    Field(
        strict=True,
        ge=1,
        le=Limits.seq_len,
        description="Tokens in the cache at a decode step, or of the prompt.",
    ),
]
Flag = Annotated[bool, Field(strict=True)]
Name = Annotated[str, Field(strict=True, max_length=100)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class HardwareChoice(_Request):
    hardware: Name = Field(description="A name or alias of /api/hardware.", examples=["h100"])
    profile: Name = Field("vendor", description="Whose figures: one of the machine's profiles.")


class ModelLetters(_Request):
    """A Llama-style model without embedding and head."""

    H: Size = Field(description="Width of the model.")
    L: Size = Field(description="Layers.")
    nh: Size = Field(description="Query heads.")
    nkv: Size = Field(description="K and V heads.")
    dh: Size = Field(description="Width of a head.")
    dff: Size = Field(description="Width of the FFN.")


class ModelSizes(_Request):
    """The same in words, with all that a model may have."""

    n_layer: Size
    n_embd: Size
    n_head: Size
    n_kv_head: Size
    head_dim: Size
    d_ff: Size
    vocab_size: Count = 0
    block_size: Count = 0
    borrowing_layers: Count = 0
    bias: Flag = False
    architecture: Name = "llama"
    name: Name = "custom"


def _form_of_model(value: Any) -> str:
    letters = isinstance(value, dict) and not value.keys().isdisjoint(ModelLetters.model_fields)
    return "letters" if letters or isinstance(value, ModelLetters) else "sizes"


ModelForm = Annotated[
    Annotated[ModelLetters, Tag("letters")] | Annotated[ModelSizes, Tag("sizes")],
    Discriminator(_form_of_model),
]


class ModelChoice(_Request):
    model: Name | None = Field(None, description="A name of /api/models.", examples=["llama-3-8b"])
    sizes: ModelForm | None = Field(None, alias="model_config", description="Or a model's sizes.")

    @model_validator(mode="after")
    def _one_of_both(self) -> "ModelChoice":
        if (self.model is None) == (self.sizes is None):
            got = "none" if self.model is None else "both"
            raise ValueError(f"expected either model or model_config, got {got}")
        return self


class Gemm(_Request):
    """[M, K] x [N, K]^T; M = 1 is a matrix-vector product."""

    M: Size = Field(examples=[1])
    N: Size = Field(examples=[4096])
    K: Size = Field(examples=[4096])


class AnalyzeRequest(HardwareChoice, Gemm):
    precision: Name = Field(description="Of the weights.", examples=["fp16"])
    measure: Flag = Field(False, description="Also measure the product on the server's machine.")


class SweepRequest(HardwareChoice):
    shapes: list[Gemm] = Field(min_length=1, max_length=Limits.sweep_points)
    precisions: list[Name] = Field(min_length=1, max_length=16, examples=[["fp16", "fp8"]])
    measure: Flag = False


class RecommendRequest(HardwareChoice, ModelChoice):
    phase: Name = Field("decode", description="decode, prefill or auto.")
    seq_len: SeqLen = 4096
    batch: Size = 1
    max_quality_loss_pct: float | None = Field(None, strict=True, ge=0)
    min_speedup: float | None = Field(None, strict=True, gt=0)
    allow_storage_only: Flag = False


class PredictRequest(HardwareChoice, ModelChoice):
    phase: Literal["decode", "prefill"] = "decode"
    seq_len: SeqLen = 4096
    batch: Size = 1
    strategy: Name = Field("fp16_baseline", description="One of the strategies, or one format for all.")


class KvRequest(ModelChoice):
    batch: Size = 1
    contexts: list[Size] = Field(min_length=1, max_length=Limits.contexts, examples=[[1024, 4096]])
    precisions: list[Name] = Field(min_length=1, max_length=16, examples=[["fp16", "int8"]])
    recent_window: Count = Field(0, description="So many latest tokens stay in 16 bits.")


class AttentionRequest(HardwareChoice):
    batch: Size = 1
    n_head: Size = Field(examples=[32])
    n_kv_head: Size = Field(examples=[8])
    head_dim: Size = Field(examples=[128])
    query_tokens: Size = Field(1, examples=[1])
    kv_len: Size = Field(examples=[4096])
    causal: Flag = True
    kept_share: float = Field(1, strict=True, gt=0, le=1, description="Of the blocks of scores, for FA4.")
    efficiencies: Name = Field("papers", description="papers or reference.")


class HardwareSources(BaseModel):
    """Where the figures are from."""

    bandwidth: str
    memory: str | None
    peaks: dict[str, str]


class HardwareEntry(BaseModel):
    name: str
    title: str
    kind: str  # "gpu" or "cpu"
    aliases: list[str]
    bandwidth_gb_s: float
    memory_gb: float | None
    peak_tflop_s: dict[str, float]  # by native format, dense
    critical_intensity: dict[str, float]  # FLOPs a byte
    profiles: list[str]
    sources: HardwareSources
    note: str


class HardwareAnswer(BaseModel):
    hardware: list[HardwareEntry]


class ModelsAnswer(BaseModel):
    models: list[Model]


class OptionsAnswer(BaseModel):
    """What requests can name, and what the server admits."""

    precisions: list[str]
    strategies: list[str]
    attention: list[str]
    operators: list[str]
    phases: list[str]
    measuring: bool  # whether `measure` is admitted
    calibrated: str | None  # the machine "here", by which results files are checked
    limits: Limits


class Measurement(BaseModel):
    measured_time_us: float
    measured_bandwidth_gb_s: float
    measured_tflops: float
    emulated: bool  # the machine does not compute in the format


class AnalyzeAnswer(BaseModel):
    hardware: str
    M: int
    N: int
    K: int
    precision: str
    theory: GemmPrediction
    measurement: Measurement | None
    efficiency: float | None  # predicted over measured time


class SweepAnswer(BaseModel):
    results: list[AnalyzeAnswer]


class Total(BaseModel):
    """Of a pass: `time_ms` with operators one after the other, `shortest_ms` if they overlap."""

    time_ms: float
    shortest_ms: float
    flops: float
    bytes: float
    bottleneck: str  # "memory" or "compute"
    ai: float


class OperatorRow(BaseModel):
    name: str
    flops: float
    bytes: float
    time_ms: float
    ai: float
    bottleneck: str  # "memory" or "compute"
    precision: str
    storage_only: bool


class RoofLines(BaseModel):
    bandwidth_gb_s: float
    peak_tflop_s: dict[str, float]


class PredictAnswer(BaseModel):
    total: Total
    operators: list[OperatorRow]
    roofs: RoofLines
    kv_cache_bytes: float
    weight_bytes: float
    fits_memory: bool


class KvCurve(BaseModel):
    precision: str
    bytes: list[float]  # one for each context


class KvAnswer(BaseModel):
    curves: list[KvCurve]
    weight_bytes: float  # in 16 bits
    crossover_tokens: dict[str, float]  # from which K and V outweigh them, by format


class AttentionAnswer(BaseModel):
    kernels: list[AttentionPrediction]


@dataclass(frozen=True)
class RecordRow(ValidatedRecord):
    """A record as the page shows it."""

    label: str
    ai: float
    achieved_flops: float  # a second


class ValidateAnswer(BaseModel):
    machine: str  # of the calibration; empty where each record's own limits were used
    records: list[RecordRow]
    skipped: list[SkippedRecord]
    median_absolute_error: float | None
    largest_absolute_error: float | None
    above_roof: int
