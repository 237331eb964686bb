"""Scores versions of a model on a text and makes their records, with the code of the runner."""

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from kvfuse import _C
from kvfuse.model import Gpt2, overflow_policy
from kvfuse.perplexity.dataset import Dataset
from kvfuse.prepare_data import DataError

Record = dict[str, Any]

BASELINE: str = _C.cached_baseline()
"""The version that losses of quality are counted from: a cache in the model's own precision."""


@dataclass(frozen=True)
class Calibration:
    """Token ids that versions fit their layers on; without a path drawn at random."""

    tokens: torch.Tensor
    path: str | None = None
    sha256: str | None = None


class Evaluation:
    """Scores versions of a model on a text and makes their records."""

    def __init__(
        self,
        model: Gpt2,
        dataset: Dataset,
        *,
        model_name: str = "custom",
        weights: str | None = None,
        autoregressive: bool = False,
        max_tokens: int | None = None,
        document_separator: int | None = None,
        overflow: str = "error",
        overflow_keep: int | None = None,
        sink_tokens: int = 4,
        batch_size: int = 1,
        divergence: bool = False,
        calibration: Calibration | None = None,
    ) -> None:
        """Cuts the text. ``model``'s own version does not matter.

        Args:
            model_name: a preset's, or "custom"; with ``weights``, their path, it names the model in records.
            autoregressive: token by token through the version's cache; else each window in one pass without
                one, which gives every version of the same weights the same number.
            max_tokens: of the text.
            document_separator: the token that begins a document; None: the text is one.
            overflow: as ``Gpt2.generate``; only autoregressive.
            batch_size: windows side by side.
            divergence: also how far the predictions are from those of ``BASELINE``; only autoregressive.
            calibration: for versions that fit their layers.

        Raises:
            DataError: there is nothing to predict.
            ValueError: options that are out of range or do not fit each other.
        """
        keep = (model.config.block_size + 1) // 2 if overflow_keep is None else overflow_keep
        if not autoregressive and (divergence or overflow != "error"):
            raise ValueError("perplexity: expected autoregressive beside divergence or overflow")
        self.model, self.dataset, self.calibration = model, dataset, calibration
        self.divergence = divergence
        self._facts = _C.PerplexityFacts(
            dataset=dataset.path,
            dataset_sha256=dataset.sha256,
            autoregressive=autoregressive,
            max_tokens=max_tokens,
            document_separator=document_separator,
            overflow=overflow_policy(overflow, keep, sink_tokens),
        )
        native_config = model.config.native()
        self._windows = _C.Windows(dataset.tokens.tolist(), native_config, self._facts, batch_size)
        if self._windows.predicted == 0:
            where = "" if document_separator is None else " in a document"
            raise DataError(
                f"{dataset.path}: expected at least 2 tokens{where}, got {dataset.tokens.size} in all"
            )
        self._run = _C.RunFacts(
            model_name=model_name,
            model=native_config,
            dtype=str(model.dtype).removeprefix("torch."),
            weights=weights,
            transforms=list(model.transforms),
            device=model.device,
            batch_size=batch_size,
            seed=model.seed,
            calibration=calibration.path if calibration else None,
            calibration_sha256=calibration.sha256 if calibration else None,
            calibration_tokens=calibration.tokens.numel() if calibration else None,
            python_version=platform.python_version(),
        )

    @property
    def num_tokens(self) -> int:
        """How many are predicted."""
        return self._windows.predicted

    def case(self, version: str) -> Record:
        """What identifies the measurement: equal cases are the same one."""
        return self._run.perplexity_case(self._facts, version)

    def measure(
        self,
        version: str,
        baseline: float | None = None,
        on_scored: Callable[[int], bool | None] | None = None,
    ) -> Record:
        """The record of a version, whatever became of it: ``status`` is ok, oom, failed or interrupted.

        Args:
            baseline: the perplexity that ``degradation``, in percent, is counted from.
            on_scored: told how many tokens have been scored.
        """
        started = time.perf_counter()
        prepared, score, status, reason = None, None, "ok", ""
        try:
            prepared = self._prepared(version)
            reference = None
            if self.divergence and version != BASELINE:
                reference = self._prepared(BASELINE)._native
            score = _C.score(prepared._native, self._windows, self._facts, reference, on_scored)
            if score.problem:
                status, reason = "failed", score.problem
        except KeyboardInterrupt:
            status, reason = "interrupted", "stopped by signal 2"
        except (torch.OutOfMemoryError, MemoryError) as error:
            status, reason = "oom", str(error) or "the system has no memory left"
        except (ValueError, RuntimeError) as error:
            status, reason = "failed", str(error)
        record = _C.make_record("perplexity", self.case(version), status, reason)
        record |= self._run.metadata(version, prepared._native if prepared else None)
        record |= _C.perplexity_fields(self._facts, self._windows, time.perf_counter() - started)
        if status == "ok":
            size = _C.TextSize(self._windows, self.dataset.decode) if self.dataset.decode else None
            record |= _C.score_fields(score, self._windows, size, baseline)
        return record

    def _prepared(self, version: str) -> Gpt2:
        return self.model.with_version(version, self.calibration.tokens if self.calibration else None)
