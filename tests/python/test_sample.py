"""python -m kvfuse.sample: the text of the tokens that the model generates, as they come."""

import io
import os
import signal
import subprocess
import sys

import pytest
import torch
import transformers
from bpe_probes import learned_vocabulary
from conftest import REPOSITORY
from kvfuse import sample
from kvfuse.model import Gpt2, ModelConfig
from kvfuse.prepare_data import load_encoding

PROMPT = "été the "


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return learned_vocabulary(tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture(scope="module")
def weights(vocabulary, tmp_path_factory):
    """A model for the learned vocabulary and a few ids more, as a padded vocabulary has them."""
    torch.manual_seed(0)
    vocab_size = load_encoding(vocabulary)[0].n_vocab + 7
    config = transformers.GPT2Config(
        n_layer=2, n_head=2, n_embd=32, n_positions=64, vocab_size=vocab_size, initializer_range=0.2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model")
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def run(vocabulary, weights):
    def run(*words, prompt=PROMPT):
        options = ["--weights", weights, "--vocab", vocabulary, "--prompt", prompt, "--device", "cpu", *words]
        return sample.main([str(word) for word in options])

    return run


def expected_text(vocabulary, weights, version, new_tokens, **options):
    encoding, _ = load_encoding(vocabulary)
    ids = encoding.encode_ordinary(PROMPT)
    model = Gpt2(ModelConfig.beside(weights), version, weights=weights)
    made = model.generate(torch.tensor([ids]), new_tokens, **options)[0, len(ids) :].tolist()
    parts = [encoding.decode_bytes([i]) if i < encoding.n_vocab else "\ufffd".encode() for i in made]
    return PROMPT + b"".join(parts).decode(errors="replace").rstrip("\ufffd")


@pytest.mark.parametrize("version", ["v0", "v1", "v2", "v4a"])
def test_the_text_of_the_generated_tokens(run, vocabulary, weights, capsys, version):
    words = ["--temperature", 0.9, "--top-k", 40, "--top-p", 0.95, "--seed", 3, "--max-new-tokens", 40]
    assert run("--version", version, *words) == 0
    options = {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "seed": 3}
    expected = expected_text(vocabulary, weights, version, 40, **options)
    printed = capsys.readouterr()
    assert printed.out.removesuffix("\n").rstrip("\ufffd") == expected and printed.err == ""


def test_it_goes_on_beyond_block_size(run, capsys):
    assert run("--max-new-tokens", 200) == 0
    assert len(capsys.readouterr().out) > len(PROMPT) + 100
    assert run("--max-new-tokens", 200, "--overflow", "error") == 2
    assert "expected prompt + new tokens <= block_size 64" in capsys.readouterr().err


def test_characters_appear_once_they_are_whole():
    out = io.StringIO()
    text = "aé€😀"
    pieces = {i: bytes([byte]) for i, byte in enumerate(text.encode())}
    on_token = sample.printer(pieces.__getitem__, out)
    shown = []
    for i in pieces:
        on_token(torch.tensor([i]))
        shown.append(out.getvalue())
    assert shown == ["a", "a", *["aé"] * 3, *["aé€"] * 4, "aé€😀"]


def test_random_weights_are_said_to_be_random(vocabulary, capsys, monkeypatch):
    monkeypatch.setattr(sample._command, "preset_names", lambda: ["gpt2"])
    monkeypatch.setattr(ModelConfig, "preset", lambda name: ModelConfig(n_layer=1, n_head=1, n_embd=16))
    assert sample.main(["--vocab", str(vocabulary), "--max-new-tokens", "1"]) == 0
    assert capsys.readouterr().err == "warning: the weights are random (--weights names a file)\n"


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--max-new-tokens", 0], 2, "--max-new-tokens: expected a number >= 1, got 0"),
        (["--prompt", ""], 2, "--prompt: expected at least one character, got none"),
        (["--temperature", -1], 2, "expected a finite temperature >= 0"),
        (["--seed", -1], 2, "--seed: expected a number >= 0, got -1"),
        (["--transforms", "spin"], 2, 'unknown transform "spin"'),
        (["--version", "v3f"], 2, "expected calibration tokens for version v3f"),
        (["--weights", "nowhere"], 3, "nowhere: expected a safetensors file or a folder with one"),
        (["--weights", __file__, "--preset", "gpt2"], 3, "test_sample.py: header: expected a length"),
        (["--preset", "gpt2"], 3, "expected GPT-2 with n_layer 12"),
        (["--vocab", "nowhere"], 3, "nowhere/vocab.bpe: can't be read"),
    ],
)
def test_bad_options_are_one_sentence(run, capsys, words, code, sentence):
    assert run(*words) == code
    error = capsys.readouterr().err
    assert error.startswith("kvfuse.sample: error: ") and sentence in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "words", [["--version", "v9"], ["--dtype", "int8"], ["--preset", "gpt3"], ["--tokens"]]
)
def test_usage(run, words):
    with pytest.raises(SystemExit) as stop:
        run(*words)
    assert stop.value.code == 2


def test_a_missing_package_is_named(run, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    assert run() == 3
    assert "expected the package tiktoken, which is not installed (pip install 'kvfuse[text]')" in (
        capsys.readouterr().err
    )


def test_ctrl_c(vocabulary, weights):
    words = ["--weights", weights, "--vocab", vocabulary, "--max-new-tokens", 10**7, "--prompt", PROMPT]
    command = [sys.executable, "-m", "kvfuse.sample", *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "python"), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        begun = process.stdout.read(200)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors == b""
    assert begun.startswith(PROMPT.encode()) and rest.endswith(b"\n")
