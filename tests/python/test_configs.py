"""Every configuration that is shipped can be planned as it is, and run with a small model in its place."""

import json

import pytest
import yaml
from conftest import REPOSITORY

CONFIGS = sorted((REPOSITORY / "configs").glob("*.yaml"))
SMALL = {"n_layer": 3, "n_head": 1, "n_embd": 32, "block_size": 1024, "vocab_size": 64}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_plan(bench, config):
    result = bench.run("latency", "vram", "phase", "--config", config, "--dry-run", "-o", "json")
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)
    assert {row["benchmark"] for row in rows} == {"latency_vs_T", "vram_vs_T", "per_phase_breakdown"}
    assert all(float(row["total MB"]) > 0 for row in rows)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_run_with_a_small_model(bench, config):
    """All but the model, its dtype and the number of runs is as shipped."""
    keys = yaml.safe_load(config.read_text())
    keys.pop("pretrained", None)
    small = {"model_config": SMALL, "dtype": "float32", "num_warmup_runs": 0, "num_measure_runs": 1}
    (bench.folder / "small.yaml").write_text(json.dumps(keys | small | {"log_file": bench.log.name}))
    records = bench.measure("latency", "vram", "phase", "--config", "small.yaml", "--quiet")
    swept = {(r["benchmark_name"], r["version"], r["T"]) for r in records if "_vs_T" in r["benchmark_name"]}
    assert swept == {
        (benchmark, version, T)
        for benchmark in ("latency_vs_T", "vram_vs_T")
        for version in keys["versions"]
        for T in keys["T_values"]
    }
    phases = [record for record in records if record["benchmark_name"] == "per_phase_breakdown"]
    assert [record["version"] for record in phases] == keys["versions"]
    assert {record["batch_size"] for record in records} == {keys.get("batch_size", 1)}
    assert {record["prompt_length"] for record in records} == {keys.get("prompt_length", 32)}
