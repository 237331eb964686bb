"""The versions: named choices of how keys and values are kept. ``python -m kvfuse.versions`` lists them.

They are the rows of one table in C++ (csrc/versions/registry.cpp), which the runner uses as well.
"""

from typing import TYPE_CHECKING, Any

import torch

from kvfuse import _C

if TYPE_CHECKING:
    from kvfuse.model import Gpt2, ModelConfig

VersionConfig = dict[str, Any]

VERSIONS: dict[str, VersionConfig] = {row["name"]: row for row in _C.versions()}
"""By name: ``name``, ``description``, ``use_cache``, ``kv_cache_dtype`` ("model" or "int8"),
``sharing_group`` (layers that share one K/V; 1 = none), ``q_alignment_method`` ("none", "copy" or "fit") and
``weight_dtype`` ("model", "int8" or "int4"); and, as the flags that these amount to, ``kv_cache_quant``,
``cross_layer_sharing`` and ``q_alignment``."""


def get_version_config(version: str) -> VersionConfig:
    """The definition of a version: the fields of ``VERSIONS``.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    if version not in VERSIONS:
        raise ValueError(f'unknown version "{version}" (known: {", ".join(VERSIONS)})')
    return dict(VERSIONS[version])


def get_use_cache(version: str) -> bool:
    """Whether keys and values are kept between tokens. Raises ValueError for an unknown name."""
    return get_version_config(version)["use_cache"]


def get_kv_cache_quant(version: str) -> bool:
    """Whether they are quantised. Raises ValueError for an unknown name."""
    return get_version_config(version)["kv_cache_quant"]


def get_cross_layer_sharing(version: str) -> bool:
    """Whether layers share them. Raises ValueError for an unknown name."""
    return get_version_config(version)["cross_layer_sharing"]


def get_q_alignment(version: str) -> bool:
    """Whether borrowing layers' queries are adapted to their owner's keys; False where nothing is shared.

    Raises ValueError for an unknown name.
    """
    return get_version_config(version)["q_alignment"]


def create_model(version: str, model: "str | ModelConfig" = "gpt2", **options: Any) -> "Gpt2":
    """A model with the version's flags, on a GPU if there is one. ``options`` are those of ``Gpt2``.

    Raises:
        What ``Gpt2`` raises.
    """
    from kvfuse.model import Gpt2  # here: the registry alone needs no model

    device = "cuda" if _C.has_cuda_operators() and torch.cuda.is_available() else "cpu"
    return Gpt2(model, version, **({"device": device} | options))


def load_model_for_version(
    version: str, preset: "str | ModelConfig" = "gpt2", dtype: "str | torch.dtype" = "float32", **options: Any
) -> "tuple[Gpt2, VersionConfig]":
    """The model, prepared for the version, and the version's definition.

    Without ``weights`` among the ``options`` (those of ``Gpt2``) the weights are random.

    Raises:
        What ``Gpt2`` raises.
    """
    v_config = get_version_config(version)
    return create_model(version, preset, dtype=dtype, **options), v_config


def get_model_config_dict(model: "Gpt2") -> dict[str, Any]:
    """The ``model_config`` of a record: the model's sizes, ``kv_cache_quant`` and ``cross_layer_sharing``."""
    return model._native.model_config


def listing() -> str:
    """The versions and their choices, one a line."""
    fields = (
        "name",
        "use_cache",
        "kv_cache_dtype",
        "sharing_group",
        "q_alignment_method",
        "weight_dtype",
        "description",
    )
    rows = [fields, *(tuple(_shown(row, field) for field in fields) for row in VERSIONS.values())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _shown(row: VersionConfig, field: str) -> str:
    """A dash where the choice has no meaning."""
    uncached = field in ("kv_cache_dtype", "sharing_group") and not row["use_cache"]
    unshared = field == "q_alignment_method" and not row["cross_layer_sharing"]
    if uncached or unshared:
        return "-"
    value = row[field]
    return str(value) if not isinstance(value, bool) else "yes" if value else "no"
