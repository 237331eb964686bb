"""kvfuse.versions: the registry of C++, its getters, and models made by a version's name."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY
from kvfuse import versions
from kvfuse.model import ModelConfig

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 64, "vocab_size": 50}
GETTERS = [
    versions.get_use_cache,
    versions.get_kv_cache_quant,
    versions.get_cross_layer_sharing,
    versions.get_q_alignment,
]


def test_versions_are_rows_of_independent_choices():
    rows = versions.VERSIONS
    assert list(rows)[:7] == ["v0", "v1", "v2", "v3", "v4", "v3a", "v4a"]
    for name, row in rows.items():
        assert row["name"] == name and row["description"] and row["kv_cache_dtype"] in ("model", "int8")
        assert row["kv_cache_quant"] is (row["kv_cache_dtype"] != "model")
        assert row["cross_layer_sharing"] is (row["sharing_group"] > 1)
        assert row["q_alignment"] is (row["q_alignment_method"] != "none")


def test_getters():
    assert {name: [get(name) for get in GETTERS] for name in list(versions.VERSIONS)[:7]} == {
        "v0": [False, False, False, False],
        "v1": [True, False, False, False],
        "v2": [True, True, False, False],
        "v3": [True, False, True, False],
        "v4": [True, True, True, False],
        "v3a": [True, False, True, True],
        "v4a": [True, True, True, True],
    }


@pytest.mark.parametrize(
    "call",
    [
        *GETTERS,
        versions.get_version_config,
        lambda name: versions.load_model_for_version(name, ModelConfig(**SIZES)),
        lambda name: versions.create_model(name, ModelConfig(**SIZES)),
    ],
)
def test_an_unknown_name_lists_the_known_ones(call):
    with pytest.raises(ValueError, match=r'^unknown version "v7" \(known: v0, v1, v2, v3, v4, v3a, v4a, '):
        call("v7")


def test_a_definition_is_a_copy():
    versions.get_version_config("v2")["use_cache"] = "changed"
    assert versions.get_use_cache("v2") is True


@pytest.mark.parametrize("version", ["v0", "v2", "v4a"])
def test_load_model_for_version(version):
    config = ModelConfig(**SIZES)
    model, v_config = versions.load_model_for_version(version, config, "bfloat16")
    assert v_config == versions.VERSIONS[version] and model.version == version
    assert (model.dtype, model.config) == (torch.bfloat16, config) and model.eval() is model
    assert model.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert (model.make_cache(1) is None) is not v_config["use_cache"]


def test_model_config_is_that_of_the_runners_records(bench):
    config = bench.configure(model_config=SIZES, versions=["v1", "v4"], T_values=[4], num_measure_runs=1)
    for record in bench.measure("latency", "--config", config):
        model = versions.create_model(record["version"], ModelConfig(**SIZES), device="cpu")
        assert versions.get_model_config_dict(model) == record["model_config"]


def test_listings_agree(built, tmp_path):
    """``python -m kvfuse.versions`` and ``python benchmark/versions.py`` from anywhere, and the runner."""

    def listed(*command):
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "python")}
        result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert result.returncode == 0 and result.stderr == ""
        return [line.split(maxsplit=5) for line in result.stdout.splitlines() if not line.startswith("---")]

    module = listed(sys.executable, "-m", "kvfuse.versions")
    assert len(module) == 1 + len(versions.VERSIONS)
    assert listed(sys.executable, REPOSITORY / "benchmark/versions.py") == module
    assert listed(built("bench_runner"), "--list-versions")[1:] == module[1:]
