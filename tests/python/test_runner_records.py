"""What bench_runner writes: the fields of a record, memory limits, --resume, and damaged model files."""

import json
import re
import statistics

import numpy
import pytest
import torch
from runner import TINY_MODEL, problem, statuses
from safetensors.torch import save_file

# FEATURES B-72 to B-75, and what ARCHITECTURE adds.
METADATA = {
    "implementation_name", "gpu_name", "gpu_total_vram", "python_version", "pytorch_version", "cuda_version",
    "dtype", "model_config", "pretrained", "prompt_length", "batch_size", "seed",
}  # fmt: skip
VERSION = {
    "version", "version_description", "use_cache", "kv_cache_quant", "cross_layer_sharing", "q_alignment",
}  # fmt: skip
OURS = {"schema_version", "run_id", "time", "benchmark_name", "status", "case", "context"}
LATENCY = {f"time_total_ms_{name}" for name in ("samples", "median", "mean", "min", "p95", "std", "ci95")}
LATENCY |= {
    "T", "time_per_token_ms_median", "model_bytes", "read_bandwidth_bytes_per_s", "limit_fraction", "quality",
}  # fmt: skip
VRAM = {
    "T", "peak_memory_bytes", "baseline_memory_bytes", "peak_activation_bytes", "kv_cache_bytes",
}  # fmt: skip
MODEL_CONFIG = {*TINY_MODEL, "kv_cache_quant", "cross_layer_sharing"}

WIDE = {"n_layer": 2, "n_head": 4, "n_embd": 256, "block_size": 512, "vocab_size": 32}  # head_dim 64


def cache_bytes(model, version, tokens, batch=1) -> int:
    """K and V of every layer and head: floats, or codes and a float32 scale a row."""
    head_dim = model["n_embd"] // model["n_head"]
    row = {"v0": 0, "v1": 4 * head_dim, "v2": head_dim + 4}[version]
    return 2 * model["n_layer"] * model["n_head"] * batch * tokens * row


def weight_bytes(model) -> int:
    n = model["n_embd"]
    layer = (3 + 1 + 4 + 4) * n * n + (3 + 1 + 4 + 1) * n + 4 * n
    return 4 * ((model["vocab_size"] + model["block_size"]) * n + model["n_layer"] * layer + 2 * n)


def test_latency_record(bench):
    config = bench.configure(num_warmup_runs=1, num_measure_runs=5, T_values=[32], batch_size=2, seed=7)
    for record in bench.measure("latency", "--config", config):
        assert record.keys() >= METADATA | VERSION | OURS | LATENCY
        assert record["model_config"].keys() >= MODEL_CONFIG
        assert record["model_config"].items() >= TINY_MODEL.items()
        assert (record["schema_version"], record["status"], record["benchmark_name"]) == (
            1,
            "ok",
            "latency_vs_T",
        )
        assert (record["T"], record["batch_size"], record["prompt_length"], record["seed"]) == (32, 2, 4, 7)
        assert (record["dtype"], record["pretrained"], record["gpu_name"]) == ("float32", None, None)
        assert record["pytorch_version"] == torch.__version__
        assert record["context"].keys() >= {"cpu", "cores", "isa", "num_threads", "load_average"}

        samples = record["time_total_ms_samples"]
        assert len(samples) == 5 and min(samples) > 0
        expected = {"median": statistics.median, "mean": statistics.mean, "min": min, "std": statistics.stdev}
        for name, function in expected.items():
            assert record[f"time_total_ms_{name}"] == pytest.approx(function(samples))
        assert record["time_total_ms_p95"] == pytest.approx(numpy.percentile(samples, 95))
        assert record["time_per_token_ms_median"] == pytest.approx(statistics.median(samples) / 32)
        assert record["quality"] in ("ok", "noisy")
        check_limit(record)
    assert [r["use_cache"] for r in bench.records()] == [False, True, True]
    assert [r["kv_cache_quant"] for r in bench.records()] == [False, False, True]
    assert len({r["run_id"] for r in bench.records()}) == 1


def check_limit(record):
    """Weights (all but the positions) and the cache up to the token are read for each token."""
    positions = 4 * TINY_MODEL["block_size"] * TINY_MODEL["n_embd"]
    cached = [cache_bytes(TINY_MODEL, record["version"], 4 + i, batch=2) for i in range(32)]
    want = weight_bytes(TINY_MODEL) - positions + statistics.mean(cached)
    assert record["model_bytes"] == pytest.approx(want)
    times = record["time_total_ms_samples"]
    bandwidths = record["read_bandwidth_bytes_per_s_samples"]
    assert len(bandwidths) == len(times)
    assert len(times) % 2 == 1  # one sample has the median time, and its moment's bandwidth counts
    bandwidth = bandwidths[times.index(statistics.median(times))]
    assert record["read_bandwidth_bytes_per_s"] == bandwidth
    assert record["shortest_ms"] >= 0.999 * 32e3 * record["model_bytes"] / bandwidth
    assert record["limit_fraction"] == pytest.approx(record["shortest_ms"] / statistics.median(times))
    assert record["limit_fraction"] < 1


