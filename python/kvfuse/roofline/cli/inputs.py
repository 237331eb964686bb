"""Options that several commands share, and what they mean."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from kvfuse.roofline.calibrate import default_path
from kvfuse.roofline.cli import FileError
from kvfuse.roofline.inputs import Hardware, HardwareRegistry, Model, published_model
from kvfuse.roofline.measured import Calibration

HERE = "here"  # the name of the machine that was calibrated
PUBLISHED = "published"  # the model of the published figures

T = TypeVar("T")

HardwareName = Annotated[
    str, typer.Option("--hardware", "-H", help="A machine: kvfuse roofline hardware lists them.")
]
HardwareNames = Annotated[str, typer.Option("--hardware", "-H", help="Machines, separated by commas.")]
HardwareFile = Annotated[
    Path | None,
    typer.Option(help="Machines of your own, a JSON file of the form of docs/roofline.md.", metavar="FILE"),
]
Profile = Annotated[str, typer.Option(help='Figures to use: "vendor" or "reference" (as published).')]
ModelName = Annotated[
    str, typer.Option("--model", "-m", help='A preset such as gpt2 or llama-3-8b, or "published".')
]
Sizes = Annotated[
    str | None,
    typer.Option(
        help="A Llama-style model without embedding and head: H=4096,L=32,nh=32,nkv=8,dh=128,dff=14336.",
        metavar="LETTERS",
    ),
]
Context = Annotated[int, typer.Option("--context", "-c", help="Tokens: before the new one, or of a prompt.")]
Contexts = Annotated[str, typer.Option("--context", "-c", help="Tokens, separated by commas.")]
Batch = Annotated[int, typer.Option("--batch", "-b", help="Sequences side by side.")]
StrategyName = Annotated[
    str, typer.Option("--strategy", "-s", help="A strategy, or a format that everything is in.")
]
PhaseName = Annotated[str, typer.Option(help='"decode" or "prefill".')]
CalibrationFile = Annotated[
    Path | None,
    typer.Option(help="Where calibrate wrote (default: the user's configuration folder).", metavar="FILE"),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def read_file(path: Path, read: Callable[[Path], T]) -> T:
    """What ``read`` makes of a file.

    Raises:
        FileError: it cannot be read, or ``read`` raises ValueError.
    """
    try:
        return read(path)
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise FileError(str(error)) from None


def calibration(path: Path | None) -> Calibration | None:
    """That of a file; without one that of this machine, or None if it was never calibrated."""
    if path is None:
        path = default_path()
        if not path.exists():
            return None
    return read_file(path, Calibration.read)


def registry(file: Path | None = None) -> HardwareRegistry:
    """The toolkit's machines and those of a file."""
    known = HardwareRegistry()
    if file is not None:
        read_file(file, known.add_file)
    return known


def machine(name: str, profile: str, file: Path | None, calibrated: Path | None = None) -> Hardware:
    """The machine of a name; "here" is the one that was calibrated."""
    if name.lower() != HERE:
        return registry(file).find(name, profile)
    found = calibration(calibrated)
    if found is None:
        raise ValueError(
            f"--hardware {HERE}: expected a calibration, got none (run kvfuse roofline calibrate)"
        )
    return found.hardware(HERE)


def model(name: str, sizes: str | None) -> Model:
    """The model that --model or --sizes names."""
    if sizes is None:
        return published_model() if name == PUBLISHED else Model.preset(name)
    letters: dict[str, int] = {}
    for part in sizes.split(","):
        key, _, value = part.partition("=")
        letters[key.strip()] = whole("--sizes", value)
    return Model.of_letters(letters)


def whole(option: str, text: str) -> int:
    """A whole number."""
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{option}: expected whole numbers, got {text.strip()!r}") from None


def whole_numbers(option: str, text: str) -> list[int]:
    return [whole(option, part) for part in text.split(",")]


def names(option: str, text: str) -> list[str]:
    """Names between commas."""
    found = [part.strip() for part in text.split(",")]
    if not all(found):
        raise ValueError(f"{option}: expected names separated by commas, got {text!r}")
    return found


def one_of(option: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(f"{option}: expected {' or '.join(allowed)}, got {value!r}")
    return value
