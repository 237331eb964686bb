"""What the toolkit is asked about: machines and models."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kvfuse import _C
from kvfuse.roofline.results import HardwareInfo

_native = _C.roofline

_INT64_MAX = 2**63 - 1


def int64(field: str, value: object) -> int:
    """``value`` as C++ can take it.

    Raises:
        ValueError: it is no whole number, or one of more than 64 bits.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"roofline: expected {field} to be a whole number, got {value!r}")
    if abs(value) > _INT64_MAX:
        raise ValueError(f"roofline: expected {field} to fit 64 bits, got a number of {value.bit_length()}")
    return value


class Hardware:
    """A machine of a registry."""

    def __init__(self, native: Any) -> None:
        self.native = native

    @property
    def name(self) -> str:
        return self.native.name

    @property
    def info(self) -> HardwareInfo:
        return HardwareInfo.of(self.native.as_dict())

    def critical_ai(self, precision: str) -> float:
        """FLOPs a byte from which on arithmetic in this format is the slower limit."""
        return self.native.critical_intensity(precision)

    def __repr__(self) -> str:
        return f"Hardware({self.name!r})"


class HardwareRegistry:
    """The machines that the toolkit knows: its own, then what is added."""

    def __init__(self) -> None:
        self._native = _native.HardwareRegistry()

    def add_file(self, path: str | os.PathLike[str]) -> None:
        """Adds the machines of a JSON file of the form of csrc/roofline/data/hardware.json, or none of them.

        Raises:
            ValueError: one sentence that names file, place, rule and value.
            OSError: the file cannot be read.
        """
        self._native.add_json(Path(path).read_bytes().decode("utf-8", errors="replace"), os.fspath(path))

    def add(self, hardware: Hardware) -> None:
        """Adds a machine, or replaces the one of its name."""
        self._native.add(hardware.native)

    def find(self, name: str, profile: str = "vendor") -> Hardware:
        """A machine by its name or an alias, in any case; with profile "reference" its published figures.

        Raises:
            ValueError: unknown; the message lists the known ones and the nearest.
        """
        return Hardware(self._native.find(name, profile))

    def names(self) -> list[str]:
        return self._native.names()

    def all(self) -> list[Hardware]:
        return [Hardware(one) for one in self._native.all()]

    def with_reference_figures(self) -> list[Hardware]:
        """Those that have published figures beside the vendor's, with these."""
        return [Hardware(one) for one in self._native.with_reference_figures()]


@dataclass(frozen=True)
class Model:
    """The shape of a decoder-only transformer. A ``vocab_size`` of 0 leaves embedding and head out."""

    n_layer: int
    n_embd: int
    n_head: int
    n_kv_head: int
    head_dim: int
    d_ff: int
    vocab_size: int = 0
    block_size: int = 0  # learned positions (gpt2)
    borrowing_layers: int = 0  # that use another layer's K and V
    bias: bool = False
    architecture: str = "llama"  # or "gpt2"
    name: str = "custom"

    @classmethod
    def preset(cls, name: str) -> "Model":
        """One of ``model_names()``: GPT-2 sizes and Llama-style models.

        Raises:
            ValueError: another name; the message lists the known ones and the nearest.
        """
        return cls(**_native.model_preset(name).as_dict())

    @classmethod
    def of_letters(cls, sizes: Mapping[str, int]) -> "Model":
        """From the keys H, L, nh, nkv, dh, dff: a Llama-style model without embedding and head.

        Raises:
            ValueError: another key, or one is missing.
        """
        letters = ("H", "L", "nh", "nkv", "dh", "dff")
        if set(sizes) != set(letters):
            raise ValueError(
                f"roofline: model_config: expected the keys {', '.join(letters)}, got {', '.join(sizes)}"
            )
        return cls(
            n_layer=sizes["L"],
            n_embd=sizes["H"],
            n_head=sizes["nh"],
            n_kv_head=sizes["nkv"],
            head_dim=sizes["dh"],
            d_ff=sizes["dff"],
        )

    def native(self) -> Any:
        """The same for C++.

        Raises:
            ValueError: sizes that cannot be; the message names field, rule and value.
        """
        values = asdict(self)
        for field in ("name", "architecture"):
            if not isinstance(values[field], str):
                raise ValueError(f"roofline: expected {field} to be a string, got {values[field]!r}")
        if not isinstance(self.bias, bool):
            raise ValueError(f"roofline: expected bias to be true or false, got {self.bias!r}")
        sizes = {
            key: int64(key, value)
            for key, value in values.items()
            if key not in ("name", "architecture", "bias")
        }
        return _native.ModelShape(**values | sizes)


def model_names() -> list[str]:
    """Of ``Model.preset``."""
    return _native.model_names()


def published_model() -> Model:
    """Llama-3 8B without embedding and head, the example of the published figures."""
    return Model(**_native.published_model().as_dict())
