"""scripts/gpu_clocks.py with a program in nvidia-smi's place that notes what it is asked."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import REPOSITORY

SCRIPT = REPOSITORY / "scripts/gpu_clocks.py"
FAKE = """#!/bin/sh
echo "$@" >> {log}
case "$*" in
  *--query-gpu=*) echo "0, Some GPU, P0, 1500, 1980, 2600, 2619" ;;
  *--lock-gpu-clocks=*) {lock} ;;
esac
"""


@pytest.fixture
def smi(tmp_path):
    """Puts the program on PATH; `lock` is what locking does. Returns the environment and what was asked."""
    log = tmp_path / "asked"

    def make(lock=":"):
        program = tmp_path / "nvidia-smi"
        program.write_text(FAKE.format(log=log, lock=lock))
        program.chmod(0o755)
        return os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    make.asked = lambda: [line.split()[2].split("=")[0] for line in log.read_text().splitlines()]
    return make


def call(*words, **environment):
    return subprocess.run(
        [sys.executable, SCRIPT, *words], capture_output=True, text=True, timeout=60, **environment
    )


def test_state(smi):
    result = call(env=smi())
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "GPU 0 (Some GPU): P0, SM 1500 of 1980 MHz, memory 2600 of 2619 MHz\n"


@pytest.mark.parametrize("code", [0, 3])
def test_a_command_runs_between_lock_and_reset(smi, code):
    result = call("run", sys.executable, "-c", f"print('ran', '--gpu'); raise SystemExit({code})", env=smi())
    assert (result.returncode, result.stdout) == (code, "ran --gpu\n")
    assert smi.asked() == ["--query-gpu", "--lock-gpu-clocks", "--reset-gpu-clocks"]


def test_an_interrupt_ends_the_command_and_unlocks(smi):
    words = [
        sys.executable,
        SCRIPT,
        "run",
        sys.executable,
        "-c",
        "import time; print(1, flush=True); time.sleep(60)",
    ]
    with subprocess.Popen(
        words, env=smi(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, text=True
    ) as process:
        assert process.stdout.readline() == "1\n"
        time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert smi.asked()[-1] == "--reset-gpu-clocks"


def test_what_cannot_be_done_is_one_sentence(smi, tmp_path):
    result = call("run", "true", env=smi("echo 'no permission'; exit 4"))
    assert (result.returncode, result.stderr) == (
        4,
        "gpu_clocks: error: nvidia-smi -i 0 --lock-gpu-clocks=1980,1980: no permission\n",
    )
    result = call("run", "no-such-program", env=smi())
    assert (result.returncode, result.stderr) == (
        4,
        "gpu_clocks: error: no-such-program: No such file or directory\n",
    )
    assert smi.asked()[-1] == "--reset-gpu-clocks"
    result = call(env=os.environ | {"PATH": str(tmp_path / "none")})
    assert result.returncode == 4 and result.stderr.startswith("gpu_clocks: error: expected nvidia-smi")
    for words in (["run"], ["state", "true"], ["--gup", "1"]):
        assert call(*words, env=smi()).returncode == 2
