"""`bench_runner quantize` and the versions whose weights are codes."""

import json

import numpy
import pytest
import safetensors
import safetensors.numpy
import torch
from kvfuse.model import Gpt2, ModelConfig
from runner import problem
from small_gpt2 import our_sizes, random_tokens

FORMAT = "kvfuse_quantized_weights"


@pytest.fixture
def quantized(bench, small):
    """Writes the small model as codes, and returns the file."""

    def write(dtype="int8"):
        config = bench.configure("sizes.yaml", model_config=our_sizes(), T_values=[4])
        path = bench.folder / f"{dtype}.safetensors"
        result = bench.run("quantize", small[1], path, "--weight-dtype", dtype, "--config", config)
        assert result.returncode == 0, result.stderr
        assert f"{dtype}.safetensors: 0." in result.stdout
        return path

    return write


def score(bench, weights, versions, **keys):
    random_tokens(200).astype(numpy.uint16).tofile(bench.folder / "tokens.bin")
    config = bench.configure(
        model_config=our_sizes(),
        versions=versions,
        weights=str(weights),
        dataset="tokens.bin",
        T_values=[4],
        **keys,
    )
    return bench.measure("perplexity", "--config", config)


def test_the_file_holds_what_the_weights_are_rounded_to(small, quantized):
    model, _ = small
    with safetensors.safe_open(quantized(), "numpy") as file:
        assert file.metadata() == {FORMAT: "1", "weight_dtype": "int8", "gelu_tanh": "true"}
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, tensor in model.transformer.state_dict().items():
        want = tensor.numpy()
        if name + "_scale" not in stored:
            assert numpy.array_equal(stored.pop(name), want), name
            continue
        codes, scale = stored.pop(name), stored.pop(name + "_scale")
        want = want if name == "wte.weight" else want.T
        assert codes.dtype == numpy.int8 and scale.shape == want.shape[:1]
        error = numpy.abs(codes * scale[:, None].astype(numpy.float64) - want)
        assert (error <= 0.50001 * scale[:, None]).all(), name
    assert not stored


@pytest.mark.parametrize("dtype, versions", [("int8", ["v1w8", "v2w8", "v4w8"]), ("int4", ["v2w4"])])
def test_from_the_file_and_from_floats_is_the_same(bench, small, quantized, dtype, versions):
    for keys in ({}, {"autoregressive": True}):
        from_floats = score(bench, small[1], versions, **keys)
        from_file = score(bench, quantized(dtype), versions, **keys)
        for one, other in zip(from_floats, from_file, strict=True):
            assert one["weight_dtype"] == dtype
            assert one["perplexity"] == other["perplexity"]


def test_eight_bits_cost_little_and_four_bits_more(bench, small):
    by_version = {r["version"]: r["perplexity"] for r in score(bench, small[1], ["v1", "v1w8", "v2w4"])}
    assert 0 < abs(by_version["v1w8"] / by_version["v1"] - 1) < 0.01
    assert 0 < abs(by_version["v2w4"] / by_version["v1"] - 1) < 0.5
    # Perplexity of random tokens goes up or down by chance; logits only move away.
    config, tokens = ModelConfig(**our_sizes()), torch.tensor(random_tokens(30))[None]
    v1, v1w8, v2w4 = (
        Gpt2(config, version, weights=small[1]).forward(tokens) for version in ("v1", "v1w8", "v2w4")
    )
    assert 0 < 2 * (v1w8 - v1).norm() < (v2w4 - v1).norm()


def test_floats_that_no_version_runs_are_not_held(bench, small):
    def baseline(version):
        config = bench.configure(
            model_config=our_sizes(), versions=[version], weights=str(small[1]), T_values=[4]
        )
        bench.measure("vram", "--config", config, "--clear-log")
        (record,) = bench.records()
        (row,) = json.loads(bench.run("vram", "--config", config, "--dry-run", "-o", "json").stdout)
        return record["baseline_memory_bytes"], float(row["weights MB"])

    floats, floats_planned = baseline("v2")
    codes, codes_planned = baseline("v2w8")
    assert codes < 0.45 * floats  # biases and positions stay
    assert codes_planned < floats_planned  # to 0.1 MB; exactly: quantized_weights_test.cpp


