"""Results files of ``bench_runner`` and of this package: reading them, and speed-ups by T.

The records are dicts, so that ``pandas.DataFrame(load_records(path))`` is a table.
"""

import json
import statistics
from pathlib import Path
from typing import Any

DEDUP = ("first", "last")


def load_records(
    path: Path | str, *, benchmark: str | None = None, dedup: str | None = "first"
) -> list[dict[str, Any]]:
    """The records of a results file, one JSON object a line, in the order of the file.

    ``benchmark`` keeps those of one, such as "latency_vs_T". Of several records of one case the first counts,
    or the last with ``dedup="last"``, or all with None. A last line that was cut off is left out.

    Raises:
        ValueError: a damaged line, or an unknown ``dedup``.
        OSError: the file cannot be read.
    """
    if dedup is not None and dedup not in DEDUP:
        raise ValueError(f"load_records: expected a dedup of {' or '.join(DEDUP)} or None, got {dedup!r}")
    records: dict[Any, dict[str, Any]] = {}
    text = Path(path).read_text()
    lines = text.splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines) and not text.endswith("\n"):
                break
            raise ValueError(f"{path}:{number}: expected a JSON object: {error.msg}") from error
        if not isinstance(record, dict):
            raise ValueError(f"{path}:{number}: expected a JSON object, got {type(record).__name__}")
        if benchmark is not None and record.get("benchmark_name") != benchmark:
            continue
        case = json.dumps(record["case"], sort_keys=True) if dedup and "case" in record else number
        if dedup == "last" or case not in records:
            records[case] = record
    return list(records.values())


def speedup(records: list[dict[str, Any]], reference: str, version: str) -> dict[int, float]:
    """By T, the median time of ``reference`` over that of ``version``: above 1, ``version`` is faster.

    For ``records`` of "latency_vs_T" that differ in nothing but version and T; a T that one of the two lacks
    is left out.

    Raises:
        ValueError: two records of one version and T.
    """
    medians: dict[str, dict[int, float]] = {reference: {}, version: {}}
    for record in records:
        of_version = medians.get(record["version"])
        samples = record.get("time_total_ms_samples")
        if of_version is None or record["benchmark_name"] != "latency_vs_T" or not samples:
            continue
        if record["T"] in of_version:
            raise ValueError(
                f"speedup: expected one record of {record['version']} at T {record['T']}, got two (they "
                "differ in something else: choose among them first)"
            )
        of_version[record["T"]] = statistics.median(samples)
    return {
        T: milliseconds / medians[version][T]
        for T, milliseconds in medians[reference].items()
        if T in medians[version]
    }
