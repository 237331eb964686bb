"""Plants mistakes in the CUDA kernels, one at a time, and demands that an emulated test finds each.

A mistake is caught if the named tests pass on the kernels as they are and fail, by an assertion, on the
altered copy: not compiling, running out of time and (unless it is expected) crashing do not count.

Exit codes: 0 all are caught, 1 one is not, 2 command line, 3 something can't be compiled or run at all.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EMULATION = ROOT / "tests" / "cuda_emulation"
FLAGS = ("-std=c++20", "-O0", "-w", "-fno-strict-aliasing")
LIBRARIES = ("-lgtest_main", "-lgtest", "-lboost_context", "-lpthread")
COMPILE_LIMIT_S = 120
RUN_LIMIT_S = 60


@dataclass(frozen=True)
class Mutation:
    name: str
    file: str  # from the root of the repository
    old: str  # occurs once in it
    new: str
    test: str  # program of tests/cuda_emulation
    filter: str  # of GoogleTest: the tests that must fail, or some of them
    crash: bool = False  # ends the program, as a read outside an allocation does


PREFILL = ("prefill_attention_test", "*GroupedQueriesAndMixedLengths/float16_int8_64")
DECODE = ("decode_attention_test", "Emulated/Decode.*/float16_int8_64")
KV_APPEND = ("decode_attention_test", "KvAppend.*")
LINEAR = ("linear_test", "LinearTest.Layernorm*:LinearTest.RowAloneOrInABatch")
GREEDY = ("sampling_test", "GreedyTest.*")

MUTATIONS = (
    Mutation(
        "decode: queries read before all warps wrote them",
        "kernels/cuda/decode_attention.cu",
        "  if (threadIdx.x == 0) shared.work = work;\n  block_sync();",
        "  if (threadIdx.x == 0) shared.work = work;",
        *DECODE,
    ),
    Mutation(
        "decode: warps merged before all are done",
        "kernels/cuda/decode_merge.h",
        "  const MergeUnit<kHeadDim, kRows> unit;\n  block_sync();",
        "  const MergeUnit<kHeadDim, kRows> unit;",
        *DECODE,
    ),
    Mutation(
        "decode: one token past the length",
        "kernels/cuda/decode_walk.h",
        "if (!kFull && (own >= left ||",
        "if (!kFull && (own > left ||",
        *DECODE,
    ),
    Mutation(
        "decode: a query sees one new token too many",
        "kernels/cuda/decode_inputs.h",
        "if (work.old_tokens + token >= work.visible(row)) continue;",
        "if (work.old_tokens + token > work.visible(row)) continue;",
        *DECODE,
    ),
    Mutation(
        "decode: the new row one place too early",
        "kernels/cuda/decode_inputs.h",
        "cache.capacity + work.old_tokens + token;",
        "cache.capacity + work.old_tokens + token - 1;",
        *DECODE,
    ),
    Mutation(
        "decode: K's scale left out",
        "kernels/cuda/decode_walk.h",
        "shared.query_scale[row]) * own_k_scale;",
        "shared.query_scale[row]);",
        *DECODE,
    ),
    Mutation(
        "decode: V's scale left out",
        "kernels/cuda/decode_walk.h",
        "Format::kScaled ? weight * scale * s.inverse_unit : weight;",
        "Format::kScaled ? weight * s.inverse_unit : weight;",
        *DECODE,
    ),
    Mutation(
        "decode: the first block to arrive merges, not the last",
        "kernels/cuda/decode_merge.h",
        "work.active_splits) == work.active_splits - 1);",
        "work.active_splits) == 0);",
        *DECODE,
    ),
    Mutation(
        "decode: splits merged in another order than their weights",
        "kernels/cuda/decode_merge.h",
        "exp2_approx(shared.split_top[unit.row][first + i] - top);",
        "exp2_approx(shared.split_top[unit.row][end - 1 - i] - top);",
        "decode_attention_test",
        "DecodeAttention.ManySplits",
    ),
    Mutation(
        "kv_append: scale left out",
        "kernels/cuda/kv_append.cu",
        "[row] = quantised.scale;",
        "[row] = 1.0F;",
        *KV_APPEND,
    ),
    Mutation(
        "prefill: no barrier before a tile is read",
        "kernels/cuda/prefill_attention.cu",
        "    block_sync();  // this tile has arrived",
        "    // this tile has arrived",
        *PREFILL,
    ),
    Mutation(
        "prefill: the next tile is not waited for",
        "kernels/cuda/prefill_attention.cu",
        "    copy_async_wait<0>();\n    block_sync();  // this tile",
        "    block_sync();  // this tile",
        *PREFILL,
    ),
    Mutation(
        "prefill: no barrier between codes and products",
        "kernels/cuda/prefill_attention.cu",
        "if constexpr (kInt8) block_sync();",
        "",
        *PREFILL,
    ),
    Mutation(
        "prefill: K's scale left out",
        "kernels/cuda/prefill_rows.h",
        "scales[own_row()] = scale * factor;",
        "scales[own_row()] = factor;",
        *PREFILL,
    ),
    Mutation(
        "prefill: V's scale left out",
        "kernels/cuda/prefill_softmax.h",
        "weight * scales.v[token]",
        "weight",
        *PREFILL,
    ),
    Mutation(
        "prefill: a query sees one token too many",
        "kernels/cuda/prefill_softmax.h",
        "const bool hidden = kMasked && token >= visible[i / 2];",
        "const bool hidden = kMasked && token > visible[i / 2];",
        *PREFILL,
    ),
    Mutation(
        "prefill: the first new token is not kept",
        "kernels/cuda/prefill_attention.cu",
        "writes ? task.cached + task.first_query :",
        "writes ? task.cached + task.first_query + 1 :",
        *PREFILL,
    ),
    Mutation(
        "linear: norm parameters not waited for",
        "kernels/cuda/linear_rows.h",
        "  copy_async_wait<0>();  // the norm parameters",
        "  // the norm parameters",
        *LINEAR,
    ),
    Mutation(
        "linear: sums read before all warps wrote them",
        "kernels/cuda/linear_rows.h",
        "parts[warp_id()] = value;\n  block_sync();",
        "parts[warp_id()] = value;",
        *LINEAR,
    ),
    Mutation(
        "linear: products before the rows are normalised",
        "kernels/cuda/linear_rows.h",
        "    at(i) = pack_floats(v[0], v[1], v[2], v[3]);\n  }\n  block_sync();",
        "    at(i) = pack_floats(v[0], v[1], v[2], v[3]);\n  }",
        *LINEAR,
    ),
    Mutation(
        "sampling: largest of the warps read too early",
        "kernels/cuda/likely_tokens.h",
        "of_warps[warp_id()] = best;\n  block_sync();",
        "of_warps[warp_id()] = best;",
        *GREEDY,
    ),
)


class SetupError(Exception):
    """One sentence: what does not work without any mistake planted."""


@dataclass(frozen=True)
class Outcome:
    mutation: Mutation
    caught: bool
    verdict: str
    seconds: float


class Workshop:
    """Compiles and runs test programs in a scratch folder."""

    def __init__(self, compiler: str, folder: Path):
        self.compiler, self.folder = compiler, folder
        self.common: list[Path] = []  # objects that every program links

    def compile(self, source: Path, target: Path, overlay: Path | None = None) -> str:
        """What the compiler complained about; empty if it made `target`. Files in `overlay` come first."""
        includes = [f"-I{folder}" for folder in (overlay, ROOT, EMULATION) if folder]
        return self.call([self.compiler, *FLAGS, *includes, "-c", str(source), "-o", str(target)])

    def link(self, objects: Iterable[Path], target: Path) -> str:
        return self.call([self.compiler, *map(str, objects), "-o", str(target), *LIBRARIES])

    def call(self, command: list[str]) -> str:
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_LIMIT_S)
        except subprocess.TimeoutExpired:
            return f"not done in {COMPILE_LIMIT_S} s"
        if result.returncode == 0:
            return ""
        lines = result.stderr.splitlines()
        return next(
            (line for line in lines if "error" in line), f"{command[0]} ended with {result.returncode}"
        )

    def compile_common(self, source: Path) -> None:
        target = self.folder / f"{source.stem}.o"
        if complaint := self.compile(source, target):
            raise SetupError(f"{source.relative_to(ROOT)}: {complaint}")
        self.common.append(target)

    def build(self, test: str, name: str, overlay: Path | None = None) -> Path:
        program = self.folder / name
        compiled = self.folder / f"{name}.o"
        complaint = self.compile(EMULATION / f"{test}.cpp", compiled, overlay) or self.link(
            [compiled, *self.common], program
        )
        compiled.unlink(missing_ok=True)
        if complaint:
            raise SetupError(f"{name}: {complaint}")
        return program


def run_tests(program: Path, tests: str) -> str:
    """ "passed", "failed" (by an assertion), or what else became of the program."""
    command = [str(program), f"--gtest_filter={tests}", "--gtest_color=no"]
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=RUN_LIMIT_S, errors="replace"
        )
    except subprocess.TimeoutExpired:
        return f"not done in {RUN_LIMIT_S} s"
    if "Running 0 tests" in result.stdout:
        return "no test of that name"
    if result.returncode == 0:
        return "passed"
    return "failed" if result.returncode == 1 and "[  FAILED  ]" in result.stdout else "crashed"


def plant(mutation: Mutation, overlay: Path) -> None:
    text = (ROOT / mutation.file).read_text()
    if (found := text.count(mutation.old)) != 1:
        raise SetupError(f"{mutation.file}: expected the text to alter once, found it {found} times")
    copy = overlay / mutation.file
    copy.parent.mkdir(parents=True)
    copy.write_text(text.replace(mutation.old, mutation.new))


def check_unaltered(workshop: Workshop, test: str, mutations: list[Mutation]) -> None:
    program = workshop.build(test, test)
    for tests in sorted({m.filter for m in mutations if m.test == test}):
        if (verdict := run_tests(program, tests)) != "passed":
            raise SetupError(f"{test} --gtest_filter={tests}: expected to pass unaltered, {verdict}")


def try_mutation(workshop: Workshop, number: int, mutation: Mutation) -> Outcome:
    start = time.monotonic()
    overlay = workshop.folder / f"overlay_{number}"
    try:
        plant(mutation, overlay)
        program = workshop.build(mutation.test, f"altered_{number}", overlay)
        verdict = run_tests(program, mutation.filter)
        program.unlink()
    except SetupError as error:
        verdict = str(error)
    caught = verdict == ("crashed" if mutation.crash else "failed")
    return Outcome(mutation, caught, verdict, time.monotonic() - start)


def report(outcomes: list[Outcome]) -> str:
    lines = []
    for outcome in outcomes:
        mutation = outcome.mutation
        verdict = "caught" if outcome.caught else "SURVIVED"
        reason = "" if outcome.caught else f": {outcome.verdict}"
        where = f"{mutation.file}; {mutation.test} {mutation.filter}"
        lines.append(f"{outcome.seconds:5.1f} s  {verdict:8}  {mutation.name} ({where}){reason}")
    caught = sum(outcome.caught for outcome in outcomes)
    return "\n".join([*lines, f"{caught} of {len(outcomes)} planted mistakes caught"])


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--compiler", default="g++", metavar="PROGRAM", help="default: g++")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), metavar="N")
    parser.add_argument("--only", default="", metavar="TEXT", help="only mistakes with TEXT in their name")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    mutations = [mutation for mutation in MUTATIONS if arguments.only in mutation.name]
    if not mutations:
        print(f"mutations: error: --only: no mistake has {arguments.only!r} in its name", file=sys.stderr)
        return 2
    common = [p for p in sorted(EMULATION.glob("*.cpp")) if not p.stem.endswith("_test")]
    common += sorted((ROOT / "kernels" / "reference").glob("*.cpp"))
    with (
        tempfile.TemporaryDirectory() as folder,
        ThreadPoolExecutor(max_workers=arguments.jobs) as pool,
    ):
        workshop = Workshop(arguments.compiler, Path(folder))
        try:
            list(pool.map(workshop.compile_common, common))
            tests = sorted({mutation.test for mutation in mutations})
            list(pool.map(lambda test: check_unaltered(workshop, test, mutations), tests))
        except (SetupError, OSError) as error:
            print(f"mutations: error: {error}", file=sys.stderr)
            return 3
        outcomes = list(pool.map(lambda item: try_mutation(workshop, *item), enumerate(mutations)))
    print(report(outcomes))
    return 0 if all(outcome.caught for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
