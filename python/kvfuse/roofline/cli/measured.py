"""calibrate and validate."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kvfuse.roofline import calibrate as library
from kvfuse.roofline.cli import FileError, inputs, output
from kvfuse.roofline.measured import Calibration, ValidatedRecord, Validation
from kvfuse.roofline.measured import validate as validate_records


def calibrate(
    output_file: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Where to write (default: kvfuse/calibration.json in $XDG_CONFIG_HOME or ~/.config).",
            metavar="FILE",
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer points and samples: seconds, and a coarser result.")
    ] = False,
    device: Annotated[str, typer.Option(help='"cpu" or "cuda".')] = "cpu",
    json: inputs.Json = False,
) -> None:
    """Measure this machine: read bandwidth, matrix products and attention over sizes and formats.

    The machine should do nothing else meanwhile. Ctrl-C leaves what was there before.

    \b
    Examples:
      kvfuse roofline calibrate
      kvfuse roofline calibrate --quick --output machine.json
      kvfuse roofline predict --hardware here --model gpt2 --strategy fp32     (afterwards)
    """
    inputs.one_of("--device", device, ("cpu", "cuda"))
    path = output_file or library.default_path()
    if path.is_dir():
        raise FileError(f"{path}: expected a file to write, got a folder")
    found = _with_progress(library.QUICK if quick else library.Plan(), device)
    library.save(found, path)
    if json:
        print(found.json(), end="")
        return
    _print_calibration(found, path)


def _with_progress(plan: library.Plan, device: str) -> Calibration:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("calibrate", total=None)

        def progress(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what)

        return library.calibrate(plan, device=device, progress=progress)


def _print_calibration(found: Calibration, path: Path) -> None:
    info = found.hardware().info
    rows = [["read bandwidth", f"{output.number(info.bandwidth_gb_s.value)} GB/s"]]
    rows += [
        [f"fastest product, {name}", f"{output.number(1e3 * peak.value)} GFLOP/s"]
        for name, peak in info.peak_tflop_s.items()
    ]
    output.print_table(f"{info.title}, {info.note}", ["limit", "measured"], rows)
    output.print_lines([f"written to {path}"])


def validate(
    results: Annotated[
        list[Path], typer.Argument(help="Results files of bench_runner.", metavar="RESULTS.jsonl")
    ],
    calibration: inputs.CalibrationFile = None,
    limits_only: Annotated[
        bool,
        typer.Option("--limits-only", help="Set the records beside their own limits, not a calibration."),
    ] = False,
    json: inputs.Json = False,
) -> None:
    """Set predictions beside the records of the runner, with the error of each.

    With a calibration the prediction is what the runner should take, at the bandwidth and product rate of the
    record's own run; without one it is the shortest time that these allow.

    \b
    Examples:
      kvfuse roofline validate docs/results/1-default.jsonl
      kvfuse roofline validate results/*.jsonl --calibration machine.json
      kvfuse roofline validate results.jsonl --limits-only --json
    """
    measured = None if limits_only else inputs.calibration(calibration)
    found = [(path, inputs.read_file(path, lambda path: _validate(path, measured))) for path in results]
    if json:
        return output.print_json([{"file": os.fspath(path), "validation": one} for path, one in found])
    if measured is None:
        output.print_lines(
            ["without a calibration: predicted is the shortest time that each record's limits allow"]
        )
    for path, one in found:
        _print_validation(path, one)
    _print_summary([record for _, one in found for record in one.records])
    return None


def _validate(path: Path, measured: Calibration | None) -> Validation:
    text = path.read_bytes().decode("utf-8", errors="replace")
    return validate_records(text, os.fspath(path), measured)


def _print_validation(path: Path, one: Validation) -> None:
    headers = [
        "version",
        "what",
        "batch",
        "prompt",
        "T",
        "measured ms",
        "predicted ms",
        "error",
        "shortest ms",
        "",
    ]
    rows = [
        [
            record.version,
            record.stage or "generation",
            str(record.batch),
            str(record.prompt_length),
            str(record.T),
            output.number(record.measured_ms),
            output.number(record.predicted_ms),
            f"{100 * record.error:+.1f}%",
            output.number(record.shortest_ms),
            "ABOVE ITS ROOF" if record.above_roof else "",
        ]
        for record in one.records
    ]
    output.print_table(os.fspath(path), headers, rows)
    output.print_lines(f"line {skipped.line} left out: {skipped.reason}" for skipped in one.skipped)


def _print_summary(records: list[ValidatedRecord]) -> None:
    errors = sorted(abs(record.error) for record in records)
    if not errors:
        output.print_lines(["no record to set a prediction beside"])
        return
    middle = (errors[(len(errors) - 1) // 2] + errors[len(errors) // 2]) / 2
    above = sum(record.above_roof for record in records)
    output.print_lines(
        [
            f"{len(errors)} records: median absolute error {output.percent(middle)}, "
            f"largest {output.percent(errors[-1])}, {above} above the roof"
        ]
    )


COMMANDS = (calibrate, validate)
