"""kvfuse.roofline.server: every endpoint answers what the library answers."""

import asyncio
import dataclasses
import json
import math
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from kvfuse import roofline
from kvfuse.roofline import server
from roofline_server import GEMM
from starlette.testclient import TestClient

ROOT = Path(__file__).resolve().parents[2]
LETTERS = {"H": 4096, "L": 32, "nh": 32, "nkv": 8, "dh": 128, "dff": 14336}
RECORDS = ROOT / "docs/results/1-default.jsonl"
MEASURED = {
    "measured_time_us": 20.0,
    "measured_bandwidth_gb_s": 10.0,
    "measured_tflops": 0.5,
    "emulated": False,
}


def answer(client, path, **body):
    response = client.post(f"/api/{path}", json=body)
    assert response.status_code == 200, response.text
    return response.json()


def plain(value):
    """A dataclass as JSON gives it back."""
    return json.loads(json.dumps(dataclasses.asdict(value)))


def test_hardware(client):
    listed = client.get("/api/hardware").json()["hardware"]
    assert [one["name"] for one in listed] == roofline.HardwareRegistry().names()
    h100 = next(one for one in listed if one["name"] == "h100")
    assert h100["peak_tflop_s"]["fp16"] == 989.4
    assert h100["critical_intensity"]["fp16"] == roofline.get_hardware("h100").critical_ai("fp16")
    assert "data sheet" in h100["sources"]["bandwidth"]
    assert h100["sources"]["peaks"].keys() == h100["peak_tflop_s"].keys()
    assert {"vendor", "reference"} == {name for one in listed for name in one["profiles"]}
    for one in listed:
        for profile in one["profiles"]:
            answer(
                client, "analyze", **GEMM | {"hardware": one["name"], "profile": profile, "precision": "bf16"}
            )


def test_models_and_options(client):
    models = client.get("/api/models").json()["models"]
    assert models == [plain(roofline.Model.preset(name)) for name in roofline.model_names()]
    options = client.get("/api/options").json()
    assert options["precisions"] == [one.name for one in roofline.precisions()]
    assert options["strategies"] == [one.name for one in roofline.strategies()]
    assert (options["attention"], options["operators"]) == (roofline.attention_names(), roofline.op_names())
    assert options["limits"]["body_bytes"] == 2**20
    assert (options["measuring"], options["calibrated"]) == (True, None)
    assert client.get("/api/public/options").json()["measuring"] is False


def test_analyze(client):
    got = answer(client, "analyze", **GEMM)
    want = roofline.predict_gemm(roofline.get_hardware("h100"), 1, 4096, 4096, "fp16")
    assert got["theory"] == plain(want)
    assert (got["measurement"], got["efficiency"], got["hardware"]) == (None, None, "h100")
    published = answer(client, "analyze", **GEMM | {"hardware": "B10", "profile": "reference"})
    assert round(published["theory"]["predicted_time_us"], 2) == 116.97


def test_sweep_is_analyze_for_each(client):
    shapes = [{"M": M, "N": 64, "K": 32} for M in (1, 7)]
    got = answer(client, "sweep", hardware="h200", shapes=shapes, precisions=["fp16", "nvfp4"])["results"]
    each = [
        answer(client, "analyze", hardware="h200", precision=precision, **shape)
        for shape in shapes
        for precision in ("fp16", "nvfp4")
    ]
    assert got == each


def test_recommend(client):
    got = answer(
        client, "recommend", hardware="b10", profile="reference", model_config=LETTERS, phase="decode"
    )
    machine = roofline.get_hardware("b10", "reference")
    assert got == plain(roofline.recommend(machine, roofline.Model.of_letters(LETTERS)))
    assert (got["strategy_name"], got["attention"]) == ("nvfp4_blackwell", "FA3")
    asked = {"max_quality_loss_pct": 0, "min_speedup": 3, "batch": 4, "seq_len": 100}
    got = answer(client, "recommend", hardware="h100", model="gpt2", phase="prefill", **asked)
    want = roofline.recommend(
        roofline.get_hardware("h100"), roofline.Model.preset("gpt2"), phase="prefill", **asked
    )
    assert got == plain(want)


