"""The recommendation under its documented names.

>>> from kvfuse.roofline.hardware_registry import BLACKWELL_B10
>>> from kvfuse.roofline.quantization_integration import IntegratedQuantizationEngine
>>> llama_3_8b = {"H": 4096, "L": 32, "nh": 32, "nkv": 8, "dh": 128, "dff": 14336}
>>> answer = IntegratedQuantizationEngine(BLACKWELL_B10).recommend(llama_3_8b, "decode", 4096)
>>> answer.config.strategy_name, answer.flash_attention
('nvfp4_blackwell', 'FA3')
"""

from collections.abc import Mapping
from dataclasses import dataclass

from kvfuse.roofline.inputs import Hardware, Model
from kvfuse.roofline.predict import recommend
from kvfuse.roofline.results import Precisions, Recommendation

_MIB = 1 << 20  # what the published table calls MB


@dataclass(frozen=True)
class QuantizationConfig:
    """A strategy and the format that it gives each operator."""

    strategy_name: str
    precisions: Precisions


@dataclass(frozen=True)
class EngineAnswer:
    """What to run with; ``recommendation`` is the whole answer."""

    config: QuantizationConfig
    flash_attention: str
    predicted_time_ms: float
    baseline_time_ms: float
    predicted_speedup: float
    memory_savings: float  # share of the baseline's weights and cache
    kv_cache_mb: float  # 2^20 bytes each
    quality_loss: float  # per cent, the most that a format used is quoted to lose
    bottleneck: str
    reasons: list[str]
    recommendation: Recommendation


class IntegratedQuantizationEngine:
    """Recommends strategy and attention for a machine."""

    def __init__(self, hardware: Hardware) -> None:
        self.hardware = hardware

    def recommend(
        self,
        model_config: Mapping[str, int] | Model,
        phase: str,
        seq_len: int,
        batch: int = 1,
        max_quality_loss: float | None = None,
        min_speedup: float | None = None,
    ) -> EngineAnswer:
        """As ``kvfuse.roofline.recommend``.

        Args:
            model_config: with the keys H, L, nh, nkv, dh, dff, or a ``Model``.
            max_quality_loss: in per cent.
        """
        model = model_config if isinstance(model_config, Model) else Model.of_letters(model_config)
        found = recommend(
            self.hardware,
            model,
            phase=phase,
            seq_len=seq_len,
            batch=batch,
            max_quality_loss_pct=max_quality_loss,
            min_speedup=min_speedup,
        )
        return EngineAnswer(
            config=QuantizationConfig(found.strategy_name, found.precisions),
            flash_attention=found.attention,
            predicted_time_ms=found.predicted_time_ms,
            baseline_time_ms=found.baseline_time_ms,
            predicted_speedup=found.predicted_speedup,
            memory_savings=found.memory_saving,
            kv_cache_mb=found.kv_cache_bytes / _MIB,
            quality_loss=found.quoted_loss_pct,
            bottleneck=found.bottleneck,
            reasons=found.reasons,
            recommendation=found,
        )
