"""The examples that need only the package; those of nanoGPT and transformers run beside their tests."""

import os
import re
import subprocess
import sys

from conftest import REPOSITORY


def test_raw_operators(tmp_path):
    result = subprocess.run(
        [sys.executable, REPOSITORY / "examples" / "raw_operators.py"],
        capture_output=True, text=True, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY / "python")},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    rows = re.findall(r"(\w+): (\d+) bytes, largest difference (\S+) of", result.stdout)
    (model, int8) = [(int(held), float(difference)) for _, held, difference in rows]
    assert model[0] == 2 * 2 * 2 * 50 * 64 * 4 and int8[0] == 2 * 2 * 2 * 50 * (64 + 4)
    assert model[1] < 1e-5 < int8[1] < 2e-2