def test_vram_record_is_exact(bench):
    config = bench.configure(model_config=WIDE, T_values=[5, 100], prompt_length=12, batch_size=3)
    records = bench.measure("vram", "--config", config)
    assert len(records) == 6
    for record in records:
        assert record.keys() >= METADATA | VERSION | OURS | VRAM
        tokens = 12 + record["T"] - 1  # the last token is not run
        assert record["kv_cache_bytes"] == cache_bytes(WIDE, record["version"], tokens, batch=3)
        prompt = 3 * 12 * 8
        assert record["baseline_memory_bytes"] == weight_bytes(WIDE) + prompt
        activations = record["peak_memory_bytes"] - record["baseline_memory_bytes"]
        assert record["peak_activation_bytes"] == activations > record["kv_cache_bytes"]
    v1, v2 = (record["kv_cache_bytes"] for record in records[-2:])
    assert f"{v1 / v2:.2f}" == "3.76"


def test_memory_budget_lets_pass_what_fits(bench):
    """To the byte: v2 fits exactly, v1's cache does not, and the run goes on."""
    settings = {"model_config": WIDE, "T_values": [500], "versions": ["v1", "v2"], "batch_size": 4}
    _, v2 = bench.measure("vram", "--config", bench.configure(**settings))
    budget = v2["peak_memory_bytes"]
    assert budget < weight_bytes(WIDE) + cache_bytes(WIDE, "v1", 503, batch=4)
    bench.log.unlink()

    result = bench.run("vram", "latency", "--config", bench.configure(**settings, memory_budget=f"{budget}"))
    assert result.returncode == 1, result.stderr
    assert statuses(bench.records()) == [
        ("latency_vs_T", "v1", 500, "oom"),
        ("latency_vs_T", "v2", 500, "ok"),
        ("vram_vs_T", "v1", 500, "oom"),
        ("vram_vs_T", "v2", 500, "ok"),
    ]
    for record in bench.records():
        if record["status"] == "oom":
            assert record["reason"].startswith(f"memory_budget: expected at most {budget} bytes")
            assert f"recorded {record['benchmark_name']} v1 T=500: oom (memory_budget: " in result.stderr
        else:
            assert "reason" not in record
    assert bench.records()[-1]["peak_memory_bytes"] == budget
    bench.log.unlink()

    too_little = bench.configure(**settings, memory_budget=budget - 1)
    assert bench.run("vram", "--config", too_little).returncode == 1
    assert [status for *_, status in statuses(bench.records())] == ["oom", "oom"]


def test_memory_comes_back_after_twenty_failures(bench):
    lengths = [500 - i for i in range(20)]
    settings = {"model_config": WIDE, "versions": ["v1"], "prompt_length": 4}
    (small,) = bench.measure("vram", "--config", bench.configure(**settings, T_values=[200]))
    config = bench.configure(**settings, T_values=[*lengths, 200], memory_budget=small["peak_memory_bytes"])
    assert bench.run("vram", "--config", config).returncode == 1
    *failed, last = bench.records()[1:]
    assert [(r["T"], r["status"]) for r in failed] == [(T, "oom") for T in lengths]
    assert (last["status"], last["peak_memory_bytes"]) == ("ok", small["peak_memory_bytes"])


def test_budget_below_the_weights(bench):
    config = bench.configure(model_config=WIDE, memory_budget=weight_bytes(WIDE) - 1)
    line = problem(bench.run("--config", config), 4)
    assert line.startswith("the weights of custom do not fit: memory_budget: expected at most ")
    assert not bench.log.exists()


def test_resume_measures_only_what_is_missing(bench):
    first = bench.measure("vram", "--config", bench.configure(T_values=[4, 8], versions=["v1", "v2"]))
    again = bench.measure("vram", "--config", bench.configure(T_values=[4, 8, 9]), "--resume")
    assert [(r["version"], r["T"]) for r in again] == [("v0", 4), ("v0", 8), ("v0", 9), ("v1", 9), ("v2", 9)]
    assert len(first) == 4
    assert bench.measure("vram", "--config", bench.configure(T_values=[8, 9]), "--resume") == []
    for other in (
        {"batch_size": 2},
        {"prompt_length": 5},
        {"seed": 1},
        {"model_config": TINY_MODEL | {"n_head": 1, "n_layer": 2}},
    ):
        config = bench.configure(T_values=[9], versions=["v2"], **other)
        assert len(bench.measure("vram", "--config", config, "--resume")) == 1, f"{other} is another point"
    repeated = bench.measure("vram", "--config", bench.configure(T_values=[9], versions=["v2"]))
    assert len(repeated) == 1, "without --resume everything is measured"


