"""Every configuration that is shipped can be run: its plan is made without an error."""

import json

import pytest
from conftest import REPOSITORY

CONFIGS = sorted((REPOSITORY / "configs").glob("*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_plan(bench, config):
    result = bench.run("latency", "vram", "phase", "--config", config, "--dry-run", "-o", "json")
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)
    assert {row["benchmark"] for row in rows} == {"latency_vs_T", "vram_vs_T", "per_phase_breakdown"}
    assert all(float(row["total MB"]) > 0 for row in rows)
