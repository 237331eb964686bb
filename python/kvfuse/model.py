"""GPT-2 as the runner computes it: the C++ model, its caches and its sampler, from Python."""

import errno
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvfuse import _C

_SIZES = _C.ModelConfig()
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

ModelFileError: type[ValueError] = _C.ModelFileError


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a GPT-2 model."""

    n_layer: int = _SIZES.n_layer
    n_head: int = _SIZES.n_head
    n_embd: int = _SIZES.n_embd
    block_size: int = _SIZES.block_size
    vocab_size: int = _SIZES.vocab_size
    dropout: float = _SIZES.dropout
    bias: bool = _SIZES.bias

    @classmethod
    def preset(cls, name: str) -> "ModelConfig":
        """One of ``preset_names()``.

        Raises:
            ValueError: another name; the message lists the known ones.
        """
        native = _C.preset_config(name)
        return cls(**{field: getattr(native, field) for field in cls.__dataclass_fields__})

    def native(self) -> Any:
        """The same for C++.

        Raises:
            ValueError: sizes that do not fit each other; the message names the field.
        """
        return _C.ModelConfig(**asdict(self))

    @classmethod
    def beside(cls, weights: str | os.PathLike[str]) -> "ModelConfig | None":
        """The sizes in the config.json beside a file of weights, or in their folder; None without one.

        Raises:
            ModelFileError: a config.json that lacks a size.
        """
        path = Path(weights)
        path = (path if path.is_dir() else path.parent) / "config.json"
        if not path.is_file():
            return None
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            named = {name: fields[name] for name in ("n_layer", "n_head", "n_embd", "vocab_size")}
            return cls(**named, block_size=fields["n_positions"], bias=fields.get("bias", _SIZES.bias))
        except (ValueError, KeyError, TypeError) as error:
            raise ModelFileError(
                f"{path}: expected an object with n_layer, n_head, n_embd, n_positions and vocab_size, got "
                f"{type(error).__name__}: {error}"
            ) from None


def preset_names() -> list[str]:
    """The models of known size: gpt2, gpt2-medium and so on."""
    return _C.preset_names()


def dtype_named(dtype: str | torch.dtype) -> torch.dtype:
    """A floating-point type of a model, by its name.

    Raises:
        ValueError: it is none of ``DTYPES``.
    """
    if isinstance(dtype, torch.dtype):
        dtype = str(dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise ValueError(f"dtype: expected {', '.join(DTYPES)}, got {dtype!r}")
    return DTYPES[dtype]


class Cache:
    """The keys and values of the tokens that a ``Gpt2`` has seen; ``Gpt2.make_cache`` makes one."""

    def __init__(self, native: Any) -> None:
        self._native = native

    @property
    def batch(self) -> int:
        return self._native.batch

    @property
    def capacity(self) -> int:
        """Tokens of each sequence that there is room for."""
        return self._native.capacity

    @property
    def lengths(self) -> list[int]:
        """Tokens held, by sequence."""
        return self._native.lengths

    @property
    def nbytes(self) -> int:
        """Bytes held, whether or not tokens fill them."""
        return self._native.nbytes

    def crop(self, length: int) -> None:
        """Forgets all but the first ``length`` tokens.

        Raises:
            IndexError: a sequence has fewer.
        """
        self._native.crop(length)

    def reset(self) -> None:
        """Forgets all tokens; the memory stays."""
        self._native.reset()


OnToken = Callable[[Tensor], bool | None]


class Gpt2:
    """GPT-2 in C++, prepared for one version of the KV cache.

    It is made for inference: there are no gradients and no dropout, and what it returns are inference tensors
    (``clone`` them to use them in training). While it computes, other Python threads run.

    Attributes:
        config: the model's shape.
        version: the name of its version (``kvfuse.versions``).
        dtype, device: of the weights, the logits and the cache.
        seed: what random weights were drawn from.
        warnings: what is odd about the file of weights, a line each.
    """

    def __init__(
        self,
        model: str | ModelConfig = "gpt2",
        version: str = "v1",
        *,
        weights: str | os.PathLike[str] | None = None,
        dtype: str | torch.dtype = "float32",
        device: str | torch.device = "cpu",
        transforms: Sequence[str] = (),
        calibration: Tensor | None = None,
        seed: int = 42,
        strict: bool = False,
    ) -> None:
        """Reads the weights, or draws them.

        Args:
            model: a preset's name, or sizes.
            version: a name in ``kvfuse.versions.VERSIONS``.
            weights: a safetensors file, or a folder with one (names of Hugging Face or nanoGPT); None: random
                weights drawn from ``seed``, as the runner draws them.
            transforms: exact rewritings of the weights, any of k_bias, v_bias, qk_balance and rotation.
            calibration: token ids on which a version that fits its layers (v3f, v4f) does so.
            strict: weights that are NaN or infinite are an error.

        Raises:
            FileNotFoundError: nothing is at ``weights``.
            ModelFileError: the weights are damaged or of another model.
            ValueError: an unknown name, sizes that do not fit each other, or calibration tokens missing.
        """
        self.config = model if isinstance(model, ModelConfig) else ModelConfig.preset(model)
        self.dtype, self.device, self.seed = dtype_named(dtype), torch.device(device), seed
        self.transforms = tuple(transforms)
        native = self.config.native()
        if weights is None:
            self._weights = _C.Gpt2Weights.random(native, self.dtype, self.device, seed)
        elif not Path(weights).exists():
            raise FileNotFoundError(
                errno.ENOENT, "expected a safetensors file or a folder with one, got nothing", str(weights)
            )
        else:
            self._weights = _C.Gpt2Weights.load(Path(weights), native, self.dtype, self.device, strict)
        self.warnings: list[str] = self._weights.warnings
        self._prepare(version, calibration)

    def _prepare(self, version: str, calibration: Tensor | None) -> None:
        self._native = _C.Gpt2(self._weights, version, list(self.transforms), calibration)
        self.version: str = self._native.version

    def with_version(self, version: str, calibration: Tensor | None = None) -> "Gpt2":
        """The same model for another version, which shares the memory of its weights, unless one of the two
        rounds, fits or transforms them.

        Raises:
            ValueError: an unknown version, or calibration tokens that are missing.
        """
        other = object.__new__(Gpt2)
        other.__dict__.update(self.__dict__)
        other._prepare(version, calibration)
        return other

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return self._native.nbytes

    @property
    def layer_fits(self) -> list[dict[str, Any]]:
        """What each fit of a borrowing layer left over: layer, owner, k_error, v_error."""
        return self._native.layer_fits

    def eval(self) -> "Gpt2":
        """Itself: it is never in training mode."""
        return self

    def make_cache(self, batch: int, capacity: int | None = None) -> Cache | None:
        """An empty cache of the version for ``capacity`` tokens (None: block_size); None if it keeps none.

        Raises:
            ValueError: a batch below 1, or a capacity outside 1 to block_size.
        """
        native = self._native.make_cache(batch, capacity)
        return None if native is None else Cache(native)

    def forward(
        self,
        tokens: Tensor,
        cache: Cache | None = None,
        *,
        lengths: Sequence[int] = (),
        every_token: bool = True,
    ) -> Tensor:
        """Logits [batch, T, vocab_size], or if not ``every_token`` [batch, 1, vocab_size] of the last.

        Args:
            tokens: ids, int64 [batch, T].
            cache: None: the tokens are whole sequences. Else they are appended to those that it holds.
            lengths: how many tokens of each row count, if not all.

        Raises:
            ValueError: tokens of another dtype or shape or outside the vocabulary; more of them than
                block_size or the cache has room for; a cache for other layers or another batch.
        """
        native = None if cache is None else cache._native
        return self._native.forward(tokens, list(lengths), native, every_token)

    __call__ = forward

    def generate(
        self,
        tokens: Tensor,
        new_tokens: int,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 42,
        lengths: Sequence[int] = (),
        overflow: str = "error",
        overflow_keep: int | None = None,
        sink_tokens: int = 4,
        on_token: OnToken | None = None,
    ) -> Tensor:
        """Extends each sequence; returns int64 [batch, T + new_tokens], the prompts among them.

        The same seed gives the same tokens on every machine and as the runner does.

        Args:
            tokens: the prompts, ids int64 [batch, T].
            new_tokens: how many to add to each.
            temperature: 0: the most likely token. Else logits are divided by it and a token is drawn.
            top_k: draw from the k most likely tokens only; 0: from all.
            top_p: then from the fewest of them whose probabilities reach p.
            lengths: the prompts' lengths, if they differ; zeros stand behind the shorter sequences.
            overflow: beyond block_size, "error" refuses to begin, "slide" runs the newest ``overflow_keep``
                tokens (None: half of block_size) anew, "sink" drops cached tokens between the first
                ``sink_tokens`` and the newest.
            on_token: called with each new token's ids, int64 [batch], as soon as they are known; False ends
                the generation early. What it raises, and Ctrl-C, ends it too.

        Raises:
            ValueError: prompts as ``forward`` refuses them, an option out of range, more tokens than fit.
        """
        keep = (self.config.block_size + 1) // 2 if overflow_keep is None else overflow_keep
        return self._native.generate(
            tokens,
            list(lengths),
            new_tokens,
            _C.SamplerOptions(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed),
            overflow_policy(overflow, keep, sink_tokens),
            on_token,
        )


def overflow_policy(kind: str, keep: int, sink_tokens: int) -> Any:
    """What happens when a sequence outgrows block_size, for C++."""
    return _C.OverflowPolicy(kind, keep, sink_tokens if kind == "sink" else 0)
