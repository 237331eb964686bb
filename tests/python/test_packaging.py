"""What packaging files repeat agrees with the file that owns it, and a source distribution is complete."""

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_build_requirements_are_the_pinned_ones():
    tomllib = pytest.importorskip("tomllib")
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    pinned = (ROOT / "requirements.txt").read_text().splitlines()
    assert wanted and set(wanted) <= set(pinned)


def test_the_extras_that_messages_name_exist():
    tomllib = pytest.importorskip("tomllib")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    files = [*(ROOT / "python").rglob("*.py"), *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    named = {name for file in files for name in re.findall(r"kvfuse\[(\w+)\]", file.read_text())}
    assert named and named <= set(extras)


def test_the_source_distribution_can_be_configured(tmp_path):
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", tmp_path, "sdist", "-d", tmp_path]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    unpacked = tmp_path / archive.name.removesuffix(".tar.gz")
    for folder in ("cmake", "csrc", "kernels", "python/kvfuse"):
        files = {x for x in (ROOT / folder).rglob("*") if x.is_file() and "__pycache__" not in x.parts}
        built = {x for x in files if x.suffix == ".so" or x.name == "torch_version.txt"}
        missing = [x for x in files - built if not (unpacked / x.relative_to(ROOT)).is_file()]
        assert not missing
    assert (unpacked / "scripts/compile_jobs").stat().st_mode & 0o100
    # The sources that CMake lists are all there; compiling them is the same as in a checkout.
    options = ["-DKVFUSE_CUDA=off", "-DKVFUSE_RUNNER=OFF", "-DKVFUSE_TESTS=OFF"]
    configure = ["cmake", "-G", "Ninja", "-S", unpacked, "-B", tmp_path / "build", *options]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    configured = subprocess.run(
        [*configure, f"-DPython_EXECUTABLE={sys.executable}"],
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
    )
    assert configured.returncode == 0, configured.stderr
