"""What was measured: calibrations of a machine, values under a number format, records beside predictions."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvfuse import _C
from kvfuse.roofline.inputs import Hardware, Model, int64

_native = _C.roofline

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class CodecQuality:
    """What encoding and decoding does to values."""

    relative_rms_error: float
    largest_error: float
    signal_to_noise_db: float  # infinite without an error
    bytes_per_element: float


@dataclass(frozen=True)
class DynamicDecision:
    """What a step of dynamic quantisation saw and did."""

    step: int
    tensor: str
    absmax: float
    rolling_absmax: float
    outlier_share: float
    before: str
    after: str
    reason: str


@dataclass(frozen=True)
class TimeParts:
    """Predicted from a calibration."""

    products_ms: float
    attention_ms: float
    elementwise_ms: float
    overhead_ms: float
    total_ms: float


@dataclass(frozen=True)
class Roofs:
    """What a machine was measured to do at best."""

    read_bytes_per_s: float
    matmul_flops_per_s: float
    ridge: float


@dataclass(frozen=True)
class ValidatedRecord:
    """A record of the runner beside its prediction; ``error`` is (predicted - measured) / measured."""

    line: int
    benchmark: str
    version: str
    stage: str
    model: str
    dtype: str
    batch: int
    prompt_length: int
    T: int
    measured_ms: float
    predicted_ms: float
    error: float
    shortest_ms: float
    above_roof: bool
    flops: float
    bytes: float


@dataclass(frozen=True)
class SkippedRecord:
    """A record that there is nothing to predict of."""

    line: int
    reason: str


@dataclass(frozen=True)
class Validation:
    """All records of a file."""

    machine: str
    records: list[ValidatedRecord]
    skipped: list[SkippedRecord]
    median_absolute_error: float | None
    largest_absolute_error: float | None
    above_roof: int

    @classmethod
    def of(cls, data: dict[str, Any]) -> "Validation":
        records = [ValidatedRecord(**one) for one in data["records"]]
        return cls(
            **data | {"records": records, "skipped": [SkippedRecord(**one) for one in data["skipped"]]}
        )


class Calibration:
    """The rates of a machine, from JSON of the form that ``json`` gives.

    Raises:
        ValueError: one sentence that names origin, place, rule and value.
    """

    def __init__(self, json_text: str, origin: str = "calibration") -> None:
        self.native = _native.Calibration(json_text, origin)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Calibration":
        """Raises OSError, too, if the file cannot be read."""
        return cls(Path(path).read_bytes().decode("utf-8", errors="replace"), os.fspath(path))

    def json(self) -> str:
        return self.native.json()

    def hardware(self, name: str = "here") -> Hardware:
        """The machine with its measured roofs, to ask ``kvfuse.roofline.predict`` about."""
        return Hardware(self.native.hardware(name))

    def roofs(self, precision: str) -> Roofs:
        return Roofs(**self.native.roofs(precision))

    def predict_pass(
        self,
        model: Model,
        *,
        batch: int = 1,
        past: int = 0,
        tokens: int = 1,
        dtype: str = "fp32",
        kv: str = "fp32",
    ) -> TimeParts:
        """What the runner should take for one pass, weights in ``dtype`` and K and V in ``kv``."""
        sizes = [int64("batch", batch), int64("past", past), int64("tokens", tokens)]
        return TimeParts(**self.native.predict_pass(model.native(), *sizes, dtype, kv))

    def predict_generation(
        self,
        model: Model,
        *,
        batch: int = 1,
        prompt_length: int,
        new_tokens: int,
        cached: bool = True,
        dtype: str = "fp32",
        kv: str = "fp32",
    ) -> TimeParts:
        """What the runner should take for a prompt and the tokens after it."""
        sizes = [
            int64("batch", batch),
            int64("prompt_length", prompt_length),
            int64("new_tokens", new_tokens),
        ]
        return TimeParts(**self.native.predict_generation(model.native(), cached, *sizes, dtype, kv))


def validate(jsonl: str, origin: str = "records", calibration: Calibration | None = None) -> Validation:
    """Predictions beside the records of a results file of the runner.

    Without a calibration the prediction is the shortest time that each record's own limits allow.

    Raises:
        ValueError: a line is no record; the message names it.
    """
    return Validation.of(_native.validate(jsonl, origin, None if calibration is None else calibration.native))


def _matrix(values: npt.ArrayLike) -> Floats:
    matrix = np.atleast_2d(np.asarray(values, dtype=np.float32))
    if matrix.ndim != 2:
        raise ValueError(f"roofline: expected values of one or two dimensions, got {matrix.ndim}")
    return matrix


def round_trip(values: npt.ArrayLike, precision: str) -> Floats:
    """Values, [columns] or [rows, columns], encoded in a format and decoded again."""
    matrix = _matrix(values)
    return _native.round_trip(matrix, *matrix.shape, precision).reshape(np.shape(values))


def measure_quality(values: npt.ArrayLike, precision: str) -> CodecQuality:
    """What a format does to values, [columns] or [rows, columns]."""
    matrix = _matrix(values)
    return CodecQuality(**_native.measure_quality(matrix, *matrix.shape, precision))


class DynamicQuantizer:
    """Precision that follows the values: raised for a tensor with outliers, lowered after calm steps.

    Args:
        ladder: formats, cheapest first.
        outlier_sigmas: beyond so many standard deviations from the mean a value is an outlier.
        raise_share: share of outliers above which the precision rises by one.
        calm_steps: steps without such a share after which it falls by one.
        absmax_window: steps that the rolling largest magnitude covers.
    """

    def __init__(
        self,
        ladder: Sequence[str] = ("nvfp4", "fp8", "fp16"),
        *,
        outlier_sigmas: float = 6.0,
        raise_share: float = 1e-3,
        calm_steps: int = 8,
        absmax_window: int = 16,
    ) -> None:
        self._native = _native.DynamicQuantizer(
            list(ladder),
            outlier_sigmas=outlier_sigmas,
            raise_share=raise_share,
            calm_steps=int64("calm_steps", calm_steps),
            absmax_window=int64("absmax_window", absmax_window),
        )

    def observe(self, tensor: str, values: npt.ArrayLike) -> DynamicDecision:
        return DynamicDecision(**self._native.observe(tensor, np.asarray(values, dtype=np.float32)))

    def precision_of(self, tensor: str) -> str:
        return self._native.precision_of(tensor)

    def log(self) -> list[DynamicDecision]:
        return [DynamicDecision(**one) for one in self._native.log()]