@pytest.mark.parametrize(("phase", "past", "tokens"), [("decode", 99, 1), ("prefill", 0, 100)])
def test_predict(client, phase, past, tokens):
    sizes = plain(dataclasses.replace(roofline.Model.preset("llama-3-8b"), name="custom"))
    where = {"hardware": "h100", "phase": phase, "seq_len": 100, "batch": 3, "strategy": "fp8_balanced"}
    got = answer(client, "predict", model_config=sizes, **where)
    assert got == answer(client, "predict", model="llama-3-8b", **where)
    want = roofline.predict_pass(
        roofline.get_hardware("h100"),
        roofline.Model(**sizes),
        batch=3,
        past=past,
        tokens=tokens,
        strategy="fp8_balanced",
    )
    assert got["total"]["time_ms"] == want.time_ms
    assert got["total"]["shortest_ms"] == want.shortest_ms
    assert [one["name"] for one in got["operators"]] == roofline.op_names()
    assert math.isclose(sum(one["time_ms"] for one in got["operators"]), want.time_ms, rel_tol=1e-12)
    assert got["roofs"]["bandwidth_gb_s"] == 3350
    assert got["kv_cache_bytes"] == 2 * 32 * 3 * 100 * 8 * 128  # fp8
    assert got["fits_memory"] is True


def test_kv(client):
    got = answer(client, "kv", model_config=LETTERS, contexts=[1, 32768], precisions=["fp16", "nvfp4"])
    fp16, nvfp4 = got["curves"]
    assert fp16 == {"precision": "fp16", "bytes": [131072, 4096 * 2**20]}
    assert nvfp4["bytes"][1] == 1152 * 2**20
    assert got["weight_bytes"] == 2 * (32 * (4096 * 128 * (32 + 8 + 8 + 32) + 3 * 4096 * 14336) + 65 * 4096)
    assert got["crossover_tokens"]["fp16"] == got["weight_bytes"] / 131072
    recent = answer(
        client, "kv", model_config=LETTERS, contexts=[32768], precisions=["nvfp4"], recent_window=256
    )
    assert recent["curves"][0]["bytes"] == [1175 * 2**20]


def test_attention(client):
    shape = {"n_head": 32, "n_kv_head": 8, "head_dim": 128, "query_tokens": 1, "kv_len": 4096}
    got = answer(client, "attention", hardware="h100", **shape)["kernels"]
    assert got == [plain(one) for one in roofline.compare_attention(roofline.get_hardware("h100"), **shape)]


def test_validate(client):
    text = RECORDS.read_text()
    response = client.post("/api/validate", content=text, headers={"content-type": "text/plain"})
    got = response.json()
    want = roofline.validate(text)
    assert [one["predicted_ms"] for one in got["records"]] == [one.predicted_ms for one in want.records]
    assert got["median_absolute_error"] == want.median_absolute_error
    first = got["records"][0]
    assert first["label"] == "v0 gpt2 float32: batch 1, prompt 32, T 32"
    assert first["ai"] == first["flops"] / first["bytes"]
    assert first["achieved_flops"] == pytest.approx(first["flops"] / (first["measured_ms"] / 1e3))
    skipped = client.post("/api/validate", content=text.replace('"status":"ok"', '"status":"oom"')).json()
    assert len(skipped["skipped"]) == len(text.splitlines())
    assert skipped["skipped"][0] == {"line": 1, "reason": "its status is oom"}


def test_the_public_paths_answer_the_same(client):
    shapes = [{"M": 1, "N": 64, "K": 32}]
    posts = {
        "analyze": GEMM,
        "sweep": {"hardware": "h200", "shapes": shapes, "precisions": ["fp16"]},
        "recommend": {"hardware": "h100", "model": "gpt2"},
        "predict": {"hardware": "h100", "model": "gpt2"},
        "kv": {"model": "gpt2", "contexts": [5], "precisions": ["int8"]},
        "attention": {"hardware": "h100", "n_head": 4, "n_kv_head": 4, "head_dim": 64, "kv_len": 9},
    }
    for path, body in posts.items():
        assert answer(client, f"public/{path}", **body) == answer(client, path, **body)
    for path in ("hardware", "models"):
        assert client.get(f"/api/public/{path}").json() == client.get(f"/api/{path}").json()
    text = RECORDS.read_text()
    assert client.post("/api/public/validate", content=text).json() == (
        client.post("/api/validate", content=text).json()
    )
    assert client.get("/api/public/nvml/status").status_code == 404


