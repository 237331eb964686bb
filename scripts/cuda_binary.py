"""Reads a file of CUDA code through cuobjdump: its kernels, what they use, and their machine code."""

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LOAD_BYTES = 16
WIDTHS = {"U8", "S8", "U16", "S16", "64", "128"}  # a load without one of these is of 4 bytes


@dataclass(frozen=True)
class Kernel:
    architecture: str
    symbol: str
    name: str  # demangled and shortened
    registers: int
    stack_bytes: int  # where spilled registers and indexed arrays lie
    local_bytes: int


@dataclass(frozen=True)
class Instruction:
    address: int
    predicate: str
    opcode: str
    operands: str

    @property
    def parts(self) -> list[str]:
        return self.opcode.split(".")

    @property
    def target(self) -> int | None:
        """Where a branch goes. One that is taken only when the lanes of a warp have parted does not count:
        the kernels meet at collectives with all lanes, or the emulator reports it."""
        if self.parts[0] != "BRA" or {"DIV", "CONV"} & set(self.parts):
            return None
        found = re.search(r"0x([0-9a-f]+)$", self.operands)
        return int(found[1], 16) if found else None

    @property
    def goes_on(self) -> bool:
        """Whether the next instruction may follow."""
        jumps = self.parts[0] in ("EXIT", "RET") or self.target is not None
        return not jumps or bool(self.predicate or re.match(r"!?U?P\d", self.operands))

    @property
    def global_load_width(self) -> str | None:
        """128, 32, U8...; None if it loads nothing from global memory, directly or into shared memory."""
        if self.parts[0] not in ("LDG", "LDGSTS", "LD"):
            return None
        return next(iter(WIDTHS & set(self.parts)), "32")


@dataclass(frozen=True)
class Loop:
    """What one thread does in one iteration of the inner loop of INT8 decode attention."""

    instructions: int  # but those of side paths
    side_instructions: int  # that an iteration may skip, such as for a new maximum of the scores
    loads: int  # of 16 bytes
    scale_loads: int  # of 4 bytes
    other_loads: tuple[str, ...]  # global loads of any other width
    dot_products: int
    conversions: int  # from integer to float
    local_accesses: int

    @property
    def tokens(self) -> float:
        """The thread loads 16 bytes of K and 16 of V of each."""
        return self.loads / 2

    @property
    def instructions_per_byte(self) -> float:
        return self.instructions / (LOAD_BYTES * self.loads)


def parse_sass(text: str) -> dict[str, list[Instruction]]:
    """The instructions of each function, from `cuobjdump -sass`."""
    functions: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    pattern = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z]\w*(?:\.\w+)*)\s*([^;]*);")
    for line in text.splitlines():
        if match := re.match(r"\s+Function : (\S+)", line):
            current = functions.setdefault(match[1], [])
        elif match := pattern.match(line):
            address, predicate, opcode, operands = match.groups()
            current.append(Instruction(int(address, 16), predicate or "", opcode, operands.strip()))
    return functions


def inner_loop(code: list[Instruction]) -> Loop | None:
    """The loop that loads 16 bytes at a time and multiplies codes: of the innermost ones, that with the most
    loads (beside the unrolled loop the compiler may leave a short one for the rest)."""
    bodies = {head: body for head, body in natural_loops(code).items() if is_decode([code[i] for i in body])}
    innermost = {h: body for h, body in bodies.items() if not any(other < body for other in bodies.values())}
    loops = [describe(code, head, body) for head, body in innermost.items()]
    return max(loops, key=lambda loop: loop.loads, default=None)


def is_decode(body: list[Instruction]) -> bool:
    return any(i.parts[0] == "IDP" for i in body) and any(i.global_load_width == "128" for i in body)


def describe(code: list[Instruction], head: int, body: set[int]) -> Loop:
    paths = skippable(successors(code), head, body)
    side = set().union(*(path for path in paths if not any(does_the_work(code[i]) for i in path)))
    names = [code[i].parts[0] for i in body]
    widths = [(code[i].global_load_width, code[i].opcode) for i in body if code[i].global_load_width]
    return Loop(
        instructions=len(body) - len(side),
        side_instructions=len(side),
        loads=sum(width == "128" for width, _ in widths),
        scale_loads=sum(width == "32" for width, _ in widths),
        other_loads=tuple(sorted(opcode for width, opcode in widths if width not in ("32", "128"))),
        dot_products=names.count("IDP"),
        conversions=sum(name.startswith("I2F") for name in names),
        local_accesses=sum(name in ("LDL", "STL") for name in names),
    )


def does_the_work(instruction: Instruction) -> bool:
    """Whether it belongs to what every token needs: loads, dot products, codes to halves."""
    opcode = instruction.parts[0]
    return opcode in ("IDP", "PRMT") or opcode.startswith("I2F") or instruction.global_load_width is not None


def natural_loops(code: list[Instruction]) -> dict[int, set[int]]:
    """The instructions of each loop by its head, as indices: all that reach a jump back to the head without
    passing it, where the head lies on every way to that jump."""
    following = successors(code)
    used = reached(following, 0)
    preceding = reversed_edges(following, used)
    loops: dict[int, set[int]] = {}
    for source in used:
        for head in following[source]:
            if head <= source and source not in reached(following, 0, avoid=head):
                loops.setdefault(head, {head}).update(reached(preceding, source, avoid=head))
    return loops