def test_resume_measures_again_what_failed_or_was_interrupted(bench):
    config = bench.configure(T_values=[4])
    records = bench.measure("vram", "--config", config)
    for record, status in zip(records, ("failed", "interrupted", "oom"), strict=True):
        record["status"] = status
    bench.log.write_text("".join(json.dumps(record) + "\n" for record in records))
    again = bench.measure("vram", "--config", config, "--resume")
    assert statuses(again) == [("vram_vs_T", "v0", 4, "ok"), ("vram_vs_T", "v1", 4, "ok")]


def test_summary_of_a_resumed_run_shows_the_earlier_points(bench):
    bench.measure("vram", "--config", bench.configure(T_values=[4]))
    result = bench.run("vram", "--config", bench.configure(T_values=[4, 8]), "--resume", "-o", "json")
    assert [row["T"] for row in json.loads(result.stdout) if row["peak MB"] is not None] == [4, 4, 4, 8, 8, 8]


@pytest.mark.parametrize("options", [[], ["--clear-log"]])
@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "bad.safetensors: "),
        (b"\xff" * 9, "bad.safetensors: "),
        (b"\2\0\0\0\0\0\0\0{}", "'wte.weight' is missing"),
        (None, "bad.safetensors: cannot be opened: No such file or directory"),
    ],
)
def test_bad_weights_leave_the_results_alone(bench, content, sentence, options):
    before = '{"schema_version":1,"benchmark_name":"vram_vs_T"}\n'
    bench.log.write_text(before)
    if content is not None:
        (bench.folder / "bad.safetensors").write_bytes(content)
    result = bench.run("--config", bench.configure(weights="bad.safetensors"), *options)
    assert sentence in problem(result, 3)
    assert result.stdout == ""
    assert bench.log.read_text() == before


@pytest.mark.parametrize("token", [32, 65535])
def test_bad_dataset_is_found_before_anything_is_measured(bench, token):
    numpy.array([0, token], dtype="<u2").tofile(bench.folder / "tokens.bin")
    line = problem(bench.run("--config", bench.configure(dataset="tokens.bin")), 3)
    assert re.search(rf"token 1 of 2: expected an id below 32 .*, got {token}", line)
    assert not bench.log.exists() or bench.records() == []


def save_with_nan(folder):
    """A model of TINY_MODEL's size with one weight that is not a number."""
    n, vocab_size, positions = (TINY_MODEL[key] for key in ("n_embd", "vocab_size", "block_size"))
    shapes = {
        "attn.c_attn": (n, 3 * n),
        "attn.c_proj": (n, n),
        "mlp.c_fc": (n, 4 * n),
        "mlp.c_proj": (4 * n, n),
    }
    tensors = {"wte.weight": torch.randn(vocab_size, n), "wpe.weight": torch.randn(positions, n)}
    for name, shape in shapes.items():
        tensors |= {f"h.0.{name}.weight": torch.randn(shape), f"h.0.{name}.bias": torch.zeros(shape[1])}
    for name in ("h.0.ln_1", "h.0.ln_2", "ln_f"):
        tensors |= {f"{name}.weight": torch.ones(n), f"{name}.bias": torch.zeros(n)}
    tensors["ln_f.bias"][3] = float("nan")
    save_file(tensors, folder / "nan.safetensors")


def test_weights_that_are_not_numbers(bench):
    save_with_nan(bench.folder)
    numpy.array([1, 2, 3], dtype="<u2").tofile(bench.folder / "tokens.bin")
    config = bench.configure(weights="nan.safetensors", dataset="tokens.bin", T_values=[4], versions=["v1"])
    finding = "nan.safetensors: tensor 'ln_f.bias': 1 of 16 values are NaN or infinite as Float"
    assert finding in problem(bench.run("--config", config, "--strict-weights"), 3)
    for benchmark in ("latency", "vram", "perplexity"):
        result = bench.run(benchmark, "--config", config)
        assert f"warning: {finding}" in result.stderr.splitlines()
        assert result.returncode == 1, benchmark
        record = bench.records()[-1]
        assert record["status"] == "failed" and re.search("NaN|finite", record["reason"]), benchmark


def test_foreign_records_are_passed_over(bench):
    foreign = '{"benchmark_name":3,"status":7,"case":{}}\n{"benchmark_name":"vram_vs_T","case":null}\n{}\n'
    bench.log.write_text(foreign)
    result = bench.run("vram", "--config", bench.configure(T_values=[4]), "--resume")
    assert result.returncode == 0, result.stderr
    assert "3.20" in result.stdout
    assert bench.log.read_text().startswith(foreign)
    assert len(bench.records()) == 6
