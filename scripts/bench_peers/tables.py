"""The tables of what bench_peers recorded, in Markdown: the times of all sides, and ours by each peer's."""

from typing import Any

Record = dict[str, Any]

GENERATE, PREFILL = "peers_generate", "peers_prefill"
NONE = "No measured peers in docs/results/python yet."


def conditions(records: list[Record]) -> str:
    first = measured(records)[0]
    context, bandwidths = first["context"], [each.get("read_bandwidth_bytes_per_s") for each in records]
    rates = [rate / 1e9 for rate in bandwidths if rate]
    bandwidth = f", {rates[0]:.1f} GB/s read bandwidth" if rates else ""
    rounds = f"{first['rounds']} round{'s' if first['rounds'] > 1 else ''} in turn"
    return (
        f"{context['cpu']} ({context['isa']}), {context['num_threads']} threads{bandwidth}; {first['model']} "
        f"with random weights, batch 1, {rounds}. Medians; ratios with 95 % interval."
    )


def measured(records: list[Record], benchmark: str | None = None) -> list[Record]:
    found = [record for record in records if record["status"] == "ok"]
    return [record for record in found if benchmark in (None, record["benchmark_name"])]


def total(record: Record) -> int:
    return record["prompt_length"] + record["T"]


def time_table(records: list[Record]) -> str:
    """Each side, the fastest first: to every length, and its prefill."""
    if not measured(records):
        return NONE
    reference = records[0]["context"]["reference"]
    lines = [
        conditions(records),
        "",
        "| tokens | | ms/token | limit_fraction | bytes a weight | a KV entry | peak MB "
        f"| tokens as {reference} |",
        "|--:|:--|--:|--:|--:|--:|--:|--:|",
    ]
    generated = measured(records, GENERATE)
    for record in sorted(generated, key=lambda each: (total(each), each["time_per_token_ms_median"])):
        fraction, equal = record["limit_fraction"], record["equal_tokens"]
        cells = (
            total(record),
            record["side"],
            f"{record['time_per_token_ms_median']:.2f}",
            "" if fraction is None else f"{fraction:.2f}",
            f"{record['weight_bytes_per_parameter']:.2f}",
            f"{record['kv_bytes_per_entry']:.2f}",
            f"{record['peak_rss_bytes'] / 2**20:.0f}",
            "" if equal is None else f"{equal} of {record['T']}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", "| prefill | | ms | tokens/s |", "|--:|:--|--:|--:|"]
    for record in sorted(measured(records, PREFILL), key=lambda each: each["time_total_s"]["median"]):
        seconds, tokens = record["time_total_s"]["median"], record["prompt_length"]
        lines.append(f"| {tokens} | {record['side']} | {seconds * 1e3:.0f} | {tokens / seconds:.0f} |")
    failed = [record for record in records if record["status"] != "ok"]
    lines += [f"\nNot measured: {record['side']}: {record['reason']}" for record in failed]
    return "\n".join(lines)


def ratio_table(records: list[Record]) -> str:
    """How many times as fast each version of ours is as each peer."""
    ours = [record for record in measured(records) if record["version"] is not None]
    if not ours:
        return NONE
    peers = list(dict.fromkeys(peer for record in ours for peer in record["speedup"]))
    lines = [
        conditions(records),
        "",
        "| tokens | version | ms/token | " + " | ".join(f"vs {peer}" for peer in peers) + " |",
        "|:--|:--|--:|" + "--:|" * len(peers),
    ]
    for record in ours:
        generated = record["benchmark_name"] == GENERATE
        tokens = f"{record['prompt_length']} + {record['T']}" if generated else f"{total(record)}, prefill"
        seconds = record["time_total_s"]["median"] / (record["T"] if generated else total(record))
        cells = [f"{1e3 * seconds:.2f}", *(ratio_cell(record, peer) for peer in peers)]
        lines.append(f"| {tokens} | {record['version']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def ratio_cell(record: Record, peer: str) -> str:
    """Empty if the peer failed; of one round there is no interval."""
    if (found := record["speedup"].get(peer)) is None:
        return ""
    interval = f" [{found['low']:.2f}, {found['high']:.2f}]" if record["rounds"] > 1 else ""
    return f"{found['value']:.2f}x{interval}"
