"""The parts that run other programs: the operator tests, compute-sanitizer over small calls, bench_runner."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml
from collections.abc import Iterator
from pathlib import Path

from gpu_check import timing
from gpu_check.rows import ROOT, Context, Row, python_environment

SANITIZER_PACKAGE = "nvidia-cuda-sanitizer-api==13.0.85"
SANITIZER_TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
FOUND_ERRORS = 86  # exit code that the sanitizer is told to end with

# The step of GPT-2 medium while the cache grows to 1024 tokens, which is all that its positions allow.
STEP_MODEL = {"pretrained": "gpt2-medium", "dtype": "float16", "prompt_length": 32, "T_values": [992]}
QUICK_MODEL = {
    "model_config": {"n_layer": 1, "n_head": 1, "n_embd": 64, "block_size": 64, "vocab_size": 32},
    "prompt_length": 4,
    "T_values": [8],
}
STEP_MODES = {
    "eager": {"cuda_graph": False},
    "graph": {"cuda_graph": True},
    "graph, overlap": {"cuda_graph": True, "overlap_kernels": True},
}
LIMIT_SHARE, TIMES_AS_FAST_AS_EAGER = 0.40, 4.0  # goals of the graph with v1


def tail(text: str, lines: int = 3) -> str:
    """The last lines with anything in them, as one."""
    return " | ".join([line.strip() for line in text.splitlines() if line.strip()][-lines:])


def run_program(command: list[str | Path], **changes: str) -> subprocess.CompletedProcess:
    """With our Python packages in reach and `changes` in the environment. The part's end is its end."""
    environment = python_environment(ROOT / "python", ROOT / "scripts", ROOT / "tests" / "python") | changes
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, errors="replace")


