"""``python -m kvfuse.convert ckpt.pt out.safetensors``: a nanoGPT checkpoint as a file that can run no code.

A config.json goes beside the weights, since their shapes do not show the number of heads.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kvfuse._exit_codes import DATA, INTERRUPTED, RESOURCES, USAGE, fail
from kvfuse.nanogpt.checkpoint import CheckpointError, read_checkpoint

NAME = "kvfuse.convert"


def convert(checkpoint: Path, out: Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Writes ``out``, a safetensors file, and config.json beside it; returns the checkpoint's ``model_args``.

    Each appears whole or not at all.

    Raises:
        CheckpointError: the checkpoint is damaged, holds more than tensors and plain values, or is of another
            model.
        FileExistsError: ``out``, or a config.json of another model, is there, and ``overwrite`` is not set.
        OSError: a file cannot be read or written.
        ImportError: the package safetensors is missing.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.torch import save_file
    except ImportError as error:
        raise ImportError("expected the package safetensors (pip install 'kvfuse[weights]')") from error
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out}: expected a new file, got one that exists (--overwrite replaces it)")
    tensors, arguments = read_checkpoint(checkpoint)
    config, text = out.with_name("config.json"), config_text(arguments)
    if config.exists() and not overwrite and config.read_text() != text:
        raise FileExistsError(
            f"{config}: expected none, or that of this model, got another one (--overwrite replaces it; "
            "better give each model its folder)"
        )
    _write_whole(config, lambda path: path.write_text(text))
    try:
        _write_whole(out, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    except SafetensorError as error:  # of the disk: the tensors are checked
        raise OSError(f"{out}: {error}") from error
    return arguments


def config_text(arguments: dict[str, Any]) -> str:
    """The sizes by the names of Hugging Face's GPT-2, and what nanoGPT computes."""
    config = {
        "model_type": "gpt2",
        "n_layer": arguments["n_layer"],
        "n_head": arguments["n_head"],
        "n_embd": arguments["n_embd"],
        "n_positions": arguments["block_size"],
        "vocab_size": arguments["vocab_size"],
        "bias": arguments["bias"],
        "activation_function": "gelu",
        "layer_norm_epsilon": 1e-5,
    }
    return json.dumps(config, indent=2) + "\n"


def _write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Through a file beside it that takes its name once it is on disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {NAME}", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="what nanoGPT's train.py saved")
    parser.add_argument("out", type=Path, help="the .safetensors file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")
    options = parser.parse_args(words)
    if options.out.suffix != ".safetensors":
        parser.error(f"out: expected a name that ends in .safetensors, got {options.out}")
    if not options.out.parent.is_dir():
        parser.error(f"out: expected a folder that exists, got {options.out.parent}")
    try:
        arguments = convert(options.checkpoint, options.out, overwrite=options.overwrite)
    except CheckpointError as error:
        return fail(NAME, f"{options.checkpoint}: {error}", DATA)
    except FileExistsError as error:
        return fail(NAME, str(error), USAGE)
    except OSError as error:
        of_checkpoint = error.filename in (options.checkpoint, str(options.checkpoint))
        return fail(
            NAME,
            f"{error.filename}: {error.strerror}" if error.filename else str(error),
            DATA if of_checkpoint else RESOURCES,
        )
    except (MemoryError, ImportError) as error:
        return fail(NAME, str(error) or "not enough memory", RESOURCES)
    except KeyboardInterrupt:
        return INTERRUPTED
    sizes = ", ".join(f"{name}: {arguments[name]}" for name in ("n_layer", "n_head", "n_embd", "block_size"))
    print(
        f"wrote {options.out}\nmodel_config: {{{sizes}, vocab_size: {arguments['vocab_size']}, "
        f"bias: {str(arguments['bias']).lower()}}}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
