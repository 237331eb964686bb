"""The table of perplexities that a report shows."""

from collections.abc import Sequence

from kvfuse import _C
from kvfuse.perplexity.evaluation import BASELINE, Record

UNCACHED_BASELINE: str = _C.uncached_baseline()


def table(records: Sequence[Record]) -> str:
    """A Markdown table of finished records: Version, Perplexity, Loss, Degradation.

    The baseline is the version without a cache if it is there, else ``BASELINE``.
    """
    finished = [record for record in records if record["status"] == "ok"]
    by_version = {record["version"]: record for record in finished}
    baseline = by_version.get(UNCACHED_BASELINE, by_version.get(BASELINE))
    lines = ["| Version | Perplexity | Loss | Degradation |", "|:--|--:|--:|--:|"]
    for record in finished:
        lines.append(
            f"| {record['version']} | {record['perplexity']:.2f} | {record['loss']:.3f} | "
            f"{_degradation(record, baseline)} |"
        )
    return "\n".join(lines) + "\n"


def _degradation(record: Record, baseline: Record | None) -> str:
    if baseline is None:
        return "-"
    if record is baseline:
        return "baseline"
    percent = 100 * (record["perplexity"] / baseline["perplexity"] - 1)
    decimals = 0 if abs(percent) >= 100 else 2
    return f"{round(percent, decimals) + 0.0:+.{decimals}f} %"  # + 0.0: no negative zero
