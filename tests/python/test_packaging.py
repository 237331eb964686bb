"""Facts that packaging files have to repeat agree with the file that owns them."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_build_requirements_are_the_pinned_ones():
    tomllib = pytest.importorskip("tomllib")
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    pinned = (ROOT / "requirements.txt").read_text().splitlines()
    assert wanted and set(wanted) <= set(pinned)
