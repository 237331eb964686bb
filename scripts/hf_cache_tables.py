"""The tables of what bench_hf_caches.py recorded, in Markdown."""

import numpy
from gpu_check.timing import ratio

BASELINE = "DynamicCache float32"


def speedup(baseline: list[float], samples: list[float]) -> str:
    found = ratio(baseline, samples)
    return f"{found['value']:.2f}x [{found['low']:.2f}, {found['high']:.2f}]"


def speed_table(records: list[dict]) -> str:
    records = [record for record in records if record["status"] == "ok"]
    base = {record["model"]: record for record in records if record["cache"] == BASELINE}
    lines = [
        "| model | cache | generate s | speed-up | decode ms/token | speed-up | cache MB | smaller |",
        "|:--|:--|--:|--:|--:|--:|--:|--:|",
    ]
    for record in records:
        of = base[record["model"]]
        keys = ("generate_ms_samples", "decode_ms_per_token_samples")
        total, token = (numpy.median(record[key]) for key in keys)
        faster = [speedup(of[key], record[key]) if record is not of else "" for key in keys]
        smaller = f"{of['cache_bytes'] / record['cache_bytes']:.2f}x" if record is not of else ""
        lines.append(
            f"| {record['model']} | {record['cache']} | {total / 1e3:.2f} | {faster[0]} | {token:.1f} | "
            f"{faster[1]} | {record['cache_bytes'] / 1e6:.1f} | {smaller} |"
        )
    return "\n".join(lines)


def perplexity_table(records: list[dict]) -> str:
    lines = ["| trained model | cache | perplexity | KL from float32, nats |", "|:--|:--|--:|--:|"]
    for record in records:
        found = "not finite" if record["perplexity"] is None else f"{record['perplexity']:.5f}"
        kl = "" if record.get("mean_kl") is None else f"{record['mean_kl']:.1e}"
        lines.append(f"| {record['model']} | {record['cache']} | {found} | {kl} |")
    return "\n".join(lines)


TABLES = {"hf_generate": speed_table, "hf_perplexity": perplexity_table}


def print_tables(records: list[dict]) -> None:
    for name, table in TABLES.items():
        of_kind = [record for record in records if record["benchmark_name"] == name]
        if of_kind:
            print(table(of_kind), end="\n\n")
    for record in records:
        if record["status"] == "skipped":
            print(f"{record['cache']}: skipped: {record['reason']}")