def operators(context: Context) -> Iterator[Row]:
    """The operator tests on the device."""
    tests = sorted((ROOT / "tests" / "python").glob("test_op_errors.py" if context.quick else "test_op*.py"))
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["--device", context.device, "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        result = run_program([sys.executable, "-m", "pytest", *options, *tests])
        yield judge_tests(
            result.returncode, report.read_text() if report.exists() else "", result.stdout + result.stderr
        )


def judge_tests(code: int, report: str, output: str) -> Row:
    """From the exit code of pytest, its JUnit report and what it printed."""
    case = "pytest tests/python/test_op*.py"
    suites = list(xml.fromstring(report).iter("testsuite")) if report else []
    if not suites:
        return Row(case, f"pytest ended with {code} before any test: {tail(output)}", status="failed")
    names = ("tests", "failures", "errors", "skipped")
    counts = {name: sum(int(suite.get(name, 0)) for suite in suites) for name in names}
    bad = [
        f"{test.get('classname')}.{test.get('name')}"
        for test in suites[0].iter("testcase")
        if test.find("failure") is not None or test.find("error") is not None
    ]
    passed = counts["tests"] - counts["failures"] - counts["errors"] - counts["skipped"]
    text = f"{passed} passed, {len(bad)} failed, {counts['skipped']} skipped"
    if bad:
        text += f": {', '.join(bad[:3])}"
    sound = code == 0 and not bad and passed > 0
    status = "ok" if sound else "wrong"
    return Row(case, text, status=status, goal="all pass", met=sound, data=counts | {"failed": bad})


def find_sanitizer() -> str | None:
    """On the PATH, else from the package on PyPI, whose programs lie beside its modules."""
    nvidia = importlib.util.find_spec("nvidia")
    folders = (
        [bin for base in nvidia.submodule_search_locations for bin in Path(base).glob("*/bin")]
        if nvidia
        else []
    )
    found = (shutil.which("compute-sanitizer", path=path) for path in (None, *map(str, folders)))
    return next(filter(None, found), None)


def sanitizers(context: Context) -> Iterator[Row]:
    """Every operator on small inputs under each tool of compute-sanitizer."""
    program = find_sanitizer()
    if context.device != "cuda" or program is None:
        hint = f"no compute-sanitizer (hint: .venv/bin/pip install {SANITIZER_PACKAGE})"
        yield Row(
            "compute-sanitizer", hint if context.device == "cuda" else "needs a CUDA device", status="skipped"
        )
        return
    for tool in SANITIZER_TOOLS:
        options = ["--tool", tool, "--error-exitcode", str(FOUND_ERRORS)]
        calls = [sys.executable, "-m", "gpu_check.small_calls", context.device]
        # Without PyTorch's caching of memory a tensor is an allocation of its own, whose ends are watched.
        result = run_program([program, *options, *calls], PYTORCH_NO_CUDA_MEMORY_CACHING="1")
        yield judge_sanitizer(tool, result.returncode, result.stdout + result.stderr)


def judge_sanitizer(tool: str, code: int, output: str) -> Row:
    found = re.search(r"(?:ERROR|RACECHECK) SUMMARY: (.*)", output)
    verdict = found[1].strip() if found else ""
    if code == 0 and re.match(r"0 (errors|hazards)", verdict):
        return Row(tool, verdict, goal="no errors", met=True)
    if code == FOUND_ERRORS:
        return Row(
            tool,
            verdict or tail(output),
            status="wrong",
            goal="no errors",
            met=False,
            data={"output": output[:20000]},
        )
    return Row(tool, f"ended with {code}: {tail(output)}", status="failed", data={"output": output[-20000:]})


def bandwidth(context: Context) -> Iterator[Row]:
    size = timing.MIB if context.quick else timing.GIB
    rate = timing.copy_bandwidth(context.device, size, rounds=20)
    case = f"copy of {size // timing.MIB} MiB"
    yield Row(case, f"{rate / 1e9:.3g} GB/s read and written", data={"bytes_per_s": rate, "bytes": size})


def step(context: Context) -> Iterator[Row]:
    """A decode step of the whole model through bench_runner, eager and as a graph."""
    program = ROOT / os.environ.get("KVFUSE_BUILD_DIR", "build/cpu") / "bench_runner"
    if not program.is_file():
        yield Row(
            "bench_runner", f"{program} is not built (hint: make gpu-check builds it)", status="skipped"
        )
        return
    records = {}
    for mode, settings in STEP_MODES.items():
        with tempfile.TemporaryDirectory() as folder:
            config, log = Path(folder) / "step.yaml", Path(folder) / "step.jsonl"
            config.write_text(step_config(context, settings))
            options = ["--config", config, "--device", context.device, "--log-file", log, "--quiet"]
            result = run_program([program, "latency", *options])
            records[mode] = (
                [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
            )
        if not records[mode]:
            yield Row(
                mode, f"bench_runner ended with {result.returncode}: {tail(result.stderr)}", status="failed"
            )
        yield from (step_row(mode, record, records["eager"]) for record in records[mode])


def step_config(context: Context, settings: dict) -> str:
    runs = {"num_warmup_runs": 1, "num_measure_runs": 1 if context.quick else 4, "batch_size": 1}
    keys = (QUICK_MODEL if context.quick else STEP_MODEL) | {"versions": ["v1", "v2"]} | runs | settings
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in keys.items())


def step_row(mode: str, record: dict, eager: list[dict]) -> Row:
    """How a record of bench_runner stands to the byte limit and to the eager step of the same version."""
    version = record["version"]
    case = f"{mode}, {version}"
    if record["status"] != "ok":
        return Row(case, record.get("reason") or record["status"], status="failed", data=record)
    share = record["limit_fraction"]
    text = f"{record['time_per_token_ms_median']:.3f} ms a token = {share:.2f} of the byte limit"
    same = [r for r in eager if r["version"] == version and r["status"] == "ok"]
    if mode == "eager" or not same:
        return Row(case, text, data=record)
    faster = timing.ratio(same[0]["time_total_ms_samples"], record["time_total_ms_samples"])
    text += f", {faster['value']:.2f}x [{faster['low']:.2f}, {faster['high']:.2f}] eager"
    goal = f">= {LIMIT_SHARE} of the limit, >= {TIMES_AS_FAST_AS_EAGER}x eager"
    met = share >= LIMIT_SHARE and faster["value"] >= TIMES_AS_FAST_AS_EAGER
    return Row(case, text, goal=goal, met=met, data=record | {"times_as_fast_as_eager": faster})
