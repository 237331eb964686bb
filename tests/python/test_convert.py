"""python -m kvfuse.convert: nanoGPT's checkpoints, and files that only look like them."""

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from gpt_models import SIZES, logits_of, make_gpt, random_tokens
from kvfuse.convert import main
from probe import Probe
from safetensors import safe_open
from safetensors.torch import load_file

ARGUMENTS = {name: SIZES[name] for name in SIZES}
PROBE_SIZES = SIZES | {"n_positions": SIZES["block_size"]}


def checkpoint_of(model, prefix="_orig_mod."):
    """As nanoGPT's train.py saves it, after torch.compile."""
    optimizer = torch.optim.AdamW(model.parameters())
    return {
        "model": {prefix + name: tensor for name, tensor in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "model_args": ARGUMENTS | {"bias": model.config.bias},
        "iter_num": 5000,
        "best_val_loss": torch.tensor(1.47),
        "config": {"out_dir": "out", "learning_rate": 1e-3, "compile": True},
    }


@pytest.fixture
def model(nanogpt):
    return make_gpt(nanogpt)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def convert(checkpoint, *options, out="out.safetensors"):
    torch.save(checkpoint, "ckpt.pt")
    return main(["ckpt.pt", out, *options])


def refusal(capsys, code, *words):
    """The one line that a refused conversion says; nothing is left behind."""
    before = set(os.listdir())
    assert main(list(words)) == code
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("kvfuse.convert: error: ") and error.count("\n") == 1, error
    assert set(os.listdir()) == before
    return error


def refused(capsys, checkpoint, **save):
    torch.save(checkpoint, "ckpt.pt", **save)
    return refusal(capsys, 3, "ckpt.pt", "out.safetensors")


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
@pytest.mark.parametrize("legacy", [True, False])
def test_the_runner_computes_what_nanogpt_does(built, folder, model, prefix, legacy):
    torch.save(checkpoint_of(model, prefix), "ckpt.pt", _use_new_zipfile_serialization=not legacy)
    assert main(["ckpt.pt", "out.safetensors"]) == 0
    assert sorted(os.listdir()) == ["ckpt.pt", "config.json", "out.safetensors"]
    tokens = random_tokens(3, SIZES["block_size"])
    want = logits_of(model, tokens)
    got = Probe(built("tests/gpt2_probe"), folder / "out.safetensors", PROBE_SIZES).logits("v1", tokens)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("bias", [True, False])
def test_bench_runner_takes_the_file(bench, monkeypatch, nanogpt, bias):
    monkeypatch.chdir(bench.folder)
    assert convert(checkpoint_of(make_gpt(nanogpt, bias=bias))) == 0
    sizes = SIZES | {"bias": bias}
    (record,) = bench.measure(
        "latency",
        "--config",
        bench.configure(model_config=sizes, weights="out.safetensors", T_values=[4], versions=["v1"]),
    )
    assert record["status"] == "ok"
    other = bench.configure(
        model_config=sizes | {"n_head": 2}, weights="out.safetensors", log_file="other.jsonl"
    )
    result = bench.run("latency", "--config", other)
    assert result.returncode == 3
    assert "n_head" in result.stderr


def test_values_dtypes_and_names_are_kept(folder, model, capsys):
    model.to(torch.bfloat16)
    assert convert(checkpoint_of(model)) == 0
    assert "model_config: {n_layer: 3, n_head: 4, n_embd: 64, block_size: 48," in capsys.readouterr().out
    stored = load_file("out.safetensors")
    state = model.state_dict()
    assert stored.keys() == state.keys() - {"lm_head.weight"}
    assert all(
        torch.equal(stored[name], state[name]) and stored[name].dtype == torch.bfloat16 for name in stored
    )
    with safe_open("out.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    config = json.loads(Path("config.json").read_text())
    assert (config["n_head"], config["n_positions"], config["activation_function"]) == (4, 48, "gelu")


def test_masks_of_old_checkpoints_are_left_out(folder, model):
    checkpoint = checkpoint_of(model)
    checkpoint["model"]["_orig_mod.transformer.h.2.attn.bias"] = torch.ones(1, 1, 48, 48)
    assert convert(checkpoint) == 0
    assert "transformer.h.2.attn.bias" not in load_file("out.safetensors")


class Touch:
    """Unpickled by Python's own means, it creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("place", ["model", "model_args", "config", None])
@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("unsafe_default", ["0", "1"])
def test_code_in_a_checkpoint_does_not_run(folder, model, capsys, monkeypatch, place, legacy, unsafe_default):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", unsafe_default)
    canary = folder / "canary"
    checkpoint = checkpoint_of(model)
    if place is None:
        checkpoint = Touch(canary)
    else:
        checkpoint[place]["more"] = Touch(canary)
    error = refused(capsys, checkpoint, _use_new_zipfile_serialization=not legacy)
    assert "which is not run" in error
    assert not canary.exists()
    torch.load("ckpt.pt", weights_only=False)
    assert canary.exists(), "the canary sings when the file is unpickled"


def test_code_in_a_plain_pickle_does_not_run(folder, capsys):
    Path("ckpt.pt").write_bytes(pickle.dumps(Touch(folder / "canary"), protocol=2))
    refusal(capsys, 3, "ckpt.pt", "out.safetensors")
    assert not Path("canary").exists()


def with_weight(checkpoint, name, tensor):
    checkpoint["model"][f"_orig_mod.{name}"] = tensor
    return checkpoint


WEIGHT = "transformer.h.1.mlp.c_fc.weight"


@pytest.mark.parametrize(
    "tensor, problem",
    [
        (torch.zeros(64, 256), r"'transformer.h.1.mlp.c_fc.weight' has shape [64, 256], expected [256, 64]"),
        (torch.zeros(1).expand(256, 64), "repeats fewer values"),
        (torch.zeros(256, 64).to_sparse(), "not dense values of floats but torch.sparse_coo"),
        (torch.zeros(256, 64, dtype=torch.int32), "torch.int32"),
        (torch.zeros(256, 64, device="meta"), "meta"),
        ([1.0], "is no tensor but list"),
        (None, "is no tensor but NoneType"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse invariant")
def test_tensors_that_do_not_fit(folder, model, capsys, tensor, problem):
    assert problem in refused(capsys, with_weight(checkpoint_of(model), WEIGHT, tensor))


def test_other_models_are_refused(folder, model, capsys):
    extra = with_weight(checkpoint_of(model), "transformer.h.1.attn.rotary", torch.zeros(2))
    del extra["model"]["_orig_mod.transformer.ln_f.bias"]
    error = refused(capsys, extra)
    assert "got 2 differences: 'transformer.h.1.attn.rotary' is not part of the model;" in error
    assert "'transformer.ln_f.bias' is missing" in error
    untied = with_weight(checkpoint_of(model), "lm_head.weight", torch.zeros(97, 64))
    assert "'lm_head.weight' differs from 'transformer.wte.weight'" in refused(capsys, untied)
    twice = checkpoint_of(model)
    twice["model"] |= {"transformer.ln_f.bias": torch.zeros(64)}
    assert "'transformer.ln_f.bias' is given twice" in refused(capsys, twice)
    none = checkpoint_of(model) | {"model": {}}
    assert "expected weights of 3 layers, got 0 tensors" in refused(capsys, none)
    many = checkpoint_of(model)
    many["model"] = {f"x{i}": torch.zeros(1) for i in range(50)}
    assert "; and 80 more" in refused(capsys, many)


def test_a_head_without_embedding_is_the_embedding(folder, model):
    checkpoint = checkpoint_of(model)
    del checkpoint["model"]["_orig_mod.transformer.wte.weight"]
    assert convert(checkpoint) == 0
    assert torch.equal(load_file("out.safetensors")["transformer.wte.weight"], model.lm_head.weight)


@pytest.mark.parametrize(
    "arguments, problem",
    [
        ({"n_layer": 10**12}, "expected weights of 1000000000000 layers"),
        ({"n_head": 5}, "n_embd to be a multiple of n_head 5, got 64"),
        ({"n_head": 0}, "whole number >= 1 as n_head in model_args, got 0"),
        ({"n_head": True}, "n_head in model_args, got True"),
        ({"block_size": None}, "block_size in model_args, got None"),
        ({"bias": 1}, "bias in model_args, got 1"),
        ({"n_layer": 2}, "'transformer.h.2.ln_1.weight' is not part of the model"),
    ],
)
def test_arguments_that_do_not_fit(folder, model, capsys, arguments, problem):
    checkpoint = checkpoint_of(model)
    checkpoint["model_args"] |= arguments
    assert problem in refused(capsys, checkpoint)


@pytest.mark.parametrize("checkpoint", [[1, 2], {"model": {}}, {"model": [], "model_args": {}}])
def test_other_files_of_torch_save(folder, capsys, checkpoint):
    assert "expected " in refused(capsys, checkpoint)


@pytest.mark.parametrize("content", [b"", b"\x80", b"{}", b"PK\x03\x04", b"\0" * 100, b"\x80\x02}q\x00."])
def test_damaged_files(folder, capsys, content):
    Path("ckpt.pt").write_bytes(content)
    refusal(capsys, 3, "ckpt.pt", "out.safetensors")


def test_every_truncation_is_refused(folder, model, capsys):
    buffer = io.BytesIO()
    checkpoint = checkpoint_of(model)
    torch.save({key: checkpoint[key] for key in ("model", "model_args")}, buffer)
    content = buffer.getvalue()
    for length in range(1, len(content), len(content) // 60):
        Path("ckpt.pt").write_bytes(content[:length])
        refusal(capsys, 3, "ckpt.pt", "out.safetensors")


def test_compressed_entries_are_refused(folder, model, capsys):
    torch.save(checkpoint_of(model), "stored.pt")
    with (
        zipfile.ZipFile("stored.pt") as stored,
        zipfile.ZipFile("ckpt.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in stored.infolist():
            packed.writestr(entry.filename, stored.read(entry))
    assert "compressed" in refusal(capsys, 3, "ckpt.pt", "out.safetensors")


def test_paths(folder, model, capsys):
    assert "none.pt: No such file" in refusal(capsys, 3, "none.pt", "out.safetensors")
    os.mkfifo("pipe")
    for path in (".", "pipe"):
        assert "expected a regular file" in refusal(capsys, 3, path, "out.safetensors")
    torch.save(checkpoint_of(model), "ckpt.pt")
    for out in ("out.bin", "no/where.safetensors"):
        with pytest.raises(SystemExit) as exit_of:
            main(["ckpt.pt", out])
        assert exit_of.value.code == 2
        assert "error: out: expected " in capsys.readouterr().err


def test_nothing_is_overwritten_unasked(folder, model, capsys):
    assert convert(checkpoint_of(model)) == 0
    weights, config = Path("out.safetensors").read_bytes(), Path("config.json").read_bytes()
    capsys.readouterr()
    assert "out.safetensors: expected a new file" in refusal(capsys, 2, "ckpt.pt", "out.safetensors")
    assert main(["ckpt.pt", "second.safetensors"]) == 0  # of the same model: config.json fits
    capsys.readouterr()
    Path("config.json").write_text("{}")
    assert "config.json: expected none, or that of this" in refusal(capsys, 2, "ckpt.pt", "third.safetensors")
    assert main(["ckpt.pt", "out.safetensors", "--overwrite"]) == 0
    assert Path("out.safetensors").read_bytes() == weights
    assert Path("config.json").read_bytes() == config


def test_a_full_disk_leaves_nothing(folder, model, capsys, monkeypatch):
    def fail(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    torch.save(checkpoint_of(model), "ckpt.pt")
    assert main(["ckpt.pt", "out.safetensors"]) == 0
    before = Path("out.safetensors").read_bytes()
    capsys.readouterr()
    monkeypatch.setattr("safetensors.torch.save_file", fail)
    assert "No space left" in refusal(capsys, 4, "ckpt.pt", "out.safetensors", "--overwrite")
    assert Path("out.safetensors").read_bytes() == before


def test_as_a_program(folder, model):
    torch.save(checkpoint_of(model), "ckpt.pt")
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "kvfuse.convert", "ckpt.pt", "out.safetensors"]
    environment = os.environ | {"PYTHONPATH": str(root / "python")}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("wrote out.safetensors\n")
