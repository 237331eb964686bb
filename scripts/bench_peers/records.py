"""Records of what kvfuse and its peers took: every sample, and how many times as fast ours is."""

import platform
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from gpu_check.timing import ratio, summary
from kvfuse import _C
from kvfuse.model import ModelConfig
from kvfuse.roofline import Model

from bench_peers.harness import MODEL, Side
from bench_peers.tables import GENERATE, PREFILL

Record = dict[str, Any]

REFERENCE = "ct2-float32"  # its tokens are those of float32 PyTorch; llama.cpp's differ even in float32


@dataclass
class Measured:
    """What the finished rounds gave."""

    sides: list[Side]
    totals: list[int]
    rounds: int = 0
    run: Record = field(default_factory=dict)  # what the harness says of itself
    entries: dict[str, list[Record]] = field(default_factory=dict)  # of each side, one a round
    errors: dict[str, str] = field(default_factory=dict)  # of sides that failed

    def row(self, side: Side, total: int) -> list[Record]:
        """The side's figures at a length, one a round; empty if it has not always been measured."""
        rows = [
            row
            for entry in self.entries.get(side.name, [])
            for row in entry["rows"]
            if row["total"] == total and not row.get("sampled")
        ]
        return rows if len(rows) == self.rounds and side.name not in self.errors else []

    def bandwidths(self) -> list[float]:
        """What the harness read a second after each side, in bytes."""
        found = [entry.get("read_gbs") for entries in self.entries.values() for entry in entries]
        return [each * 1e9 for each in found if isinstance(each, float | int)]


def make_records(measured: Measured) -> list[Record]:
    """One of each side and length, and one of each side's prefill."""
    context = machine(measured)
    records = []
    for total in measured.totals:
        seconds = {
            side.name: [t for row in measured.row(side, total) for t in row["total_s"]]
            for side in measured.sides
        }
        for side in measured.sides:
            records.append(begin(GENERATE, side, measured, seconds[side.name], total))
            if seconds[side.name]:
                records[-1] |= generation(measured, side, total) | times(measured, side, seconds)
    seconds = {
        side.name: [t for entry in measured.entries.get(side.name, []) for t in entry["prefill_s"]]
        if side.name not in measured.errors
        else []
        for side in measured.sides
    }
    for side in measured.sides:
        records.append(begin(PREFILL, side, measured, seconds[side.name], 0))
        if seconds[side.name]:
            records[-1] |= times(measured, side, seconds)
    return [record | {"context": context} for record in records]


def begin(benchmark: str, side: Side, measured: Measured, samples: list[float], total: int) -> Record:
    prompt = measured.run["prompt" if benchmark == GENERATE else "prefill"]
    case = {
        "benchmark_name": benchmark,
        "side": side.name,
        "model": MODEL,
        "batch_size": 1,
        "prompt_length": prompt,
        "T": max(total - prompt, 0),
        "num_threads": torch.get_num_threads(),
        "isa": _C.build_info()["active_isa"],
    }
    reason = "" if samples else measured.errors.get(side.name, f"not run in full to {total} tokens")
    facts = {key: case[key] for key in ("side", "model", "batch_size", "prompt_length", "T")}
    return {
        **_C.make_record(benchmark, case, "ok" if samples else "failed", reason),
        **facts,
        "version": side.name if side.ours else None,
        "rounds": measured.rounds,
    }


def times(measured: Measured, side: Side, seconds: dict[str, list[float]]) -> Record:
    """The samples; those of ours also beside each peer's."""
    peers = [peer.name for peer in measured.sides if not peer.ours and seconds[peer.name]]
    return {
        "time_total_s_samples": seconds[side.name],
        "time_total_s": summary(seconds[side.name]),
        "speedup": {peer: ratio(seconds[peer], seconds[side.name]) for peer in peers} if side.ours else {},
    }


def generation(measured: Measured, side: Side, total: int) -> Record:
    rows = measured.row(side, total)
    new_tokens = total - measured.run["prompt"]
    ms_per_token = 1e3 * numpy.median([t for row in rows for t in row["total_s"]]) / new_tokens
    step_bytes = bytes_per_step(rows[0], (measured.run["prompt"] + total) / 2)
    bandwidths = measured.bandwidths()
    bandwidth = float(numpy.median(bandwidths)) if bandwidths else None
    limit = 1e3 * step_bytes / bandwidth / ms_per_token if bandwidth else None
    return {
        "time_per_token_ms_median": float(ms_per_token),
        "weight_bytes_per_parameter": rows[0]["weight_b"],
        "kv_bytes_per_entry": rows[0]["kv_b"],
        "model_bytes": step_bytes,
        "read_bandwidth_bytes_per_s": bandwidth,
        "read_bandwidth_bytes_per_s_samples": bandwidths,
        "limit_fraction": limit,
        "peak_rss_bytes": int(max(row["rss_mb"] for row in rows) * 2**20),
        "equal_tokens": equal_tokens(measured, side, total),
    }


def bytes_per_step(row: Record, length: float) -> float:
    """That a decode step must read: every weight, and the cache at the mean length; of positions one row."""
    counts = Model.preset(MODEL).native().count_weights()
    config = ModelConfig.preset(MODEL)
    entries = 2 * config.n_layer * config.n_embd * length
    return (counts["total"] - counts["position"]) * row["weight_b"] + entries * row["kv_b"]


def equal_tokens(measured: Measured, side: Side, total: int) -> int | None:
    """How many of the side's first tokens are the reference's; None if there are none to compare."""
    rows = measured.row(side, total), measured.row(Side(REFERENCE, ours=False), total)
    if not all(row and row[0].get("tokens") for row in rows):
        return None
    tokens, wanted = (row[0]["tokens"] for row in rows)
    pairs = zip(tokens, wanted, strict=False)
    return next((n for n, (one, other) in enumerate(pairs) if one != other), min(len(tokens), len(wanted)))


def machine(measured: Measured) -> Record:
    """As every record of the project has it, and the peers' packages."""
    facts = _C.RunFacts(
        model_name=MODEL,
        model=ModelConfig.preset(MODEL).native(),
        dtype="float32",
        weights=None,
        transforms=[],
        device=torch.device("cpu"),
        batch_size=1,
        seed=0,
        calibration=None,
        calibration_sha256=None,
        calibration_tokens=None,
        python_version=platform.python_version(),
    )
    context = facts.metadata(_C.cached_baseline(), None)["context"]
    return context | {"peers": measured.run.get("requirements", []), "reference": REFERENCE}