def skippable(following: list[set[int]], head: int, body: set[int]) -> list[set[int]]:
    """Parts of a loop that an iteration can do without, each in one piece."""
    within = [edges & body - {head} if i in body else set() for i, edges in enumerate(following)]
    jumps_back = {i for i in body if head in following[i]}
    free = {i for i in body if jumps_back & reached(within, head, avoid=i)}
    around = [
        edges & free | before & free
        for edges, before in zip(within, reversed_edges(within, body), strict=True)
    ]
    paths = []
    while free:
        paths.append(reached(around, min(free)) & free)
        free -= paths[-1]
    return paths


def reversed_edges(edges: list[set[int]], nodes: set[int]) -> list[set[int]]:
    """Of the edges that start at `nodes`."""
    backward: list[set[int]] = [set() for _ in edges]
    for i in nodes:
        for j in edges[i]:
            backward[j].add(i)
    return backward


def successors(code: list[Instruction]) -> list[set[int]]:
    """For each instruction the indices of those that may come next."""
    index = {instruction.address: i for i, instruction in enumerate(code)}
    following: list[set[int]] = [set() for _ in code]
    for i, instruction in enumerate(code):
        if instruction.goes_on and i + 1 < len(code):
            following[i].add(i + 1)
        if instruction.target in index:
            following[i].add(index[instruction.target])
    return following


def reached(edges: list[set[int]], start: int, avoid: int | None = None) -> set[int]:
    if start == avoid or not edges:
        return set()
    seen, waiting = {start}, [start]
    while waiting:
        for node in edges[waiting.pop()] - seen - {avoid}:
            seen.add(node)
            waiting.append(node)
    return seen


class CheckError(Exception):
    """One sentence: what can't be read."""


def find_cuobjdump() -> str | None:
    """From the PATH, else the one in triton, which comes with torch."""
    triton = importlib.util.find_spec("triton")
    packages = triton.submodule_search_locations if triton else []
    folders = [None, *(str(Path(package) / "backends" / "nvidia" / "bin") for package in packages)]
    found = (shutil.which("cuobjdump", path=folder) for folder in folders)
    return next(filter(None, found), None)


def run(*command: str, text: str | None = None) -> str:
    try:
        result = subprocess.run(command, input=text, capture_output=True, text=True)
    except OSError as error:
        raise CheckError(f"{command[0]}: can't be run: {error.strerror}") from None
    if result.returncode != 0:
        raise CheckError(f"{Path(command[0]).name} failed: {(result.stderr or result.stdout).strip()}")
    return result.stdout


def shorten(name: str) -> str:
    """`void kvfuse::cuda::kernel<(int)64>(kvfuse::cuda::Params)` as `kernel<64>`."""
    name = name.replace("(anonymous namespace)::", "").removeprefix("void ")
    name = re.sub(r"\([a-z ]+\)(?=[-\d])", "", name)
    name = re.sub(r"\([^()]*\)(?: \[clone .*\])?$", "", name)
    return name.replace("kvfuse::cuda::", "").replace("kvfuse::", "")


def parse_resources(text: str) -> Iterator[tuple[str, str, dict[str, int]]]:
    """(architecture, symbol, figures) of each kernel, from `cuobjdump -res-usage`."""
    architecture = symbol = ""
    for line in text.splitlines():
        if match := re.match(r"arch = (\w+)", line):
            architecture = match[1]
        elif match := re.match(r"\s*Function (\S+):$", line):
            symbol = match[1]
        elif "REG:" in line:
            yield architecture, symbol, {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", line)}


def read_kernels(tool: str, file: Path) -> list[Kernel]:
    entries = list(parse_resources(run(tool, "-res-usage", str(file))))
    symbols = sorted({symbol for _, symbol, _ in entries})
    names = run("c++filt", text="\n".join(symbols)).splitlines()
    readable = {symbol: shorten(name) for symbol, name in zip(symbols, names, strict=True)}
    return [
        Kernel(architecture, symbol, readable[symbol], figures["REG"], figures["STACK"], figures["LOCAL"])
        for architecture, symbol, figures in entries
    ]


def read_ptx_architectures(tool: str, file: Path) -> set[str]:
    return set(re.findall(r"\.(sm_\w+)\.ptx$", run(tool, "-lptx", str(file)), re.MULTILINE))


def read_loops(tool: str, file: Path, kernels: list[Kernel]) -> dict[Kernel, Loop | None]:
    """The inner loop of each of `kernels`."""
    loops = {}
    for architecture in sorted({kernel.architecture for kernel in kernels}):
        wanted = [kernel for kernel in kernels if kernel.architecture == architecture]
        symbols = ",".join(kernel.symbol for kernel in wanted)
        code = parse_sass(run(tool, "-sass", "-arch", architecture, "-fun", symbols, str(file)))
        loops |= {kernel: inner_loop(code.get(kernel.symbol, [])) for kernel in wanted}
    return loops
