"""``python -m kvfuse.fetch gpt2``: a published model's safetensors files and its config.json, no others.

Files that could run code when they are loaded, such as pickles, stay where they are.
"""

import argparse
import sys
from pathlib import Path

from kvfuse._exit_codes import DATA, INTERRUPTED, RESOURCES, USAGE, fail

NAME = "kvfuse.fetch"
PUBLISHER = "openai-community"  # of gpt2, gpt2-medium, gpt2-large and gpt2-xl
BESIDE_WEIGHTS = ("config.json", "model.safetensors.index.json")


class FetchError(Exception):
    """What went wrong, in one line, and the exit code that goes with it."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def fetch(model: str, out: Path) -> str:
    """Downloads ``model``, a name on Hugging Face's hub, into the folder ``out``; returns its commit.

    Of a name without publisher, that of GPT-2 is meant. What is there already is not downloaded again.

    Raises:
        FetchError: no such model, one without safetensors, no network, no room, or no huggingface_hub.
    """
    try:
        from huggingface_hub import HfApi, errors, snapshot_download
    except ImportError as error:
        raise FetchError(
            "expected the package huggingface_hub (pip install 'kvfuse[weights]')", RESOURCES
        ) from error
    name = model if "/" in model else f"{PUBLISHER}/{model}"
    try:
        info = HfApi().model_info(name, files_metadata=True)
        sizes = {file.rfilename: file.size for file in info.siblings or [] if _is_wanted(file.rfilename)}
        if not any(file.endswith(".safetensors") for file in sizes):
            raise FetchError(f"{name}: expected a model with safetensors files, got one without", DATA)
        # By the listed commit: asked by branch, and offline, it takes whatever `out` holds for the model.
        snapshot_download(name, revision=info.sha, local_dir=out, allow_patterns=list(sizes))
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise FetchError(
            f"{name}: expected a model on the hub, got none of that name (or none that may be read)", USAGE
        ) from error
    except (errors.HTTPError, OSError) as error:
        raise FetchError(f"{name}: cannot be fetched ({_first_line(error)})", RESOURCES) from error
    for file, size in sizes.items():
        path = out / file
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            raise FetchError(f"{path}: expected {size} bytes, got {found} (fetch it again)", RESOURCES)
    return str(info.sha)


def _is_wanted(file: str) -> bool:
    return "/" not in file and (file.endswith(".safetensors") or file in BESIDE_WEIGHTS)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=f"python -m {NAME}", description=__doc__.splitlines()[0])
    parser.add_argument("model", help="gpt2, gpt2-medium, gpt2-large, gpt2-xl, or PUBLISHER/NAME")
    parser.add_argument("--out", type=Path, help="folder for the files (default: the model's name)")
    options = parser.parse_args(words)
    out = options.out or Path(options.model.rpartition("/")[2])
    try:
        commit = fetch(options.model, out)
    except FetchError as error:
        return fail(NAME, str(error), error.code)
    except KeyboardInterrupt:
        return INTERRUPTED
    print(f"{out}: {options.model} at {commit}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
