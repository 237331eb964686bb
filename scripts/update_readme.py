"""Writes the result tables of README.md and docs/measuring.md from the committed records in docs/results."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy
from bench_peers.tables import ratio_table, time_table

ROOT = Path(__file__).resolve().parents[1]
RESAMPLES = 2000
BASELINES = ("v0", "v1")


class ResultsError(Exception):
    """One sentence: which file, what was expected, what came."""


def all_records(path: Path) -> Iterator[dict]:
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            raise ResultsError(f"{path.name}:{number}: expected a JSON object: {error.msg}") from None


def newest_runs(path: Path) -> list[list[dict]]:
    """What the last run on each CPU recorded in a file; without a file one run of no records."""
    runs: dict[str, list[dict]] = {}
    for record in all_records(path) if path.exists() else []:
        run = runs.setdefault(record["context"]["cpu"], [])
        if run and run[-1]["run_id"] != record["run_id"]:
            run.clear()
        run.append(record)
    return list(runs.values()) or [[]]


def read_records(path: Path) -> list[dict]:
    """The latency records of one file that were measured, the last one of each (T, version)."""
    latest = {}
    for record in all_records(path):
        if record["benchmark_name"] == "latency_vs_T" and record["status"] == "ok":
            latest[record["T"], record["version"]] = record
    return [latest[key] for key in sorted(latest)]


def speedup(record: dict, baseline: dict) -> str:
    """Ratio of medians with its bootstrap 95 % interval."""
    random = numpy.random.default_rng(0)
    medians = []
    for samples in (baseline["time_total_ms_samples"], record["time_total_ms_samples"]):
        drawn = random.choice(samples, size=(RESAMPLES, len(samples)))
        medians.append(numpy.median(drawn, axis=1))
    low, high = numpy.quantile(medians[0] / medians[1], [0.025, 0.975])
    ratio = baseline["time_total_ms_median"] / record["time_total_ms_median"]
    return f"{ratio:.2f}x [{low:.2f}, {high:.2f}]"


def conditions(record: dict) -> tuple:
    context = record["context"]
    case = (record[key] for key in ("pretrained", "dtype", "batch_size", "prompt_length"))
    return (context["cpu"], context["isa"], context["num_threads"], *case)


def latency_table(path: Path) -> str:
    records = read_records(path)
    if not records:
        raise ResultsError(f"{path.name}: expected at least one measured latency record, got none")
    if len({conditions(record) for record in records}) > 1:
        raise ResultsError(f"{path.name}: expected records of one machine and one model, got several")
    cpu, isa, threads, model, dtype, batch, prompt = conditions(records[0])
    bandwidth = numpy.median([record["read_bandwidth_bytes_per_s"] / 1e9 for record in records])
    lines = [
        f"{cpu} ({isa}), {threads} threads, {bandwidth:.1f} GB/s read bandwidth; {model}, {dtype}, "
        f"batch {batch}, prompt {prompt}. Median times; speed-up with 95 % interval.",
        "",
        "| T | version | total ms | ms/token | "
        + " | ".join(f"vs {name}" for name in BASELINES)
        + " | limit_fraction |",
        "|--:|:--|--:|--:|" + "--:|" * len(BASELINES) + "--:|",
    ]
    by_case = {(record["T"], record["version"]): record for record in records}
    for (tokens, version), record in by_case.items():
        baselines = (by_case.get((tokens, name)) if name != version else None for name in BASELINES)
        ratios = [speedup(record, baseline) if baseline else "" for baseline in baselines]
        times = f"{record['time_total_ms_median']:.1f} | {record['time_per_token_ms_median']:.2f}"
        lines.append(
            f"| {tokens} | {version} | {times} | {' | '.join(ratios)} | {record['limit_fraction']:.2f} |"
        )
    return "\n".join(lines)


def latency_tables(folder: Path) -> str:
    tables = [latency_table(path) for path in sorted(folder.glob("*.jsonl"))]
    return "\n\n".join(tables) or "No measured records in docs/results yet."


def kernels_table(path: Path) -> str:
    """The counters of bench_kernels: our attention beside PyTorch's ways, a row per batch and length."""
    report = json.loads(path.read_text())
    runs = {run["name"].split("/iterations")[0]: run for run in report["benchmarks"]}
    context = report["context"]
    lines = [
        f"{context['threads']} threads, {context['isa']}. Cold: the KV cache is read from memory; "
        "hot: from the CPU's caches.",
        "",
        "| batch | length | | INT8 us | share | float32 share | vs torch float32 | vs dequantise + torch | "
        "float32 vs torch | append / attend |",
        "|--:|--:|:--|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, int8 in runs.items():
        if not name.startswith("int8/"):
            continue
        _, batch, length, state = name.split("/")
        ours, torch, dequantise, append = (
            runs[f"{way}/{batch}/{length}/{state}"]
            for way in ("float32", "torch_float32", "torch_dequantise", "int8_append")
        )
        share = (lambda run: f"{run['share']:.2f}") if state == "cold" else (lambda run: "")
        lines.append(
            f"| {batch[1:]} | {length[1:]} | {state} | {int8['us']:.1f} | {share(int8)} | {share(ours)} | "
            f"{torch['us'] / int8['us']:.2f}x | {dequantise['us'] / int8['us']:.1f}x | "
            f"{torch['us'] / ours['us']:.2f}x | {append['us'] / int8['us']:.3f} |"
        )
    return "\n".join(lines)


def kernels_tables(folder: Path) -> str:
    tables = [kernels_table(path) for path in sorted(folder.glob("bench_kernels*.json"))]
    return "\n\n".join(tables) or "No measured kernels in docs/results yet."


def replace_block(page: str, text: str, name: str, table: str) -> str:
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ResultsError(f"{page}: expected one {begin} and after it one {end}")
    head, rest = text.split(begin)
    return f"{head}{begin}\n{table}\n{end}{rest.split(end)[1]}"


def pages(root: Path) -> dict[str, tuple[str, str]]:
    """Each page with tables: what it says now, and what it should."""
    results = root / "docs" / "results"
    peers = newest_runs(results / "python" / "peers.jsonl")
    blocks = {
        "README.md": {
            "results": latency_tables(results),
            "peers": "\n\n".join(map(ratio_table, peers)),
            "kernels": kernels_tables(results),
        },
        "docs/measuring.md": {"peers": "\n\n".join(map(time_table, peers))},
    }
    texts = {}
    for page, tables in blocks.items():
        old = new = (root / page).read_text()
        for name, table in tables.items():
            new = replace_block(page, new, name, table)
        texts[page] = (old, new)
    return texts


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if a page is not up to date"
    )
    parser.add_argument(
        "--root", type=Path, default=ROOT, metavar="DIR", help="checkout to work on (default: this one)"
    )
    arguments = parser.parse_args(argv)
    try:
        texts = pages(arguments.root)
    except (ResultsError, OSError) as error:
        print(f"update_readme: error: {error}", file=sys.stderr)
        return 3
    except KeyError as error:
        print(f"update_readme: error: docs/results: a record has no {error}", file=sys.stderr)
        return 3
    stale = [page for page, (old, new) in texts.items() if new != old]
    for page in stale:
        if arguments.check:
            print(f"update_readme: error: {page} is not up to date (make results-table)", file=sys.stderr)
        else:
            (arguments.root / page).write_text(texts[page][1])
    return int(arguments.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
