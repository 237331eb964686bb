"""bench_runner phase and capacity: what their records say, and what is refused."""

import pytest
from runner import problem

PHASES = ("embedding", "attention", "mlp", "head", "other")
VERSIONS = ["v0", "v1", "v2", "v3", "v4", "v3a", "v4a"]


def test_phases_add_up(bench):
    config = bench.configure(versions=["v0", "v1", "v4"], T_star=8)
    records = bench.measure("phase", "--config", config)
    assert [(r["benchmark_name"], r["version"], r["T"]) for r in records] == [
        ("per_phase_breakdown", version, 8) for version in ("v0", "v1", "v4")
    ]
    for record in records:
        phases = record["time_phase_ms"]
        assert tuple(phases) == (*PHASES, "total")
        assert all(phases[name] > 0 for name in PHASES)
        assert sum(phases[name] for name in PHASES) == pytest.approx(phases["total"], rel=1e-6)
        assert len(record["time_phase_total_ms_samples"]) == len(record["time_total_ms_samples"]) == 2
        assert record["time_total_ms_median"] > 0  # of the runs without instruments


def test_capacity_is_found_and_predicted(bench):
    """More than 20 times out of memory in one process, and nothing is left behind."""
    model = {"n_layer": 4, "n_head": 2, "n_embd": 128, "block_size": 256, "vocab_size": 64}
    config = bench.configure(
        model_config=model, versions=VERSIONS, prompt_length=4, T_star=200, memory_budget="24 MB"
    )
    records = {r["version"]: r for r in bench.measure("capacity", "--config", config)}
    assert list(records) == VERSIONS
    assert sum(r["num_out_of_memory"] for r in records.values()) > 20
    for record in records.values():
        assert record["max_batch"] == pytest.approx(record["predicted_max_batch"], rel=0.03, abs=1)
        assert record["peak_memory_bytes"] <= record["memory_limit_bytes"] == 24_000_000
        assert record["memory_after_search_bytes"] == pytest.approx(record["baseline_memory_bytes"], rel=0.01)
        assert record["users_per_gb"] == pytest.approx(record["max_batch"] / 0.024)
    # Bytes of a row: 64 floats, or 64 codes and a scale; shared by two layers half of that.
    cache = {version: record["cache_bytes_per_sequence"] for version, record in records.items()}
    assert cache["v1"] == 203 * 4 * 2 * 2 * 64 * 4
    assert cache["v1"] / cache["v4"] == pytest.approx(2 * 4 * 64 / (64 + 4))
    assert records["v1"]["max_batch"] < records["v3"]["max_batch"] < records["v4"]["max_batch"]


def test_capacity_needs_a_budget(bench):
    config = bench.configure()
    assert "memory_budget" in problem(bench.run("capacity", "--config", config), 2)


def test_capacity_of_nobody(bench):
    config = bench.configure(versions=["v1"], T_star=400, memory_budget="80 KB")
    result = bench.run("capacity", "--config", config)
    assert result.returncode == 1
    (record,) = bench.records()
    assert (record["status"], record["reason"]) == ("oom", "not even one sequence fits")


def test_capacity_of_training(bench):
    """Memory left over the weights and AdamW's state is what sequences share."""
    config = bench.configure(
        versions=["v1", "v2", "v3"],
        model_config={"n_layer": 4, "n_head": 2, "n_embd": 128, "block_size": 64, "vocab_size": 64},
        prompt_length=4,
        T_star=60,
        memory_budget="48 MB",
        training=True,
    )
    first, second, shared = bench.measure("capacity", "--config", config)
    assert first["training"] and first["case"]["training"]
    assert first["max_batch"] == second["max_batch"] > 1
    assert first["max_batch"] < shared["max_batch"]  # fewer projections
    assert first["predicted_max_batch"] is None
    assert first["baseline_memory_bytes"] * 4 < first["peak_memory_bytes"] <= first["memory_limit_bytes"]
    assert first["memory_after_search_bytes"] == pytest.approx(first["baseline_memory_bytes"], rel=0.01)
    assert first["num_out_of_memory"] > 0
    (bench.folder / "none.yaml").write_text(config.read_text().replace("48 MB", "4 MB"))
    assert bench.run("capacity", "--config", "none.yaml", "--clear-log").returncode == 1
    assert {record["status"] for record in bench.records()} == {"oom"}