@pytest.fixture
def measure(monkeypatch):
    """A measuring that says how many ran side by side at most."""
    seen = SimpleNamespace(running=0, most=0, calls=0, lock=threading.Lock())

    def measure_gemm(M, N, K, precision):
        with seen.lock:
            seen.running, seen.calls = seen.running + 1, seen.calls + 1
            seen.most = max(seen.most, seen.running)
        time.sleep(0.02)
        with seen.lock:
            seen.running -= 1
        return dataclasses.make_dataclass("Measurement", MEASURED)(**MEASURED)

    monkeypatch.setitem(sys.modules, "kvfuse.roofline.measure", SimpleNamespace(measure_gemm=measure_gemm))
    return seen


def test_measuring_stands_beside_theory(client, measure):
    got = answer(client, "analyze", **GEMM, measure=True)
    assert got["measurement"] == MEASURED
    assert got["efficiency"] == got["theory"]["predicted_time_us"] / 20
    shapes = [{"M": 1, "N": 64, "K": 32}] * 2
    rows = answer(client, "sweep", hardware="h100", shapes=shapes, precisions=["fp16"], measure=True)
    assert [one["measurement"] for one in rows["results"]] == [MEASURED] * 2
    assert measure.calls == 3


def test_one_measurement_at_a_time_and_few_that_wait(measure):
    app = server.create_app(server.Settings())
    most = server.Limits().waiting_measurements

    async def ask_all() -> list[int]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            posts = (client.post("/api/analyze", json=GEMM | {"measure": True}) for _ in range(most + 5))
            return [one.status_code for one in await asyncio.gather(*posts)]

    statuses = asyncio.run(ask_all())
    assert sorted(statuses) == [200] * most + [503] * 5
    assert (measure.most, measure.calls) == (1, most)


def test_measuring_is_refused_where_it_is_not_allowed(client, measure):
    quiet = TestClient(server.create_app(server.Settings(measure=False)), base_url="http://localhost")
    for refused in (
        client.post("/api/public/analyze", json=GEMM | {"measure": True}),
        quiet.post("/api/analyze", json=GEMM | {"measure": True}),
    ):
        assert refused.status_code == 403
        assert refused.json()["detail"][0]["loc"] == ["body", "measure"]
    large = client.post("/api/analyze", json=GEMM | {"measure": True, "M": 2**20, "N": 2**20})
    assert large.status_code == 422
    assert "expected a measured product of at most" in large.json()["detail"][0]["msg"]
    assert measure.calls == 0


def test_a_calibrated_machine_is_offered():
    import test_roofline

    calibration = roofline.Calibration(json.dumps(test_roofline.CALIBRATION))
    settings = server.Settings(calibration=calibration)
    client = TestClient(server.create_app(settings), base_url="http://localhost")
    here = client.get("/api/hardware").json()["hardware"][-1]
    assert (here["name"], here["profiles"]) == ("here", ["calibrated"])
    assert client.get("/api/options").json()["calibrated"] == "here"
    assert answer(client, "analyze", **GEMM | {"hardware": "here", "precision": "fp32"})["hardware"] == "here"
    assert client.post("/api/validate", content=RECORDS.read_text()).json()["machine"] == "a machine"


def test_documentation_needs_no_other_machine(client):
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "http" not in page.text.replace("http-equiv", "")
    for file, kind in (
        ("swagger-ui-bundle.js", "javascript"),
        ("swagger-ui.css", "css"),
        ("start.js", "javascript"),
    ):
        assert f"/docs/{file}" in page.text
        assert kind in client.get(f"/docs/{file}").headers["content-type"]
    described = client.get("/openapi.json").json()
    assert len(described["paths"]) == 22
    for path in described["paths"].values():
        for operation in path.values():
            assert {"200", "400", "413", "422", "503"} <= operation["responses"].keys()
    analyze = described["paths"]["/api/analyze"]["post"]
    assert analyze["requestBody"]["content"].keys() == {"application/json"}


def test_the_app_of_other_servers():
    assert type(server.app).__name__ == "FastAPI"
    assert server.app is server.app
    with pytest.raises(AttributeError, match="no attribute 'nix'"):
        server.nix  # noqa: B018
