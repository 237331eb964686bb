"""What the commands that run a model share: its options, and how they end."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from kvfuse import _C
from kvfuse._exit_codes import DATA, INTERRUPTED, RESOURCES, USAGE, fail
from kvfuse.model import DTYPES, ModelConfig, ModelFileError, preset_names
from kvfuse.prepare_data import DataError, DownloadError

ResourceError: type[OSError] = _C.ResourceError


HINTS = {
    "text": "give a file that is already here: --dataset FILE",
    "vocabulary": "give a folder with vocab.bpe and encoder.json: --vocab DIR",
}


class UsageError(Exception):
    """What is wrong with the words of a command, in one sentence."""


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """--weights, --preset, --dtype, --device, --transforms, --vocab and --seed."""
    parser.add_argument(
        "--weights",
        metavar="PATH",
        help="a safetensors file, or a folder with one (default: random weights)",
    )
    parser.add_argument(
        "--preset",
        choices=preset_names(),
        help="the model's sizes (default: those of the config.json beside the weights, or gpt2)",
    )
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32", help="default: %(default)s")
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="default: a GPU if there is one",
    )
    parser.add_argument(
        "--transforms",
        nargs="+",
        default=[],
        metavar="NAME",
        help="rewritings of the weights: k_bias, v_bias, qk_balance, rotation",
    )
    parser.add_argument(
        "--vocab",
        type=Path,
        metavar="DIR",
        help="folder with GPT-2's vocab.bpe and encoder.json (default: tiktoken downloads them)",
    )
    parser.add_argument("--seed", type=int, default=42, help="default: %(default)s")


@dataclass(frozen=True)
class ModelOptions:
    """What the options say: ``name`` is a preset's, or "custom"."""

    name: str
    config: ModelConfig
    device: torch.device


def model_options(arguments: argparse.Namespace) -> ModelOptions:
    """The model that the options mean."""
    if arguments.seed < 0:
        raise UsageError(f"--seed: expected a number >= 0, got {arguments.seed}")
    presets = {name: ModelConfig.preset(name) for name in preset_names()}
    config = None
    if arguments.preset:
        config = presets[arguments.preset]
    elif arguments.weights:
        config = ModelConfig.beside(arguments.weights)
    config = config or presets["gpt2"]
    name = next((name for name, known in presets.items() if known == config), "custom")
    device = arguments.device
    if device == "auto":
        device = "cuda" if _C.build_info()["cuda_loaded"] else "cpu"
    elif device == "cuda" and not _C.build_info()["cuda_loaded"]:
        raise UsageError("--device: expected cpu, since there is no GPU with CUDA operators, got cuda")
    return ModelOptions(name, config, torch.device(device))


def run(name: str, command: Callable[[], int]) -> int:
    """The exit code of ``command``; what it raises becomes a sentence on stderr and an exit code."""
    try:
        return command()
    except KeyboardInterrupt:
        return INTERRUPTED
    except DataError as error:
        hint = f" ({HINTS[error.missing]})" if isinstance(error, DownloadError) else ""
        return fail(name, f"{error}{hint}", DATA)
    except UsageError as error:
        return fail(name, str(error), USAGE)
    except (ModelFileError, FileNotFoundError) as error:
        return fail(name, _sentence(error), DATA)
    except ValueError as error:
        return fail(name, str(error), USAGE)
    except (torch.OutOfMemoryError, MemoryError) as error:
        return fail(name, f"the machine has no memory left: {error}", RESOURCES)
    except OSError as error:
        return fail(name, _sentence(error), RESOURCES)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)
