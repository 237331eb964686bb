"""Greedy generation of GPT-2 by kvfuse and by what a user would run instead, on the CPU, in turn.

The harness (--harness) is no part of this project: it brings llama.cpp, CTranslate2 and transformers, random
weights for all of them, and a measure of read bandwidth. Every round runs each side once, in a process of its
own, another one first each time. Finished rounds are kept when the run is interrupted. The harness keeps its
environment (8 GB, some minutes to make) and weights where the variable PEERS_WORK says.

Exit codes: 0 all was measured, 1 some sides failed (recorded), 2 command line, 4 the harness or the log file
cannot be used, 130 or 143 interrupted.
"""

import argparse
import itertools
import os
import sys
import time
from pathlib import Path
from statistics import median

import torch
from gpu_check.rows import ROOT
from kvfuse import _C
from kvfuse.versions import VERSIONS

from bench_peers.harness import Harness, HarnessError, Side
from bench_peers.records import Measured, Record, make_records
from bench_peers.tables import ratio_table, time_table

OK, SOME_FAILED, RESOURCES, INTERRUPTED, TERMINATED = 0, 1, 4, 130, 143
PEERS = ("llama-q8-kvq8", "llama-f32-kvf16", "ct2-int8", "ct2-float32", "hf-sdpa")
RESULTS = ROOT / "docs" / "results" / "python" / "peers.jsonl"


def in_turn(sides: list[Side], number: int) -> list[Side]:
    """Peers and ours alternately; another first each round."""
    pairs = itertools.zip_longest(
        [side for side in sides if not side.ours], [side for side in sides if side.ours]
    )
    order = [side for pair in pairs for side in pair if side is not None]
    shift = number % len(order)
    return order[shift:] + order[:shift]


def take_rounds(harness: Harness, measured: Measured, rounds: int, deadline: float) -> None:
    """As many rounds as are likely to end by the deadline of time.monotonic(), and at least one."""
    longest = 0.0
    for number in range(rounds):
        if measured.rounds and time.monotonic() + longest > deadline:
            say(f"no time for more than {measured.rounds} of {rounds} rounds (--minutes)")
            return
        start = time.monotonic()
        entries = {}
        for side in in_turn(measured.sides, number):
            if side.name in measured.errors:
                continue
            run, entry = harness.measure(side, measured.totals)
            say(f"round {number + 1} of {rounds}: {side.name}: {described(entry)}")
            if "error" in entry:
                measured.errors[side.name] = entry["error"]
            else:
                entries[side.name], measured.run = entry, run
        if len(measured.errors) == len(measured.sides):
            return
        for name, entry in entries.items():
            measured.entries.setdefault(name, []).append(entry)
        measured.rounds += 1
        took = time.monotonic() - start
        longest = max(longest, took)
        say(f"round {number + 1} took {took:.0f} s; up to {took * (rounds - number - 1) / 60:.0f} min to go")


def described(entry: Record) -> str:
    if "error" in entry:
        return f"failed: {entry['error']}"
    return ", ".join(f"{median(row['total_s']):.2f} s to {row['total']} tokens" for row in entry["rows"])


def say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise ValueError
    return value


def parse_arguments(words: list[str] | None) -> argparse.Namespace:
    single = [name for name, row in VERSIONS.items() if row["use_cache"] and row["sharing_group"] == 1]
    parser = argparse.ArgumentParser(
        prog="bench_peers.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--harness", type=Path, default=ROOT.parent / "shared" / "peers", metavar="DIR", help="%(default)s"
    )
    parser.add_argument("--peers", nargs="+", default=list(PEERS), metavar="NAME", help=" ".join(PEERS))
    parser.add_argument(
        "--version", nargs="+", choices=list(VERSIONS), default=single, metavar="NAME", help=" ".join(single)
    )
    parser.add_argument(
        "--totals", nargs="+", type=positive, metavar="N", help="prompt and new tokens (128 1024; quick: 64)"
    )
    parser.add_argument("--rounds", type=positive, metavar="N", help="at most (5; quick: 1)")
    parser.add_argument(
        "--minutes", type=float, default=15, metavar="M", help="no round begins that would end later (15)"
    )
    parser.add_argument(
        "--threads", type=positive, default=torch.get_num_threads(), metavar="N", help="%(default)s"
    )
    parser.add_argument("--quick", action="store_true", help="short and once, to try the code")
    parser.add_argument(
        "--log-file",
        type=Path,
        metavar="FILE",
        help="records are appended here (docs/results/python/peers.jsonl; quick: results/peers_quick.jsonl)",
    )
    arguments = parser.parse_args(words)
    quick = arguments.quick
    arguments.totals = sorted(set(arguments.totals or ([64] if quick else [128, 1024])))
    arguments.rounds = arguments.rounds or (1 if quick else 5)
    arguments.log_file = arguments.log_file or (ROOT / "results" / "peers_quick.jsonl" if quick else RESULTS)
    return arguments


def measure(arguments: argparse.Namespace) -> int:
    harness = Harness(arguments.harness, arguments.threads)
    log = _C.RecordLog(os.fspath(arguments.log_file))
    say("preparing the peers (the first time this compiles llama.cpp: some minutes)")
    harness.set_up()
    names = dict.fromkeys(arguments.peers)
    sides = [Side(name, ours=False) for name in names]
    sides += [Side(name, ours=True) for name in dict.fromkeys(arguments.version)]
    measured = Measured(sides, arguments.totals)
    code = OK
    try:
        take_rounds(harness, measured, arguments.rounds, time.monotonic() + 60 * arguments.minutes)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except SystemExit:
        code = TERMINATED
    if measured.rounds == 0:
        say("bench_peers: no round was finished, nothing is recorded")
        return code or SOME_FAILED
    records = make_records(measured)
    for record in records:
        log.append(record)
    print(time_table(records), ratio_table(records), sep="\n\n")
    return code or (SOME_FAILED if measured.errors else OK)


def terminate(*_: object) -> None:
    raise SystemExit(TERMINATED)


def main(words: list[str] | None = None) -> int:
    arguments = parse_arguments(words)
    torch.set_num_threads(arguments.threads)
    try:
        return measure(arguments)
    except KeyboardInterrupt:
        return INTERRUPTED
    except (HarnessError, OSError) as error:
        print(f"bench_peers: error: {error}", file=sys.stderr)
        return RESOURCES
