"""scripts/peer_command.py, which the harness of `make peers` calls for ours, on a small model."""

import json
import sys

import pytest
import torch
from conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "scripts"))

import peer_command


def call_command(folder, *more) -> int:
    words = ["--weights", str(folder / "model.safetensors"), "--prompt", "1,2,3", "--totals", "8,20"]
    return peer_command.main([*words, "--prefill", "30", "--reps", "2", "--threads", "2", *more])


# A cache row of the small model has 16 codes and a scale of 4 bytes.
@pytest.mark.parametrize(("version", "kv_b"), [("v0", 0), ("v1", 4), ("v2", (16 + 4) / 16)])
def test_the_command_generates_what_transformers_does(small, capsys, version, kv_b):
    model, folder = small
    assert call_command(folder, "--version", version) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    prompt = torch.tensor([[1, 2, 3]])
    wanted = model.generate(prompt, max_new_tokens=17, do_sample=False, eos_token_id=None)[0, 3:].tolist()
    assert [row["total"] for row in found["rows"]] == [8, 20]
    for row in found["rows"]:
        assert row["tokens"] == wanted[: row["total"] - 3]
        assert (row["weight_b"], row["kv_b"]) == (4, kv_b)
        assert len(row["total_s"]) == 2 and min(row["total_s"]) > 0 and row["rss_mb"] > 10
    assert len(found["prefill_s"]) == 2 and min(found["prefill_s"]) > 0 and found["load_s"] >= 0


@pytest.mark.parametrize(
    ("more", "code", "sentence"),
    [
        (("--version", "v1", "--totals", "3"), 2, "--totals: expected more than the 3 tokens of --prompt"),
        (("--version", "v1", "--reps", "0"), 2, "expected at least 1 as --prefill, --reps and --threads"),
        (("--version", "v9"), 2, "invalid choice: 'v9'"),
        (("--version", "v1", "--totals", "40"), 2, "expected prompt + new tokens <= block_size 32"),
        (("--version", "v1", "--weights", "absent"), 3, "absent: expected a safetensors file"),
    ],
)
def test_the_command_says_what_is_wrong(small, capsys, more, code, sentence):
    try:
        assert call_command(small[1], *more) == code
    except SystemExit as stop:
        assert stop.code == code
    assert sentence in capsys.readouterr().err
