"""Runs the parts one after another, each in a process of its own with a time limit: one that fails, hangs
or breaks the device's context does not stop the others.

Exit codes: 0 what was checked is right, though goals for speed may be missed, or there is no GPU; 1 an
operator gave wrong results, or its tests could not be run; 2 command line.
"""

import argparse
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from gpu_check.rows import ROOT, Context, Row, machine, python_environment, record_path, table, write_record

MEASUREMENTS = ROOT / "docs" / "measurements"
GRACE_S = 5.0  # of a part's time, in which it finishes what it has begun


@dataclass(frozen=True)
class Part:
    name: str
    module: str
    function: str
    limit_s: float
    correctness: bool = False  # the exit code is 1 if it fails


# 470 seconds in all.
PARTS = (
    Part("operators", "gpu_check.programs", "operators", 180, correctness=True),
    Part("sanitizers", "gpu_check.programs", "sanitizers", 110, correctness=True),
    Part("bandwidth", "gpu_check.programs", "bandwidth", 15),
    Part("decode", "gpu_check.decode", "run", 80),
    Part("step", "gpu_check.programs", "step", 85),
)


def no_device_reason() -> str:
    """Why there is no CUDA device; empty if there is one."""
    if torch.cuda.is_available():
        return ""
    if torch.version.cuda is None:
        return "this PyTorch was built without CUDA"
    try:
        torch.cuda.init()
    except RuntimeError as error:
        return str(error).split(". ")[0].strip()
    return "PyTorch finds none"


def run_part(part: Part, context: Context, output: Path) -> None:
    """In the part's own process: a line of `output` for each row, as soon as there is one."""
    function = getattr(importlib.import_module(part.module), part.function)
    with output.open("w") as file:
        for row in function(context):
            print(json.dumps(asdict(row)), file=file, flush=True)


def start_part(part: Part, arguments: argparse.Namespace) -> list[Row]:
    """The rows of a part, and one that says what went wrong, if something did."""
    with tempfile.TemporaryDirectory() as folder:
        output, said = Path(folder) / "rows.jsonl", Path(folder) / "said.txt"
        command = [sys.executable, ROOT / "scripts" / "gpu_check.py", "--part", part.name, "--rows", output]
        command += ["--device", arguments.device, *(["--quick"] if arguments.quick else [])]
        environment = python_environment(ROOT / "python")
        with said.open("w") as log:
            process = subprocess.Popen(
                [str(word) for word in command],
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
            try:
                code = process.wait(timeout=part.limit_s)
                end = f"ended with {code}" if code else ""
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                end = f"stopped after {part.limit_s:g} s"
        rows = (
            [Row(**json.loads(line)) for line in output.read_text().splitlines()] if output.exists() else []
        )
        if end:
            words = [line.strip() for line in said.read_text(errors="replace").splitlines() if line.strip()]
            rows.append(Row(part.name, ": ".join([end, *words[-1:]]), status="failed"))
    for row in rows:
        row.part = part.name
    return rows


def exit_code(rows: list[Row]) -> int:
    vital = {part.name for part in PARTS if part.correctness}
    return int(any(row.status == "wrong" or (row.status == "failed" and row.part in vital) for row in rows))


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(
        prog="gpu_check.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--parts", nargs="+", choices=names, default=names, metavar="PART", help=", ".join(names)
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu only tries the code")
    parser.add_argument("--quick", action="store_true", help="small sizes and few samples, to try the code")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="default: docs/measurements/<date>-<card>.json"
    )
    parser.add_argument("--part", choices=names, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def check_all(arguments: argparse.Namespace) -> int:
    rows, seconds = [], {}
    for part in PARTS:
        if part.name in arguments.parts:
            print(f"gpu-check: {part.name} (at most {part.limit_s:g} s)", file=sys.stderr, flush=True)
            start = time.monotonic()
            rows += start_part(part, arguments)
            seconds[part.name] = round(time.monotonic() - start, 1)
    facts = machine(arguments.device)
    path = arguments.output or record_path(MEASUREMENTS, facts["card"], time.localtime())
    write_record(path, facts, rows, seconds)
    print(f"{facts['card']}, driver {facts.get('driver')}, torch {facts['torch']}, commit {facts['commit']}")
    print(table(rows))
    print(f"{sum(seconds.values()):.0f} s; record: {path}")
    return exit_code(rows)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    if arguments.part:
        part = next(part for part in PARTS if part.name == arguments.part)
        deadline = time.monotonic() + part.limit_s - GRACE_S
        run_part(part, Context(arguments.device, arguments.quick, deadline), arguments.rows)
        return 0
    if arguments.device == "cuda" and (reason := no_device_reason()):
        print(f"gpu-check: skipped: no CUDA device ({reason})")
        return 0
    return check_all(arguments)
