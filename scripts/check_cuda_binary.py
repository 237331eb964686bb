"""Checks what the compiler made of the CUDA kernels, without a GPU: architectures, registers, spills, and the
machine code of INT8 decode attention.

Exit codes: 0 every gate holds, 1 one does not, 2 command line, 3 the file can't be read, 77 no cuobjdump.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from cuda_binary import (
    CheckError,
    Kernel,
    Loop,
    find_cuobjdump,
    read_kernels,
    read_loops,
    read_ptx_architectures,
)

SKIPPED = 77  # SKIP_RETURN_CODE of the ctest

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90")
PTX = "sm_90"  # how cuobjdump names the PTX from which a driver makes code for later cards
REGISTERS_PER_SM = 65536  # of each of them, given to threads in steps of 8

MAX_INSTRUCTIONS_PER_BYTE = 2.0
INT8_DECODE = r"^decode_attention_kernel<IntegerCodes, 64, 1>$"


@dataclass(frozen=True)
class Plan:
    """How many blocks of a kernel an SM is to hold; it bounds the registers of a thread."""

    kernel: str  # regular expression for the demangled name
    threads: int
    blocks: int
    reason: str

    @property
    def registers(self) -> int:
        return min(255, REGISTERS_PER_SM // (self.threads * self.blocks) // 8 * 8)


# The first whose pattern is found in the name counts; a kernel without one fails. Threads and blocks are
# those of the launch bounds.
PLANS = (
    Plan(r"^decode_attention_kernel<.*, 1>$", 128, 6, "loads in flight to cover the latency of memory"),
    Plan(r"^decode_attention_kernel<.*, 4>$", 128, 3, "four query rows a thread"),
    Plan(r"^prefill_attention_kernel<.*, 64>$", 128, 3, "the tiles' accumulators"),
    Plan(r"^prefill_attention_kernel<", 128, 2, "the tiles' accumulators, which grow with head_dim"),
    Plan(r"^(kv_append|quantize_kv|dequantize_kv)_kernel$", 128, 8, "many rows under way"),
    Plan(r"^fused_linear_kernel<.*, [12], \w+>$", 256, 3, "the products of GPT-2 medium run at once"),
    Plan(r"^fused_linear_kernel<", 256, 2, "sums of more rows a thread"),
    Plan(r"^embedding_kernel<", 128, 1, "one block a sequence"),
    Plan(r"^greedy_kernel$", 1024, 1, "one block a sequence"),
    Plan(r"^draw_kernel$", 512, 1, "one block a sequence"),
)


@dataclass(frozen=True)
class Card:
    """SMs and boost clock as published in NVIDIA's white paper of the architecture, bandwidth as in the data
    sheet of the card."""

    name: str
    architecture: str
    multiprocessors: int
    boost_hz: float
    bytes_per_s: float

    @property
    def instructions_per_byte(self) -> float:
        """Thread-instructions that its schedulers, 4 an SM for 32 lanes each, issue while a byte arrives."""
        return self.multiprocessors * 4 * 32 * self.boost_hz / self.bytes_per_s


CARDS = (
    Card("A100 80GB SXM", "sm_80", 108, 1.41e9, 2.039e12),
    Card("RTX A6000", "sm_86", 84, 1.80e9, 768e9),
    Card("L40S", "sm_89", 142, 2.52e9, 864e9),
    Card("H100 SXM", "sm_90", 132, 1.98e9, 3.35e12),
    Card("H200 SXM", "sm_90", 132, 1.98e9, 4.8e12),
)


def check_architectures(kernels: list[Kernel], ptx: set[str]) -> Iterator[str]:
    by_architecture = {a: {k.symbol for k in kernels if k.architecture == a} for a in ARCHITECTURES}
    everything = {kernel.symbol for kernel in kernels}
    for architecture, symbols in by_architecture.items():
        if not symbols:
            yield f"expected code for {architecture}, got none"
        elif missing := len(everything - symbols):
            yield f"{architecture}: {missing} kernels that other architectures have are missing"
    if PTX not in ptx:
        yield f"expected PTX of {PTX}, got {', '.join(sorted(ptx)) or 'none'}"


def plan_of(kernel: Kernel) -> Plan | None:
    return next((plan for plan in PLANS if re.search(plan.kernel, kernel.name)), None)


def check_kernel(kernel: Kernel) -> Iterator[str]:
    where = f"{kernel.architecture} {kernel.name}"
    plan = plan_of(kernel)
    if plan is None:
        yield f"{where}: has no plan (hint: add it to PLANS)"
    elif kernel.registers > plan.registers:
        yield (
            f"{where}: expected at most {plan.registers} registers ({plan.blocks} blocks of {plan.threads} "
            f"threads an SM: {plan.reason}), got {kernel.registers}"
        )
    if kernel.stack_bytes or kernel.local_bytes:
        yield (
            f"{where}: expected nothing in local memory, got {kernel.stack_bytes} bytes of stack and "
            f"{kernel.local_bytes} of local arrays"
        )


def check_loop(kernel: Kernel, loop: Loop | None) -> Iterator[str]:
    where = f"{kernel.architecture} {kernel.name}"
    if loop is None:
        yield f"{where}: expected a loop with IDP and 128-bit global loads, got none"
        return
    if loop.other_loads:
        yield f"{where}: expected loads of 16 bytes, or 4 for scales, got {', '.join(loop.other_loads)}"
    if loop.local_accesses:
        yield f"{where}: expected no access to local memory in the loop, got {loop.local_accesses}"
    if loop.conversions > loop.tokens:
        yield (
            f"{where}: expected at most one conversion from integer for each of {loop.tokens:g} tokens, "
            f"got {loop.conversions}"
        )
    if not loop.instructions_per_byte <= MAX_INSTRUCTIONS_PER_BYTE:
        yield (
            f"{where}: expected at most {MAX_INSTRUCTIONS_PER_BYTE} instructions per KV byte, "
            f"got {loop.instructions_per_byte:.2f}"
        )


def table(headers: list[str], rows: list[list[object]]) -> str:
    cells = [headers, *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def kernel_rows(kernels: list[Kernel]) -> list[list[object]]:
    """One row a kernel: registers on each architecture beside the limit."""
    rows = []
    for name in sorted({kernel.name for kernel in kernels}):
        same = {kernel.architecture: kernel for kernel in kernels if kernel.name == name}
        plan = plan_of(next(iter(same.values())))
        local = max(kernel.stack_bytes + kernel.local_bytes for kernel in same.values())
        registers = [same[a].registers if a in same else "-" for a in ARCHITECTURES]
        rows.append([*registers, plan.registers if plan else "-", local, name])
    return rows


LOOP_HEADERS = [
    "arch",
    "per byte",
    "instructions",
    "on side paths",
    "16-byte loads",
    "scale loads",
    "IDP",
    "I2F",
]


def loop_rows(loops: dict[Kernel, Loop | None]) -> list[list[object]]:
    rows = []
    for kernel, loop in loops.items():
        afforded = ", ".join(
            f"{card.name} {card.instructions_per_byte:.1f}"
            for card in CARDS
            if card.architecture == kernel.architecture
        )
        figures = ["-"] * 7
        if loop:
            figures = [
                f"{loop.instructions_per_byte:.2f}",
                loop.instructions,
                loop.side_instructions,
                loop.loads,
                loop.scale_loads,
                loop.dot_products,
                loop.conversions,
            ]
        rows.append([kernel.architecture, *figures, afforded, kernel.name])
    return rows


def report(kernels: list[Kernel], loops: dict[Kernel, Loop | None], failures: list[str]) -> str:
    lines = [
        "Registers a thread; bytes in local memory (spills):",
        table([*ARCHITECTURES, "limit", "local", "kernel"], kernel_rows(kernels)),
        "",
        "Inner loop of INT8 decode: thread-instructions per KV byte, and what a card affords at full issue:",
        table([*LOOP_HEADERS, "afforded", "kernel"], loop_rows(loops)),
        "",
        *(f"FAILED {failure}" for failure in failures),
        f"{len(kernels)} kernels, {len(loops)} inner loops, {len(failures)} gates failed",
    ]
    return "\n".join(lines)


def as_json(kernels: list[Kernel], loops: dict[Kernel, Loop | None], failures: list[str]) -> dict:
    return {
        "kernels": [asdict(kernel) for kernel in kernels],
        "loops": [
            {"architecture": kernel.architecture, "name": kernel.name}
            | (asdict(loop) | {"instructions_per_byte": loop.instructions_per_byte} if loop else {})
            for kernel, loop in loops.items()
        ],
        "cards": [asdict(card) | {"instructions_per_byte": card.instructions_per_byte} for card in CARDS],
        "failures": failures,
    }


def check(tool: str, arguments: argparse.Namespace) -> int:
    kernels = read_kernels(tool, arguments.file)
    loops = read_loops(tool, arguments.file, [k for k in kernels if re.search(INT8_DECODE, k.name)])
    failures = [
        *check_architectures(kernels, read_ptx_architectures(tool, arguments.file)),
        *(failure for kernel in kernels for failure in check_kernel(kernel)),
        *(failure for kernel, loop in loops.items() for failure in check_loop(kernel, loop)),
    ]
    if not loops:
        failures.append("expected a kernel of INT8 decode attention with head_dim 64, got none")
    print(report(kernels, loops, failures))
    if arguments.json:
        arguments.json.write_text(json.dumps(as_json(kernels, loops, failures), indent=1) + "\n")
    return 1 if failures else 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="shared library or object with CUDA code")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    arguments = parser.parse_args(argv)
    tool = find_cuobjdump()
    if tool is None:
        print("check_cuda_binary: skipped: no cuobjdump on the PATH or in triton")
        return SKIPPED
    try:
        return check(tool, arguments)
    except CheckError as error:
        print(f"check_cuda_binary: error: {arguments.file}: {error}", file=sys.stderr)
        return 3


if __name__ == "__main__":
    sys.exit(main())
