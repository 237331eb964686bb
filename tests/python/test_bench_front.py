"""benchmark/main.py, python -m kvfuse.bench and profile_decode_step.py: bench_runner in other words."""

import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY
from runner import TIMEOUT_S

MAIN = [REPOSITORY / "benchmark/main.py"]
MODULE = ["-m", "kvfuse.bench"]
PROFILE = [REPOSITORY / "benchmark/roofline/profile_decode_step.py"]

CALLS = [
    "--version v0 v1",
    "latency --version v0 v1 v2 v3 v4 --clear-log",
    "vram --version v1 v2 v3 v4 --preset gpt2-medium",
    "phase --version v0 v1",
    "--config custom.yaml --version v1 v4",
    "--config custom.yaml --preset gpt2-xl",
    "vram --config memory_study.yaml",
    "--benchmark latency_vs_T",
]


@pytest.fixture
def front(bench):
    """Runs one of the programs in the folder of `bench`, beside a configuration that is found there."""
    bench.configure("custom.yaml", T_values=[4], T_star=4, memory_budget="64 GB")
    study = (REPOSITORY / "configs/memory_study.yaml").read_text()
    (bench.folder / "memory_study.yaml").write_text(study)

    def run(program, *words, **environment):
        paths = {"PYTHONPATH": str(REPOSITORY / "python"), "KVFUSE_BENCH_RUNNER": str(bench.program)}
        return subprocess.run(
            [sys.executable, *program, *words],
            cwd=bench.folder,
            env=os.environ | paths | {"OMP_NUM_THREADS": "1"} | environment,
            text=True,
            capture_output=True,
            timeout=TIMEOUT_S,
        )

    return run


@pytest.mark.parametrize("call", CALLS)
def test_documented_calls(bench, front, call):
    """Planned, which takes the same words: the models are too large for a test."""
    words = [*call.split(), "--dry-run", "-o", "json"]
    want = bench.run(*words)
    got = front(MAIN, *words)
    assert want.returncode == 0, want.stderr
    assert (got.returncode, got.stdout, got.stderr) == (0, want.stdout, want.stderr)


@pytest.mark.parametrize("program", [MAIN, MODULE], ids=["main", "module"])
def test_it_is_the_runner(bench, front, program):
    result = front(program, "latency", "--config", "custom.yaml", "--version", "v0", "v1")
    assert result.returncode == 0, result.stderr
    assert [record["version"] for record in bench.records()] == ["v0", "v1"]
    assert (wrong := front(program, "latency", "--versoin", "v0")).returncode == 2
    assert wrong.stderr.startswith("bench_runner: error: --versoin: ")


def test_no_runner(front, tmp_path):
    result = front(MAIN, KVFUSE_BENCH_RUNNER="", KVFUSE_BUILD_DIR="none", PATH=str(tmp_path))
    assert result.returncode == 4
    assert result.stderr.startswith("kvfuse.bench: error: expected bench_runner in build/cpu")
    result = front(MODULE, KVFUSE_BENCH_RUNNER=str(tmp_path / "none"))
    assert (result.returncode, result.stderr.count("\n")) == (4, 1)
    assert "none: expected a program, got: No such file or directory" in result.stderr


def test_profiled_stages(bench, front):
    config = ["--config", "custom.yaml", "--device", "cpu"]
    result = front(PROFILE, *config, "--P", "8", "--dtype", "float32", "--model", "gpt2", "--dry-run")
    assert result.returncode == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines() if line.startswith("roofline")]
    assert [row[1] for row in rows] == ["v0_prefill", "v1_prefill", "v1_decode"]
    result = front(PROFILE, *config, "--version", "v2", "--preset", "gpt2", "--dry-run", "-o", "json")
    assert "v2_decode" in result.stdout, result.stderr
    result = front(PROFILE, *config, "--version", "v9_decode")
    assert result.returncode == 2 and "v9" in result.stderr
