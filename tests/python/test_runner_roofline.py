"""The benchmark roofline: counted work beside measured time, against counts done here by hand."""

import json
import re
import signal
import statistics

import pytest
from runner import problem, wait_for

MODEL = {"n_layer": 3, "n_head": 2, "n_embd": 128, "block_size": 96, "vocab_size": 50}
P = 40
STAGES = ["v0_prefill", "v0_decode", "v1_prefill", "v1_decode", "v2_decode", "v3_prefill", "v4_decode"]
CACHE_ROW = {"v1": 4 * 64, "v2": 64 + 4, "v3": 4 * 64, "v4": 64 + 4}  # bytes of a head's K or V
COUNTERS = {"total_flops", "dram_bytes", "time_ns", "kernel_count"}
# Layers 0 and 2 of three own their K and V if groups are of two.
OWNERS = {"v0": 3, "v1": 3, "v2": 3, "v3": 2, "v4": 2}


@pytest.fixture
def configure(bench):
    def write(**changes):
        settings = {"model_config": MODEL, "profile_P": P, "profile_stages": STAGES, "batch_size": 2}
        return bench.configure(**(settings | changes))

    return write


def span(stage: str) -> tuple[int, int]:
    """Tokens before the pass, and tokens in it."""
    if stage == "v0_decode":
        return 0, P + 1
    return (P, 1) if stage.endswith("decode") else (0, P)


def counted(stage: str, batch: int) -> tuple[int, int]:
    """FLOPs and bytes of a pass."""
    version, (past, tokens), n = stage[:2], span(stage), MODEL["n_embd"]
    owners, layers = OWNERS[version], MODEL["n_layer"]
    qkv = owners * 3 * n * n + (layers - owners) * n * n
    linear = tokens * (qkv + layers * (n * n + 8 * n * n))
    pairs = sum(position + 1 for position in range(past, past + tokens))
    products = linear + layers * 2 * n * pairs + n * MODEL["vocab_size"]
    biases = owners * 3 * n + (layers - owners) * n + layers * (n + 4 * n + n)
    norms = layers * 4 * n + 2 * n
    weights = qkv + layers * 9 * n * n + biases + norms + MODEL["vocab_size"] * n
    cache = (past + tokens) * owners * 2 * MODEL["n_head"] * CACHE_ROW.get(version, 0)
    return batch * 2 * products, 4 * weights + batch * cache


def check_rates(record):
    flops, num_bytes = record["model_flops"], record["model_bytes"]
    assert record["arithmetic_intensity"] == pytest.approx(flops / num_bytes)
    samples = record["time_total_ms_samples"]
    assert len(samples) == 2 and min(samples) > 0
    assert record["time_total_ms_median"] == pytest.approx(statistics.median(samples))
    seconds = record["time_total_ms_median"] / 1e3
    assert record["achieved_flops_per_s"] == pytest.approx(flops / seconds)
    assert record["achieved_bytes_per_s"] == pytest.approx(num_bytes / seconds)
    peak, bandwidth = record["matmul_flops_per_s"], record["read_bandwidth_bytes_per_s"]
    assert peak > 1e8 and bandwidth > 1e8
    assert record["matmul_fraction"] == pytest.approx(flops / seconds / peak)
    assert record["bandwidth_fraction"] == pytest.approx(num_bytes / seconds / bandwidth)
    ridge = peak / bandwidth
    assert record["ridge_intensity"] == pytest.approx(ridge)
    roof = min(peak, flops / num_bytes * bandwidth)
    assert record["roof_flops_per_s"] == pytest.approx(roof)
    assert record["limit_fraction"] == pytest.approx(flops / seconds / roof)
    assert record["shortest_ms"] == pytest.approx(record["limit_fraction"] * seconds * 1e3)
    assert record["bound"] == ("memory" if flops / num_bytes < ridge else "compute")


def test_records(bench, configure):
    records = bench.measure("roofline", "--config", configure())
    assert [record["stage"] for record in records] == STAGES
    for record in records:
        stage = record["stage"]
        assert (record["status"], record["benchmark_name"], record["version"]) == (
            "ok",
            "roofline",
            stage[:2],
        )
        assert (record["P"], record["prompt_length"], record["batch_size"]) == (P, P, 2)
        assert record["pass_tokens"] == span(stage)[1]
        assert record["kv_len"] == (0 if stage.startswith("v0") else sum(span(stage)))
        assert record["full_recompute"] is (stage == "v0_decode")
        assert (record["model_flops"], record["model_bytes"]) == counted(stage, batch=2)
        assert record["hardware_counters"] == dict.fromkeys(COUNTERS), "null, not zero"
        check_rates(record)
    assert len({(r["matmul_flops_per_s"], r["read_bandwidth_bytes_per_s"]) for r in records}) == 1
    by_stage = {record["stage"]: record for record in records}
    assert by_stage["v1_prefill"]["model_flops"] == by_stage["v0_prefill"]["model_flops"]
    prefill, decode = by_stage["v1_prefill"], by_stage["v1_decode"]
    assert decode["arithmetic_intensity"] < prefill["arithmetic_intensity"]
    assert decode["model_flops"] < prefill["model_flops"] / 30


