"""kvfuse.records: results files as Python reads them."""

import json

import pytest
from kvfuse.records import load_records, speedup


def latency(version, T, *samples, batch=1):
    case = {"version": version, "T": T, "batch_size": batch}
    return {
        "benchmark_name": "latency_vs_T",
        "version": version,
        "T": T,
        "case": case,
        "time_total_ms_samples": list(samples),
    }


@pytest.fixture
def write(tmp_path):
    def write(*records, end="\n"):
        path = tmp_path / "results.jsonl"
        path.write_text("\n".join(json.dumps(record) for record in records) + end)
        return path

    return write


def test_what_the_runner_writes(bench):
    bench.measure("latency", "vram", "--config", bench.configure(versions=["v0", "v1"]))
    every = load_records(bench.log)
    assert [record["benchmark_name"] for record in every] == ["latency_vs_T"] * 4 + ["vram_vs_T"] * 4
    records = load_records(bench.log, benchmark="latency_vs_T")
    ratios = speedup(records, "v0", "v1")
    assert set(ratios) == {4, 8}
    medians = {(r["version"], r["T"]): r["time_total_ms_median"] for r in records}
    for T, ratio in ratios.items():
        assert ratio == pytest.approx(medians["v0", T] / medians["v1", T], rel=1e-12)


def test_one_record_of_a_case_counts(write):
    path = write(latency("v1", 4, 3.0), latency("v2", 4, 1.0), latency("v1", 4, 5.0))
    times = {
        dedup: [record["time_total_ms_samples"][0] for record in load_records(path, dedup=dedup)]
        for dedup in ("first", "last", None)
    }
    assert times == {"first": [3.0, 1.0], "last": [5.0, 1.0], None: [3.0, 1.0, 5.0]}
    assert len(load_records(write({"a": 1}, {"a": 1}))) == 2  # without a case nothing says that they are one
    with pytest.raises(ValueError, match="expected a dedup of first or last or None, got 'best'"):
        load_records(path, dedup="best")


def test_speedup_joins_on_T(write):
    records = [
        latency("v1", 8, 9.0, 1.0, 2.0),
        latency("v1", 4, 3.0),
        latency("v2", 8, 4.0),
        latency("v2", 16, 1.0),
    ]
    assert speedup(records, "v1", "v2") == {8: 0.5}
    failed = latency("v2", 4)
    assert speedup([*records, failed], "v1", "v2") == {8: 0.5}
    with pytest.raises(ValueError, match="one record of v1 at T 8, got two"):
        speedup([*records, latency("v1", 8, 1.0, batch=2)], "v1", "v2")


def test_damaged_files(write):
    good = latency("v1", 4, 1.0)
    assert load_records(write(good, end='\n{"cut')) == [good]
    path = write(good, end='\n{"cut\n')
    with pytest.raises(ValueError, match=r"results.jsonl:2: expected a JSON object"):
        load_records(path)
    with pytest.raises(ValueError, match=r"results.jsonl:2: expected a JSON object, got list"):
        load_records(write(good, []))
    with pytest.raises(FileNotFoundError):
        load_records(path.with_name("none"))
