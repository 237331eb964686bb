"""python -m kvfuse.fetch against a hub of our own, on this machine."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from kvfuse.fetch import main
from probe import Probe

constants = pytest.importorskip("huggingface_hub.constants")

REPOSITORY = Path(__file__).resolve().parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
UNWANTED = {
    "pytorch_model.bin": b"pickle",
    "rust_model.ot": b"x",
    "onnx/model.safetensors": b"x",
    "README.md": b"x",
}


class Hub:
    """Answers as the hub does for one model: its files, a listing, and nothing else."""

    def __init__(self, name: str, files: dict[str, bytes]):
        self.name, self.files = name, files
        self.sent: list[str] = []
        self.failing = 0  # the status of every answer, unless 0
        self.breaking = False  # whether files end halfway
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def listing(self) -> list[dict]:
        return [
            {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for path, content in self.files.items()
        ]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in ({"Content-Length": len(body)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "GET":
            breaking = self.hub.breaking and "ETag" in headers
            self.wfile.write(body[: len(body) // 2] if breaking else body)
            self.close_connection = breaking

    def do_GET(self):
        hub, path = self.hub, self.path.partition("?")[0]
        files = f"/{hub.name}/resolve/{COMMIT}/"
        if hub.failing:
            self.answer(hub.failing)
        elif path == f"/api/models/{hub.name}":
            siblings = [{"rfilename": file["path"], "size": file["size"]} for file in hub.listing()]
            body = {"id": hub.name, "modelId": hub.name, "sha": COMMIT, "siblings": siblings}
            self.answer(200, json.dumps(body).encode(), Content_Type="application/json")
        elif path == f"/api/models/{hub.name}/tree/{COMMIT}":
            self.answer(200, json.dumps(hub.listing()).encode(), Content_Type="application/json")
        elif path.startswith(files) and path.removeprefix(files) in hub.files:
            content = hub.files[path.removeprefix(files)]
            if self.command == "GET":
                hub.sent.append(path.removeprefix(files))
            etag = hashlib.sha1(content).hexdigest()
            self.answer(200, content, ETag=f'"{etag}"', X_Repo_Commit=COMMIT, Accept_Ranges="bytes")
        else:
            self.answer(404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET


@pytest.fixture
def hub():
    hub = Hub("openai-community/gpt2", {})
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


@pytest.fixture
def fetch(hub, tmp_path, monkeypatch, capfd):
    """python -m kvfuse.fetch, less the start of a process: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + template[template.index("/{repo_id}") :]
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # before a retry

    def run(*words):
        capfd.readouterr()
        code = main(list(words))
        return code, *capfd.readouterr()

    return run


def refusal(result, code) -> str:
    found, out, error = result
    assert (found, out) == (code, "")
    line = error.splitlines()[-1]
    assert line.startswith("kvfuse.fetch: error: "), error
    return line


def test_only_safetensors_and_config_come_and_the_runner_reads_them(built, hub, fetch, tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"n_layer": 2, "n_head": 4, "n_embd": 64, "vocab_size": 97, "n_positions": 48}
    torch.manual_seed(0)
    config = transformers.GPT2Config(**sizes, initializer_range=0.2, bos_token_id=None, eos_token_id=None)
    model = transformers.GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path / "published", max_shard_size="200KB")
    published = {path.name: path.read_bytes() for path in (tmp_path / "published").iterdir()}
    published.pop("generation_config.json", None)
    hub.files = published | UNWANTED

    code, out, error = fetch("gpt2")
    assert code == 0, error
    assert out == f"gpt2: gpt2 at {COMMIT}\n"
    found = {path.name: path.read_bytes() for path in (tmp_path / "gpt2").iterdir() if path.is_file()}
    assert {name: found[name] for name in published} == published
    assert len(published) > 3, "several shards"
    assert sorted(hub.sent) == sorted(published)

    tokens = torch.randint(97, (2, 48))
    with torch.no_grad():
        want = model(tokens).logits
    got = Probe(built("tests/gpt2_probe"), tmp_path / "gpt2", sizes).logits("v1", tokens)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)

    assert fetch("gpt2")[0] == 0
    assert len(hub.sent) == len(published), "what is there is not downloaded again"


def test_other_publishers_and_folders(hub, fetch, tmp_path):
    hub.name, hub.files = "someone/small", {"model.safetensors": b"weights", "config.json": b"{}"}
    assert fetch("someone/small", "--out", "here")[0] == 0
    assert (tmp_path / "here" / "model.safetensors").read_bytes() == b"weights"


def test_a_model_without_safetensors_is_refused(hub, fetch, tmp_path):
    hub.files = UNWANTED | {"config.json": b"{}"}
    error = refusal(fetch("gpt2"), 3)
    assert "openai-community/gpt2: expected a model with safetensors files, got one without" in error
    assert hub.sent == []


def test_an_unknown_model(hub, fetch, tmp_path):
    error = refusal(fetch("gpt3"), 2)
    assert "openai-community/gpt3: expected a model on the hub, got none of that name" in error
    assert "none of that name" in refusal(fetch("a/b/c"), 2)


@pytest.mark.parametrize("there", [False, True])
def test_without_network(fetch, tmp_path, monkeypatch, there):
    if there:  # something else in the folder is not taken for the model
        (tmp_path / "gpt2").mkdir()
        (tmp_path / "gpt2" / "model.safetensors").write_bytes(b"other")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "offline" in refusal(fetch("gpt2"), 4)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "openai-community/gpt2: cannot be fetched (" in refusal(fetch("gpt2"), 4)


def test_a_failing_hub(hub, fetch, tmp_path):
    hub.failing = 403
    assert "cannot be fetched (403 Forbidden" in refusal(fetch("gpt2"), 4)


def test_a_download_that_breaks_off(hub, fetch):
    hub.files = {"model.safetensors": bytes(1000), "config.json": b"{}"}
    hub.breaking = True
    assert "cannot be fetched (" in refusal(fetch("gpt2"), 4)
    hub.breaking = False
    assert fetch("gpt2")[0] == 0


def test_without_the_package(fetch, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install 'kvfuse[weights]'" in refusal(fetch("gpt2"), 4)


def test_as_a_program(hub, tmp_path):
    hub.files = {"model.safetensors": b"weights", "config.json": b"{}"}
    settings = {
        "PYTHONPATH": str(REPOSITORY / "python"),
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(tmp_path / "hf_home"),
    }
    command = [sys.executable, "-m", "kvfuse.fetch", "gpt2", "--out", "here"]
    result = subprocess.run(
        command, cwd=tmp_path, env=os.environ | settings, capture_output=True, text=True, timeout=120
    )
    assert (result.returncode, result.stdout) == (0, f"here: gpt2 at {COMMIT}\n"), result.stderr
    assert (tmp_path / "here" / "model.safetensors").read_bytes() == b"weights"
