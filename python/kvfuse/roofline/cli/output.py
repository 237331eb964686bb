"""What the commands print: tables for people, JSON for programs."""

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

BYTES_PER_MIB = 2**20


def console() -> Console:
    """Standard output; without a terminal plain text as wide as it needs to be."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, no_color=True, width=10_000)


def print_json(value: Any) -> None:
    """A dataclass, or lists and mappings of them, as JSON; what is not finite as null."""
    print(json.dumps(_plain(value), indent=1))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(title: str, headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns of which the first is text; the others stand to the right if all they hold are numbers."""
    kept = [list(row) for row in rows]
    table = Table(
        title=title or None, title_justify="left", title_style="bold", header_style="bold", box=None
    )
    for index, header in enumerate(headers):
        numeric = index > 0 and all(_is_number(row[index]) for row in kept)
        table.add_column(header, justify="right" if numeric else "left", overflow="fold")
    for row in kept:
        table.add_row(*row)
    console().print(table)


def print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        console().print(line, markup=False)


def _is_number(text: str) -> bool:
    try:
        float(text.rstrip("%x").replace(",", "") or "0")
    except ValueError:
        return text == "-"
    return True


def number(value: float | None, digits: int = 4) -> str:
    """To so many significant digits, without an exponent where it can be read without one."""
    if value is None:
        return "-"
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    if abs(value) >= 1e7 or places > 8:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, places)}f}"


def percent(share: float | None, digits: int = 1) -> str:
    return "-" if share is None else f"{100 * share:.{digits}f}%"


def mib(nbytes: float) -> str:
    return number(nbytes / BYTES_PER_MIB)
