"""scripts/bootstrap does nothing twice and says what to do if something is missing. No network, no build."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def program(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


@pytest.fixture
def checkout(tmp_path):
    """A checkout whose .venv, dpkg-query, sudo and apt-get are fakes: all is installed, pip writes a log."""
    place = tmp_path / "checkout"
    (place / "scripts").mkdir(parents=True)
    for name in ("scripts/bootstrap", "apt-packages.txt"):
        shutil.copy2(ROOT / name, place / name)
    (place / "requirements.txt").write_text("torch\n")
    program(place / ".venv/bin/python", '[ "$1" = -c ] || echo "$@" >> pip.log')
    program(place / "bin/dpkg-query", 'shift 3; for name in "$@"; do echo "ii $name"; done')
    program(place / "bin/apt-get", 'echo "$@" >> apt.log')
    program(place / "bin/sudo", '[ "$2" = true ] || { shift; exec "$@"; }')
    return place


def bootstrap(place: Path, *arguments: str) -> subprocess.CompletedProcess:
    env = os.environ | {"PATH": f"{place / 'bin'}:{os.environ['PATH']}"}
    command = [place / "scripts/bootstrap", *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


def test_requirements_are_installed_when_they_change(checkout):
    for requirements in ("torch\n", "torch\n", "torch\nnumpy\n"):
        (checkout / "requirements.txt").write_text(requirements)
        result = bootstrap(checkout, "--no-build")
        assert result.returncode == 0, result.stderr
    assert result.stderr == "bootstrap: installing requirements.txt\n"
    assert (checkout / "pip.log").read_text().count("install") == 2
    assert not (checkout / "apt.log").exists()


def test_missing_packages_are_installed(checkout):
    program(checkout / "bin/dpkg-query", 'shift 3; for name in "$@"; do echo "ii $name"; done | grep -v fmt')
    assert bootstrap(checkout, "--no-build").returncode == 0
    assert (checkout / "apt.log").read_text().splitlines()[-1].endswith("--no-install-recommends libfmt-dev")


def test_failing_apt(checkout):
    program(checkout / "bin/dpkg-query", "exit 1")
    program(checkout / "bin/apt-get", "exit 100")
    result = bootstrap(checkout, "--no-build")
    assert result.returncode == 1
    assert "apt-get could not install them" in result.stderr
    command = result.stderr.splitlines()[-1].strip()
    assert "apt-get install -y --no-install-recommends g++" in command and "clang-format" in command
    assert "libomp-dev" not in command  # the preset fuzz only


@pytest.mark.skipif(os.geteuid() == 0, reason="root needs no sudo")
def test_sudo_with_password(checkout):
    program(checkout / "bin/dpkg-query", "exit 1")
    program(checkout / "bin/sudo", "exit 1")
    result = bootstrap(checkout, "--no-build")
    assert result.returncode == 1
    assert "sudo needs a password" in result.stderr and "\n  sudo apt-get install -y" in result.stderr


def test_failing_pip_is_tried_again(checkout):
    program(checkout / ".venv/bin/python", '[ "$1" = -c ]')
    for _ in range(2):
        result = bootstrap(checkout, "--no-build")
        assert result.returncode == 1
        assert "pip could not install requirements.txt (is pypi.org reachable?" in result.stderr


@pytest.mark.parametrize("arguments", [["--bogus"], ["--preset"], ["--target"]])
def test_usage(checkout, arguments):
    result = bootstrap(checkout, *arguments)
    assert result.returncode == 2
    assert f"{arguments[0]}" in result.stderr and result.stderr.count("\n") == 1