def test_summary(bench, configure):
    result = bench.run("roofline", "--config", configure(), "-o", "json")
    assert result.returncode == 0, result.stderr
    rows = {row["stage"]: row for row in json.loads(result.stdout)}
    assert list(rows) == STAGES
    assert rows["v0_decode"]["note"] == f"no cache: recomputes {P + 1} tokens"
    assert all(not row["note"] for stage, row in rows.items() if stage != "v0_decode")
    assert {row["bound"] for row in rows.values()} <= {"memory", "compute"}
    for stage in STAGES:
        line = rf"^recorded roofline {stage}: [\d.]+ ms, (memory|compute)-bound, [\d.]+ of its roof$"
        assert re.search(line, result.stderr, re.MULTILINE), stage


def test_defaults_and_the_words_for_stages(bench, configure):
    three = configure(profile_stages=None, profile_P=None)
    records = bench.measure("roofline", "--config", three)
    assert [record["stage"] for record in records] == ["v0_prefill", "v1_prefill", "v1_decode"]
    assert {record["P"] for record in records} == {95}, "as long as the model allows a decode stage"
    options = ("--stages", "v2", "v0_prefill", "--profile-P", "7")
    records = bench.measure("roofline", "--config", three, *options)
    assert [(r["stage"], r["P"]) for r in records] == [("v2_decode", 7), ("v0_prefill", 7)]
    (record,) = bench.measure("roofline", "--config", three, "--version", "v2")
    assert record["stage"] == "v2_decode", "a bare version is its decode stage"
    last = bench.measure("roofline", "--config", three, "--stages", "v1_prefill", "--profile-P", "96")
    assert [(r["stage"], r["pass_tokens"]) for r in last] == [("v1_prefill", 96)]


def test_resume(bench, configure):
    first = configure(profile_stages=["v1_prefill", "v1_decode"])
    assert len(bench.measure("roofline", "--config", first)) == 2
    result = bench.run("roofline", "--config", configure(), "--resume", "-o", "json")
    assert result.returncode == 0, result.stderr
    missing = [stage for stage in STAGES if stage not in ("v1_prefill", "v1_decode")]
    assert [record["stage"] for record in bench.records()[2:]] == missing
    assert [row["stage"] for row in json.loads(result.stdout) if row["ms"] is not None] == STAGES
    assert bench.measure("roofline", "--config", configure(), "--resume") == []
    for other in ({"profile_P": P - 1}, {"batch_size": 1}):
        again = configure(**({"profile_stages": ["v1_decode"]} | other))
        assert len(bench.measure("roofline", "--config", again, "--resume")) == 1, f"{other}: another point"


def test_interrupted(bench, configure):
    slow = configure(num_measure_runs=10000, profile_stages=["v0_prefill", "v1_decode"])
    process = bench.start("roofline", "--config", slow)
    wait_for(process, "%  ")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert [(r["stage"], r["status"]) for r in bench.records()] == [
        ("v0_prefill", "interrupted"),
        ("v1_decode", "interrupted"),
    ]


def test_out_of_memory_is_a_record_of_the_stage(bench, configure):
    """The weights fit, the cache of v1 does not."""
    wide = {"n_layer": 2, "n_head": 4, "n_embd": 256, "block_size": 512, "vocab_size": 32}
    weights = 4 * (wide["n_embd"] * (32 + 512) + 2 * (12 * 256**2 + 13 * 256) + 2 * 256)
    cache = 2 * 2 * 4 * 256 * 301 * 16
    budget = weights + cache
    stages = ["v1_decode", "v0_decode"]
    config = configure(
        model_config=wide, profile_P=300, profile_stages=stages, batch_size=16, memory_budget=budget
    )
    result = bench.run("roofline", "--config", config)
    assert result.returncode == 1, result.stderr
    record = bench.records()[0]
    assert (record["stage"], record["status"]) == ("v1_decode", "oom")
    assert record["reason"].startswith("memory_budget: expected at most ")
    assert "recorded roofline v1_decode: oom (memory_budget" in result.stderr


def test_dry_run(bench, configure):
    result = bench.run("roofline", "--config", configure(), "--dry-run", "-o", "json")
    assert result.returncode == 0, result.stderr
    plan = json.loads(result.stdout)
    assert [row["version"] for row in plan] == STAGES
    assert not bench.log.exists()


@pytest.mark.parametrize(
    ("arguments", "sentences"),
    [
        (["--stages", "v1_prefil"], ["--stages: expected one of v0, v1,", "v4a_decode", 'v1_prefill"?)']),
        (["--stages", "v1", "v1_decode"], ["--stages: expected each value once"]),
        (
            ["--stages", "v1", "--profile-P", "96"],
            ["--profile-P: expected P + 1", "block_size (96 of custom)"],
        ),
        (["--profile-P", "0"], ["--profile-P: expected integer in [1, "]),
    ],
)
def test_mistakes(bench, configure, arguments, sentences):
    line = problem(bench.run("roofline", "--config", configure(), *arguments), 2)
    for sentence in sentences:
        assert sentence in line
    assert not bench.log.exists()


def test_compare_tells_stages_apart(bench, configure):
    bench.measure("roofline", "--config", configure())
    result = bench.run("compare", bench.log, bench.log, "-o", "json")
    assert result.returncode == 0, result.stderr
    assert {row["version"] for row in json.loads(result.stdout)} == set(STAGES)
