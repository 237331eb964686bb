"""The roofline toolkit: what transformer inference should take on a machine, and in which formats to run it.

One implementation, csrc/roofline in C++, answers here, on the command line and over HTTP.

>>> from kvfuse import roofline
>>> b10 = roofline.get_hardware("b10", profile="reference")
>>> round(roofline.predict_gemv(b10, 4096, 4096, "fp16").predicted_time_us, 2)
116.97
"""

from kvfuse.roofline.inputs import Hardware, HardwareRegistry, Model, model_names, published_model
from kvfuse.roofline.measured import Calibration, DynamicQuantizer, measure_quality, round_trip, validate
from kvfuse.roofline.predict import (
    attention_names,
    compare_attention,
    kv_cache_bytes,
    kv_crossover_tokens,
    op_names,
    precisions,
    predict_gemm,
    predict_gemv,
    predict_generation,
    predict_pass,
    published_results,
    recommend,
    strategies,
    sweep_gemm,
    sweep_models,
)


def get_hardware(name: str, profile: str = "vendor") -> Hardware:
    """A machine that the toolkit brings, by name or alias, in any case.

    Raises:
        ValueError: unknown; the message lists the known ones and the nearest.
    """
    return HardwareRegistry().find(name, profile)


__all__ = [
    "Calibration",
    "DynamicQuantizer",
    "Hardware",
    "HardwareRegistry",
    "Model",
    "attention_names",
    "compare_attention",
    "get_hardware",
    "kv_cache_bytes",
    "kv_crossover_tokens",
    "measure_quality",
    "model_names",
    "op_names",
    "precisions",
    "predict_gemm",
    "predict_gemv",
    "predict_generation",
    "predict_pass",
    "published_model",
    "published_results",
    "recommend",
    "round_trip",
    "strategies",
    "sweep_gemm",
    "sweep_models",
    "validate",
]
