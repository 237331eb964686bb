"""A version is one row of the registry: a runner built with one more measures it in every benchmark."""

import json

import numpy
import pytest
from runner import Runner, statuses

BENCHMARKS = {
    "latency_vs_T",
    "vram_vs_T",
    "per_phase_breakdown",
    "max_batch_capacity",
    "perplexity",
    "roofline",
}


@pytest.fixture
def runner(built, tmp_path) -> Runner:
    return Runner(built("tests/added_version_runner"), tmp_path)


def test_it_is_listed(runner):
    rows = json.loads(runner.run("--list-versions", "-o", "json").stdout)
    (mine,) = [row for row in rows if row["version"] == "mine"]
    assert (mine["kv_cache_dtype"], mine["sharing_group"]) == ("int8", 3)


def test_it_is_measured_everywhere(runner):
    (numpy.arange(40, dtype="<u2") % 32).tofile(runner.folder / "tokens.bin")
    config = runner.configure(
        versions=["v1", "mine"],
        T_values=[4],
        T_star=4,
        dataset="tokens.bin",
        memory_budget="32 MB",
        profile_P=8,
        profile_stages=["mine_prefill", "mine_decode"],
        autoregressive=True,
    )
    records = runner.measure("all", "--config", config)
    assert {row[0] for row in statuses(records)} == BENCHMARKS
    mine = [record for record in records if record["version"] == "mine"]
    assert {record["benchmark_name"] for record in mine} == BENCHMARKS
    assert {record["status"] for record in mine} == {"ok"}
