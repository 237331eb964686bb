"""KVFUSE_CUDA, the switch of the CMake build, with and without a toolkit. Nothing is built."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(sys.executable).parent
NVCC_FOLDERS = [
    folder
    for folder in [*os.environ["PATH"].split(os.pathsep), "/usr/local/cuda/bin"]
    if (Path(folder) / "nvcc").exists()
]
pytestmark = pytest.mark.skipif(
    not ((TOOLS / "cmake").exists() and (TOOLS / "ninja").exists()), reason="no cmake and ninja beside python"
)


def configure(folder: Path, **settings: str) -> tuple[int, str]:
    """The exit status of CMake, and all it said on one line."""
    settings = {"Python_EXECUTABLE": sys.executable, "CMAKE_MAKE_PROGRAM": str(TOOLS / "ninja")} | settings
    settings |= {"KVFUSE_RUNNER": "OFF", "KVFUSE_TESTS": "OFF"}
    command = [str(TOOLS / "cmake"), "-S", str(ROOT), "-B", str(folder), "-G", "Ninja"]
    env = {name: value for name, value in os.environ.items() if name not in ("CUDA_HOME", "CUDA_PATH")}
    result = subprocess.run(
        [*command, *(f"-D{name}={value}" for name, value in settings.items())],
        capture_output=True,
        text=True,
        timeout=300,
        env=env,
    )
    return result.returncode, re.sub(r"\s+", " ", result.stdout + result.stderr)


@pytest.fixture
def hidden_nvcc() -> dict[str, str]:
    """The settings that make CMake see no toolkit."""
    if any((Path(folder) / "c++").exists() for folder in NVCC_FOLDERS):
        pytest.skip("nvcc cannot be hidden without hiding the compiler beside it")
    return {"CMAKE_IGNORE_PATH": ";".join(NVCC_FOLDERS)}


@pytest.fixture
def fake_nvcc(tmp_path):
    """Makes an nvcc that answers with a given text."""

    def make(answer: str) -> dict[str, str]:
        nvcc = tmp_path / "nvcc"
        nvcc.write_text(f"#!/bin/sh\necho '{answer}'\n")
        nvcc.chmod(0o755)
        return {"KVFUSE_NVCC": str(nvcc)}

    return make


def test_another_value_is_an_error(tmp_path):
    status, output = configure(tmp_path, KVFUSE_CUDA="yes")
    assert status != 0 and 'KVFUSE_CUDA: expected auto, on or off, got "yes"' in output


def test_on_without_a_toolkit(tmp_path, hidden_nvcc):
    status, output = configure(tmp_path, KVFUSE_CUDA="on", **hidden_nvcc)
    assert status != 0 and output.count("CMake Error") == 1
    rule = "KVFUSE_CUDA=on: no CUDA toolkit was found: nvcc is neither on PATH nor in /usr/local/cuda/bin"
    assert f"{rule} (install the toolkit or set KVFUSE_NVCC to its nvcc); or configure with" in output


@pytest.mark.parametrize("value", ["auto", "off"])
def test_auto_and_off_without_a_toolkit(tmp_path, hidden_nvcc, value):
    status, output = configure(tmp_path, KVFUSE_CUDA=value, **hidden_nvcc)
    assert status == 0, output
    assert ("CUDA operators: not built: no CUDA toolkit was found" in output) is (value == "auto")


@pytest.mark.skipif(torch.version.cuda is None, reason="this PyTorch was built without CUDA")
@pytest.mark.parametrize("value", ["auto", "on"])
def test_a_toolkit_of_another_major_version(tmp_path, fake_nvcc, value):
    settings = fake_nvcc("Cuda compilation tools, release 9.2, V9.2.88")
    status, output = configure(tmp_path / "build", KVFUSE_CUDA=value, **settings)
    major = torch.version.cuda.split(".")[0]
    rule = (
        f"expected a toolkit of CUDA {major}, that of PyTorch {torch.__version__}, got 9.2 in {tmp_path}/nvcc"
    )
    assert (status == 0) is (value == "auto") and rule in output


def test_an_nvcc_that_does_not_answer(tmp_path, fake_nvcc):
    status, output = configure(tmp_path / "build", KVFUSE_CUDA="on", **fake_nvcc("command not found"))
    assert status != 0 and f"{tmp_path}/nvcc --version names no release" in output


@pytest.mark.skipif(not NVCC_FOLDERS, reason="there is no CUDA toolkit")
def test_a_toolkit_is_enough(tmp_path):
    status, output = configure(tmp_path, KVFUSE_CUDA="on", KVFUSE_CUDA_ARCHITECTURES="80-real;90-virtual;90")
    assert status == 0, output
    assert re.search(r"CUDA operators: built by nvcc [\d.]+ for 80, 90 PTX, 90\+PTX", output)
