"""Reads what nanoGPT's train.py saves, without running what a pickle may ask for."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MAX_LISTED = 10
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
SIZES = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size")
EMBEDDING, HEAD = "transformer.wte.weight", "lm_head.weight"
DAMAGED = (RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, zipfile.BadZipFile)


class CheckpointError(Exception):
    """What is wrong with a checkpoint, in one line."""


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights by nanoGPT's names, without "_orig_mod.", masks and the tied head; and ``model_args``.

    Only by ``torch.load(weights_only=True)``, which refuses a pickle that does anything but hold tensors and
    plain values.

    Raises:
        CheckpointError: it is damaged, holds more than that, or is of another model.
        OSError: the file cannot be read.
    """
    if path.exists() and not path.is_file():
        raise CheckpointError("expected a regular file")  # a pipe would block
    try:
        _check_is_not_compressed(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            "expected a file of torch.save with nothing but tensors and plain values, got one that is "
            f"damaged or asks for more, which is not run ({_reason(error)})"
        ) from error
    except (*DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # it cannot be opened
        raise CheckpointError(
            f"expected a file of torch.save, got a damaged one ({_reason(error)})"
        ) from error
    if not isinstance(checkpoint, dict) or not {"model", "model_args"} <= checkpoint.keys():
        raise CheckpointError("expected what nanoGPT's train.py saves: a dict with 'model' and 'model_args'")
    if not isinstance(checkpoint["model"], dict) or not isinstance(checkpoint["model_args"], dict):
        raise CheckpointError("expected 'model' and 'model_args' to be dicts")
    arguments = checkpoint["model_args"]
    _check_arguments(arguments, len(checkpoint["model"]))
    return _checked_tensors(checkpoint["model"], arguments), arguments


def _check_is_not_compressed(path: Path) -> None:
    """torch.save only stores: what inflates may grow without bound."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        compressed = [entry for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
    if compressed:
        raise CheckpointError(f"expected entries as torch.save stores them, got {len(compressed)} compressed")


def _reason(error: Exception) -> str:
    """The sentence of PyTorch's message that names the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "GLOBAL" in line or "Unsupported" in line]
    return (named or lines or [type(error).__name__])[0].removeprefix("WeightsUnpickler error: ")


def _check_arguments(arguments: dict[str, Any], tensors: int) -> None:
    for name in SIZES:
        value = arguments.get(name)
        if type(value) is not int or value < 1:
            raise CheckpointError(f"expected a whole number >= 1 as {name} in model_args, got {value!r}")
    if type(arguments.get("bias")) is not bool:
        raise CheckpointError(f"expected True or False as bias in model_args, got {arguments.get('bias')!r}")
    if arguments["n_embd"] % arguments["n_head"]:
        raise CheckpointError(
            f"expected n_embd to be a multiple of n_head {arguments['n_head']}, got {arguments['n_embd']}"
        )
    if arguments["n_layer"] > tensors:
        raise CheckpointError(f"expected weights of {arguments['n_layer']} layers, got {tensors} tensors")


def _expected_shapes(arguments: dict[str, Any]) -> dict[str, list[int]]:
    """Of every tensor but the head."""
    n = arguments["n_embd"]
    shapes = {EMBEDDING: [arguments["vocab_size"], n], "transformer.wpe.weight": [arguments["block_size"], n]}

    def add(name: str, *shape: int) -> None:
        shapes[f"transformer.{name}.weight"] = [*shape]
        if arguments["bias"]:
            shapes[f"transformer.{name}.bias"] = [shape[0]]

    for layer in range(arguments["n_layer"]):
        add(f"h.{layer}.ln_1", n)
        add(f"h.{layer}.attn.c_attn", 3 * n, n)
        add(f"h.{layer}.attn.c_proj", n, n)
        add(f"h.{layer}.ln_2", n)
        add(f"h.{layer}.mlp.c_fc", 4 * n, n)
        add(f"h.{layer}.mlp.c_proj", n, 4 * n)
    add("ln_f", n)
    return shapes


def _checked_tensors(stored: dict[Any, Any], arguments: dict[str, Any]) -> dict[str, Tensor]:
    shapes = _expected_shapes(arguments)
    masks = {f"transformer.h.{layer}.attn.bias" for layer in range(arguments["n_layer"])}
    found: dict[str, Any] = {}
    problems = []
    for key, tensor in stored.items():
        name = str(key).removeprefix("_orig_mod.")
        if name in found:
            problems.append(f"{name!r} is given twice")
        elif name in shapes or name == HEAD:
            found[name] = tensor
            problems += _tensor_problems(name, tensor, shapes[EMBEDDING if name == HEAD else name])
        elif name not in masks:
            problems.append(f"{name!r} is not part of the model")
    found.setdefault(EMBEDDING, found.get(HEAD))
    problems += [f"{name!r} is missing" for name in shapes if found.get(name) is None]
    head = found.get(HEAD)
    if not problems and head is not None and not torch.equal(head, found[EMBEDDING]):
        problems.append(f"{HEAD!r} differs from {EMBEDDING!r}, to which it should be tied")
    if problems:
        plural = "s" if len(problems) > 1 else ""
        more = f"; and {len(problems) - MAX_LISTED} more" if len(problems) > MAX_LISTED else ""
        raise CheckpointError(
            f"expected the model that model_args describes, got {len(problems)} difference{plural}: "
            f"{'; '.join(problems[:MAX_LISTED])}{more}"
        )
    return {name: found[name].detach().contiguous() for name in shapes}


def _tensor_problems(name: str, tensor: Any, shape: list[int]) -> list[str]:
    if not isinstance(tensor, Tensor):
        return [f"{name!r} is no tensor but {type(tensor).__name__}"]
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.dtype not in FLOATS:
        return [
            f"{name!r} is not dense values of floats but {tensor.layout}, {tensor.device}, {tensor.dtype}"
        ]
    if list(tensor.shape) != shape:
        return [f"{name!r} has shape {list(tensor.shape)}, expected {shape}"]
    if tensor.nbytes > tensor.untyped_storage().nbytes():
        return [f"{name!r} repeats fewer values than its shape {shape} holds"]
    return []
