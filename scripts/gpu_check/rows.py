"""The rows that parts give, the table of them, and where they are kept."""

import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
SCHEMA_VERSION = 1


@dataclass
class Row:
    """One line of the table: what was checked or measured, and how it stands to its goal."""

    case: str
    result: str
    status: str = "ok"  # ok, skipped, failed (could not be done) or wrong (gave wrong results)
    goal: str = ""
    met: bool | None = None  # None: there is no goal
    data: dict = field(default_factory=dict)  # the figures, with every sample
    part: str = ""


@dataclass(frozen=True)
class Context:
    """What a part needs to know."""

    device: str
    quick: bool  # small sizes and few samples, to try the code
    deadline: float  # of time.monotonic()


def table(rows: Sequence[Row]) -> str:
    met = {None: "", True: "met", False: "MISSED"}
    lines = [("part", "case", "status", "goal", "", "result")]
    lines += [(row.part, row.case, row.status, row.goal, met[row.met], row.result) for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def python_environment(*folders: Path) -> dict[str, str]:
    """Ours, for a Python that is to find modules in `folders`, too."""
    places = [*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(places)}


def first_line_of(*command: str) -> str | None:
    """What a program prints; None if it is missing or fails."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip().split("\n")[0] if result.returncode == 0 else None


def machine(device: str) -> dict:
    """What the figures belong to."""
    facts = {
        "device": device,
        "card": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "commit": first_line_of("git", "describe", "--always", "--dirty", "--abbrev=12"),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts |= {
            "card": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "l2_bytes": properties.L2_cache_size,
            "driver": first_line_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            "max_sm_clock": first_line_of("nvidia-smi", "--query-gpu=clocks.max.sm", "--format=csv,noheader"),
        }
    return facts


def record_path(folder: Path, card: str, when: time.struct_time) -> Path:
    """<date>-<card>.json in `folder`, numbered from the second of a day on."""
    name = re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")
    stem = f"{time.strftime('%Y-%m-%d', when)}-{name}"
    path, number = folder / f"{stem}.json", 1
    while path.exists():
        number += 1
        path = folder / f"{stem}-{number}.json"
    return path


def write_record(path: Path, facts: dict, rows: Sequence[Row], seconds: dict[str, float]) -> None:
    record = {
        "schema_version": SCHEMA_VERSION,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": facts,
        "part_seconds": seconds,
        "rows": [asdict(row) for row in rows],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