def test_versions_that_need_floats_refuse_codes(bench, quantized):
    path = quantized()
    config = bench.configure(model_config=our_sizes(), versions=["v1"], weights=str(path), T_values=[4])
    result = bench.run("latency", "--config", config)
    expected = "version v1: expected weights in floating point, got weights that are int8 already"
    assert problem(result, 3) == f"{path}: {expected}"
    config = bench.configure(model_config=our_sizes(), versions=["v2w4"], weights=str(path), T_values=[4])
    result = bench.run("latency", "--config", config)
    expected = "version v2w4: expected weights in floating point or int4, got weights that are int8 already"
    assert problem(result, 3) == f"{path}: {expected}"


@pytest.mark.parametrize(
    "damage, complaint",
    [
        (lambda t, m: m.update({FORMAT: "2"}), "metadata kvfuse_quantized_weights: expected 1, got '2'"),
        (
            lambda t, m: m.update(weight_dtype="int3"),
            "metadata weight_dtype: expected int8 or int4, got 'int3'",
        ),
        (lambda t, m: m.pop("gelu_tanh"), "metadata gelu_tanh: expected true or false, got 'none'"),
        (lambda t, m: t.pop("wte.weight_scale"), "'wte.weight_scale' is missing"),
        (lambda t, m: t.update({"extra": numpy.zeros(1)}), "'extra' is not part of the model"),
        (
            lambda t, m: t.update({"wte.weight": t["wte.weight"].astype(numpy.float32)}),
            "'wte.weight' has dtype F32, expected I8",
        ),
        (
            lambda t, m: t["h.0.mlp.c_fc.weight"].__setitem__((0, 0), -128),
            "tensor 'h.0.mlp.c_fc.weight': expected codes of -127 to 127, got -128",
        ),
        (
            lambda t, m: t["h.1.mlp.c_fc.weight_scale"].__setitem__(0, numpy.nan),
            "tensor 'h.1.mlp.c_fc.weight_scale': 1 of 128 values are NaN or infinite",
        ),
    ],
)
def test_damaged_files(bench, quantized, damage, complaint):
    path = quantized()
    with safetensors.safe_open(path, "numpy") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name).copy() for name in file.keys()}  # noqa: SIM118
    damage(tensors, metadata)
    safetensors.numpy.save_file(tensors, path, metadata=metadata)
    config = bench.configure(
        model_config=our_sizes(), versions=["v2w8"], weights=str(path), T_values=[4], strict_weights=True
    )
    assert complaint in problem(bench.run("latency", "--config", config), 3)


def test_quantize_says_what_is_wrong(bench, small, quantized):
    config = bench.configure("sizes.yaml", model_config=our_sizes(), T_values=[4])

    def refused(*words, code=2):
        return problem(bench.run("quantize", *words), code)

    assert "expected two files, IN and OUT, got 1" in refused(small[1])
    assert '--weight-dtype: expected int8 or int4, got "int5"' in refused("a", "b", "--weight-dtype", "int5")
    assert "expected --preset or --config, got both" in refused("a", "b", "--preset", "gpt2", "--config", "c")
    assert 'unknown model "gpt9"' in refused("a", "b", "--preset", "gpt9")
    assert "absent.safetensors" in refused("absent.safetensors", "out", "--config", config, code=3)
    assert "expected GPT-2 with n_layer 12" in refused(small[1], "out", code=3)
    written = quantized()
    assert "the same one twice" in refused(written, written, "--config", config)
    assert "expected weights in floating point, got int8" in refused(
        written, "out", "--config", config, code=3
    )
    assert "No such file" in refused(small[1], "no/such/out", "--config", config, code=4)
    assert not list(bench.folder.glob("**/*.partial"))


def test_help(bench):
    assert "bench_runner quantize model.safetensors" in bench.run("quantize", "--help").stdout
