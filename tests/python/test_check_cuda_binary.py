"""The compiler gates: what they read from cuobjdump, and that each of them can fail."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import check_cuda_binary as gates  # noqa: E402
import cuda_binary  # noqa: E402

DECODE = "decode_attention_kernel<IntegerCodes, 64, 1>"

RESOURCES = """
Fatbin elf code:
================
arch = sm_80
code version = [1,8]

Resource usage:
 Common:
  GLOBAL:0
 Function _Z5firstv:
  REG:56 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:404 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function _Z6secondv:
  REG:255 STACK:80 SHARED:16 LOCAL:8 CONSTANT[0]:404 TEXTURE:0 SURFACE:0 SAMPLER:0

Fatbin ptx code:
================
arch = sm_90

Fatbin elf code:
================
arch = sm_90
 Function _Z5firstv:
  REG:72 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:580 TEXTURE:0 SURFACE:0 SAMPLER:0
"""

# What a thread does for a token of 64 bytes of K and V, a quarter of each: 4 dot products, one conversion.
TOKEN = [
    "LDG.E.128 R4, [R2.64]",
    "LDG.E.128 R8, [R2.64]",
    *["IDP.4A.S8.S8 R0, R1, R2, R0"] * 4,
    "I2FP.F32.S32 R0, R0",
]
SCALES = ["LDG.E R20, [R2.64]", "LDG.E.CONSTANT R21, [R2.64]"]


def kernel(**changes) -> cuda_binary.Kernel:
    figures = {"architecture": "sm_90", "symbol": "s", "name": DECODE, "registers": 72, "stack_bytes": 0}
    return cuda_binary.Kernel(**(figures | {"local_bytes": 0} | changes))


def loop(**changes) -> cuda_binary.Loop:
    figures = {
        "instructions": 256,
        "side_instructions": 0,
        "loads": 8,
        "scale_loads": 2,
        "other_loads": (),
        "dot_products": 16,
    }
    return cuda_binary.Loop(**(figures | {"conversions": 4, "local_accesses": 0} | changes))


def sass(*lines: str) -> str:
    """As cuobjdump prints it. `name:` marks the next instruction, a last operand `name` means it."""
    marks, code = {}, []
    for line in lines:
        if line.endswith(":"):
            marks[line[:-1]] = f"0x{16 * len(code):x}"
        else:
            code.append(line)
    text = ["\t\tFunction : kernel"]
    for number, line in enumerate(code):
        for name, address in marks.items():
            line = re.sub(rf"\b{name}$", address, line)
        text.append(f"        /*{16 * number:04x}*/                   {line} ;      /* 0x00000a00ff017b82 */")
        text.append(" " * 80 + "/* 0x000fe20000000800 */")
    return "\n".join(text)


def inner_loop(*lines: str) -> cuda_binary.Loop | None:
    return cuda_binary.inner_loop(cuda_binary.parse_sass(sass(*lines))["kernel"])


def test_resources():
    found = [(a, s, f["REG"], f["STACK"], f["LOCAL"]) for a, s, f in cuda_binary.parse_resources(RESOURCES)]
    assert found == [
        ("sm_80", "_Z5firstv", 56, 0, 0),
        ("sm_80", "_Z6secondv", 255, 80, 8),
        ("sm_90", "_Z5firstv", 72, 0, 0),
    ]


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("void kvfuse::cuda::(anonymous namespace)::a<(int)64, (bool)1>(kvfuse::cuda::P)", "a<64, 1>"),
        ("void kvfuse::cuda::a<kvfuse::Float16, 8>(kvfuse::cuda::Params const*, int)", "a<Float16, 8>"),
        ("kvfuse::cuda::greedy(kvfuse::cuda::Params)", "greedy"),
    ],
)
def test_short_names(name, short):
    assert cuda_binary.shorten(name) == short


def test_instructions():
    (code,) = cuda_binary.parse_sass(
        sass("@!P0 BRA end", "@UP1 LDG.E.128 R4, [R2.64+0x10]", "end:", "EXIT")
    ).values()
    assert [(i.address, i.predicate, i.opcode) for i in code] == [
        (0, "!P0", "BRA"),
        (16, "UP1", "LDG.E.128"),
        (32, "", "EXIT"),
    ]
    assert [i.target for i in code] == [32, None, None]
    assert [i.goes_on for i in code] == [True, True, False]


@pytest.mark.parametrize(
    ("opcode", "width"),
    [
        ("LDG.E.128.CONSTANT", "128"),
        ("LDG.E", "32"),
        ("LDG.E.U8", "U8"),
        ("LDGSTS.E.BYPASS.128", "128"),
        ("LD.E.64", "64"),
        ("LDS.128", None),
        ("LDC.64", None),
        ("STG.E.128", None),
    ],
)
def test_load_widths(opcode, width):
    assert cuda_binary.Instruction(0, "", opcode, "").global_load_width == width


def test_loop_is_counted():
    found = inner_loop(
        "MOV R1, R2", *SCALES, "head:", *TOKEN, *SCALES, "FADD R1, R1, R1", "@P0 BRA head", "EXIT"
    )
    assert found == loop(instructions=11, loads=2, dot_products=4, conversions=1)
    assert found.tokens == 1 and found.instructions_per_byte == 11 / 32


def test_unrolled_loop_is_chosen_before_the_rest():
    rest = ["rest:", *TOKEN, "@P0 BRA rest"]
    found = inner_loop("head:", *TOKEN, *TOKEN, *TOKEN, *TOKEN, "@P0 BRA head", *rest, "EXIT")
    assert found.loads == 8 and found.instructions == 29


def test_innermost_loop_is_chosen():
    found = inner_loop(
        "outer:", "MOV R1, R2", "inner:", *TOKEN, "@P0 BRA inner", "FADD R1, R1, R1", "@P1 BRA outer", "EXIT"
    )
    assert found.instructions == 8


@pytest.mark.parametrize(
    ("branch", "side", "counted", "aside"),
    [
        ("@P1 BRA side", "FMUL R1, R1, R1", 9, 2),
        ("@P1 BRA side", "LDG.E R1, [R2.64]", 11, 0),  # a load that is only branched around is still one
        ("@P1 BRA side", "IDP.4A.S8.S8 R1, R1, R1", 11, 0),
        ("BRA.DIV UR4, side", "FMUL R1, R1, R1", 9, 0),  # for lanes that have parted: never
    ],
)
def test_side_paths(branch, side, counted, aside):
    found = inner_loop("head:", *TOKEN, branch, "back:", "@P0 BRA head", "EXIT", "side:", side, "BRA back")
    assert (found.instructions, found.side_instructions) == (counted, aside)


def test_path_around_the_end_of_a_loop():
    """Of two ways through an iteration each can be skipped; the longer code behind both cannot."""
    found = inner_loop(
        *("head:", "@P1 BRA right", "FADD R1, R1, R1", "BRA join", "right:", "FMUL R1, R1, R1"),
        *("join:", *TOKEN, "@P0 BRA head", "EXIT"),
    )
    assert (found.instructions, found.side_instructions) == (9, 3)


def test_loop_behind_an_early_exit():
    assert inner_loop("@P1 EXIT", "head:", *TOKEN, "@P0 BRA head", "EXIT").instructions == 8


def test_jump_into_a_loop_makes_no_loop():
    """Only a jump back to a place that all ways lead through closes a loop."""
    found = inner_loop("@P2 BRA inside", "head:", *TOKEN, "inside:", "MOV R1, R2", "@P0 BRA head", "EXIT")
    assert found is None


@pytest.mark.parametrize("missing", ["IDP", "LDG"])
def test_loop_without_what_makes_it_one(missing):
    assert (
        inner_loop("head:", *(line for line in TOKEN if not line.startswith(missing)), "@P0 BRA head", "EXIT")
        is None
    )


def test_good_loop_passes():
    assert list(gates.check_loop(kernel(), loop())) == []


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (None, "expected a loop with IDP and 128-bit global loads, got none"),
        (loop(instructions=257), "expected at most 2.0 instructions per KV byte, got 2.01"),
        (loop(conversions=5), "expected at most one conversion from integer for each of 4 tokens, got 5"),
        (loop(other_loads=("LDG.E.64",)), "expected loads of 16 bytes, or 4 for scales, got LDG.E.64"),
        (loop(local_accesses=1), "expected no access to local memory in the loop, got 1"),
    ],
)
def test_bad_loops(found, sentence):
    (failure,) = gates.check_loop(kernel(), found)
    assert failure == f"sm_90 {DECODE}: {sentence}"


def test_kernels():
    assert list(gates.check_kernel(kernel())) == []
    (failure,) = gates.check_kernel(kernel(registers=81))
    assert "expected at most 80 registers (6 blocks of 128 threads an SM: " in failure
    assert failure.endswith(", got 81")
    (failure,) = gates.check_kernel(kernel(stack_bytes=80, local_bytes=8))
    assert failure.endswith("got 80 bytes of stack and 8 of local arrays")
    (failure,) = gates.check_kernel(kernel(name="unheard_of_kernel<1>"))
    assert "unheard_of_kernel<1>: has no plan" in failure


def test_architectures():
    everywhere = [kernel(architecture=a) for a in gates.ARCHITECTURES]
    assert list(gates.check_architectures(everywhere, {"sm_90"})) == []
    assert list(gates.check_architectures(everywhere[1:], {"sm_90"})) == ["expected code for sm_80, got none"]
    assert list(gates.check_architectures(everywhere, {"sm_80"})) == ["expected PTX of sm_90, got sm_80"]
    assert list(gates.check_architectures([*everywhere, kernel(symbol="t")], {"sm_90"})) == [
        f"{a}: 1 kernels that other architectures have are missing" for a in ("sm_80", "sm_86", "sm_89")
    ]


def test_what_cards_afford():
    afforded = {card.name: card.instructions_per_byte for card in gates.CARDS}
    about = {"A100 80GB SXM": 10, "RTX A6000": 25, "H100 SXM": 10, "H200 SXM": 7}
    assert {name: afforded[name] for name in about} == pytest.approx(about, rel=0.05)
    assert {card.architecture for card in gates.CARDS} == set(gates.ARCHITECTURES)


def test_without_cuobjdump(monkeypatch, capsys):
    monkeypatch.setattr(gates, "find_cuobjdump", lambda: None)
    assert gates.main(["any.so"]) == gates.SKIPPED == 77
    assert "skipped: no cuobjdump" in capsys.readouterr().out


@pytest.mark.skipif(cuda_binary.find_cuobjdump() is None, reason="no cuobjdump on the PATH or in triton")
def test_file_without_device_code(tmp_path, capsys):
    file = tmp_path / "text.o"
    file.write_text("no object at all")
    assert gates.main([str(file)]) == 3
    assert re.match(r"check_cuda_binary: error: .*text.o: cuobjdump failed: ", capsys.readouterr().err)


SOURCE = """
struct IntegerCodes {};
template <class Format, int kHeadDim, int kRows>
__global__ void decode_attention_kernel(const int4* k, const int4* v, int n, float* out) {
  float values[LIVE] = {};
  for (int t = threadIdx.x; t < n; t += 128) {
    const int4 a = k[t], b = v[t];
    const float p = __int2float_rn(__dp4a(a.x, a.y, __dp4a(a.z, a.w, __dp4a(b.x, b.y, __dp4a(b.z, b.w, 0)))));
    for (int i = 0; i < LIVE; ++i) values[i] += p * out[i];
  }
  for (int i = 0; i < LIVE; ++i) out[threadIdx.x * LIVE + i] = values[i];
}
template __global__ void decode_attention_kernel<IntegerCodes, 64, 1>(const int4*, const int4*, int, float*);
"""


@pytest.mark.skipif(
    shutil.which("nvcc") is None or cuda_binary.find_cuobjdump() is None, reason="no nvcc, or no cuobjdump"
)
@pytest.mark.parametrize(("live", "spills"), [(4, False), (60, True)])
def test_compiled_kernel(tmp_path, capsys, live, spills):
    """A spill, which ptxas reports while it compiles, is seen in what it compiled."""
    source, target = tmp_path / "kernel.cu", tmp_path / "kernel.o"
    source.write_text(SOURCE)
    options = ["-arch=sm_90", "-maxrregcount=32", f"-DLIVE={live}"]
    subprocess.run(["nvcc", *options, "-c", str(source), "-o", str(target)], check=True, timeout=120)
    assert gates.main([str(target)]) == 1
    out = capsys.readouterr().out
    assert ("expected nothing in local memory" in out) is spills
    assert "expected code for sm_80, got none" in out and "expected PTX of sm_90" not in out
    assert "decode_attention_kernel<IntegerCodes, 64, 1>" in out
