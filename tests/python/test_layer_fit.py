"""Fitted cross-layer sharing on a model that was trained: what it is worth, and what a run says of it."""

import hashlib

import numpy
import pytest
import torch
import transformers
from conftest import REPOSITORY
from runner import problem, problems

TEXT = REPOSITORY.parent / "shared" / "data" / "tinyshakespeare" / "input.txt"
SIZES = {"n_layer": 4, "n_head": 2, "n_embd": 64, "n_positions": 64, "vocab_size": 128}  # a token is a byte
MODEL_CONFIG = {key.replace("n_positions", "block_size"): value for key, value in SIZES.items()}
STEPS = 400
VERSIONS = ["v1", "v3", "v3a", "v3f", "v4", "v4a", "v4f"]
FIT = {"calibration": "train.bin", "calibration_tokens": 4096}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a small GPT-2 trained on Shakespeare, what it was trained on, and what it was not."""
    if not TEXT.is_file():
        pytest.skip(f"no {TEXT}: fitted sharing on a trained model not tested")
    ids = numpy.frombuffer(TEXT.read_bytes(), dtype=numpy.uint8).astype(numpy.int64)
    cut = len(ids) * 9 // 10
    folder = tmp_path_factory.mktemp("trained")
    ids[:20_000].astype("<u2").tofile(folder / "train.bin")
    ids[cut : cut + 20_000].astype("<u2").tofile(folder / "test.bin")
    train(ids[:cut]).save_pretrained(folder / "model")
    return folder


def train(ids: numpy.ndarray) -> transformers.GPT2LMHeadModel:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the model is too small for more
    torch.manual_seed(0)
    drop = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = transformers.GPT2Config(**SIZES, **drop, bos_token_id=0, eos_token_id=0)
    model = transformers.GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters())
    window = SIZES["n_positions"]
    windows = torch.from_numpy(ids).unfold(0, window, 1)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1, (step + 1) / 50) * (1 - step / STEPS)
        batch = windows[torch.randint(len(windows), (16,))]
        model(batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    torch.set_num_threads(threads)
    return model


def configure(bench, trained, **changes):
    keys = {"model_config": MODEL_CONFIG, "T_values": [1], "autoregressive": True, "max_tokens": 2048}
    for key in ("weights", "dataset", "calibration"):
        name = (keys | changes).get(key, {"weights": "model", "dataset": "test.bin"}.get(key))
        if name is not None:
            changes[key] = str(trained / name)
    return bench.configure(**(keys | {"batch_size": 8} | changes))


def test_fitting_is_worth_more_than_copying(bench, trained):
    config = configure(bench, trained, versions=VERSIONS, **FIT)
    records = {record["version"]: record for record in bench.measure("perplexity", "--config", config)}
    perplexity = {version: record["perplexity"] for version, record in records.items()}
    assert perplexity["v1"] < 16, "the model was not trained"
    for shared in ("v3", "v4"):
        assert perplexity["v1"] <= perplexity[f"{shared}f"]
        # A good part of what sharing costs is won back: the order is no accident of these tokens.
        lost = perplexity[f"{shared}f"] - perplexity["v1"]
        for other in (shared, f"{shared}a"):
            assert lost < 0.75 * (perplexity[other] - perplexity["v1"])


def test_what_the_record_says_of_the_fit(bench, trained):
    config = configure(bench, trained, versions=["v3", "v3f", "v4f"], **FIT, max_tokens=128)
    plain, *fitted = bench.measure("perplexity", "--config", config)
    digest = hashlib.sha256((trained / "train.bin").read_bytes()).hexdigest()
    for record in fitted:
        assert (record["q_alignment"], record["q_alignment_method"]) == (True, "fit")
        assert record["calibration"] == str(trained / "train.bin")
        for place in (record, record["case"]):
            assert (place["calibration_sha256"], place["calibration_tokens"]) == (digest, 4096)
        assert [(fit["layer"], fit["owner"]) for fit in record["layer_fits"]] == [(1, 0), (3, 2)]
        for fit in record["layer_fits"]:
            assert 0 < fit["k_error"] < 0.9 and 0 < fit["v_error"] < 0.9
    assert fitted[0]["layer_fits"] == fitted[1]["layer_fits"]
    assert (plain["q_alignment"], plain["q_alignment_method"]) == (False, "none")
    assert not {"calibration", "layer_fits"} & plain.keys() and "calibration_tokens" not in plain["case"]


def test_other_tokens_are_another_measurement(bench, trained):
    """--resume takes a record for its own only if it was fitted on the same tokens."""
    for changes, measured in (
        (FIT, 2), (FIT, 0), (FIT | {"calibration_tokens": 2048}, 1), (FIT | {"calibration": "test.bin"}, 1)
    ):  # fmt: skip
        config = configure(bench, trained, versions=["v3", "v3f"], **changes, max_tokens=128)
        assert len(bench.measure("perplexity", "--config", config, "--resume")) == measured


def test_random_tokens_are_warned_of(bench, trained):
    config = configure(bench, trained, versions=["v3f"], max_tokens=128)
    result = bench.run("perplexity", "--config", config)
    assert result.returncode == 0 and "warning: the layers of versions that fit them" in result.stderr
    (record,) = bench.records()
    assert (record["calibration"], record["calibration_sha256"]) == (None, None)
    config = configure(bench, trained, versions=["v3"], max_tokens=128)
    assert "fit" not in bench.run("perplexity", "--config", config).stderr


def test_text_calibrates_as_it_is_scored(bench, tmp_path):
    vocabulary = REPOSITORY.parent / "shared" / "data" / "gpt2-bpe"
    if not (vocabulary.is_dir() and TEXT.is_file()):
        pytest.skip("no ../shared/data next to the checkout: text calibration not tested")
    text = TEXT.read_bytes()[:3000]
    (tmp_path / "text.txt").write_bytes(text)
    sizes = {"n_layer": 2, "n_head": 1, "n_embd": 16, "block_size": 64, "vocab_size": 50257}
    config = bench.configure(
        model_config=sizes, versions=["v3f"], T_values=[1], calibration="text.txt", calibration_tokens=500,
        vocabulary=str(vocabulary),
    )  # fmt: skip
    (record,) = bench.measure("latency", "--config", config)
    assert record["calibration_sha256"] == hashlib.sha256(text).hexdigest()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, 'tokens.bin: expected a token file, got "No such file or directory"'),
        (b"", "tokens.bin: expected a token file of 1 to 4294967296 bytes, got 0"),
        (b"\1\0" * 4095, "tokens.bin: expected at least calibration_tokens (4096) tokens, got 4095"),
        (b"\1\0" * 4095 + b"\x20\0", "token 4095 of 4096: expected an id below 32"),
    ],
)
def test_bad_calibration_file(bench, content, sentence):
    if content is not None:
        (bench.folder / "tokens.bin").write_bytes(content)
    config = bench.configure(versions=["v3f"], calibration="tokens.bin")
    assert sentence in problem(bench.run("latency", "--config", config), 3)
    assert not bench.log.exists()


def test_too_few_calibration_tokens(bench):
    config = bench.configure(versions=["v3f"], calibration_tokens=16)
    (sentence,) = problems(bench.run("latency", "--config", config), 2)
    assert "calibration_tokens: expected more than head_dim (16 of custom)" in sentence
