"""kvfuse.roofline.server: a wrong request is answered with a sentence, and none reaches a file."""

import json
import re

import pytest
from kvfuse.roofline import server
from kvfuse.roofline.server.protection import SECURITY_HEADERS
from roofline_server import GEMM
from starlette.testclient import TestClient

LETTERS = {"H": 4096, "L": 32, "nh": 32, "nkv": 8, "dh": 128, "dff": 14336}
RECOMMEND = {"hardware": "h100", "model": "gpt2"}
SWEEP = {"hardware": "h100", "shapes": [{"M": 1, "N": 8, "K": 8}], "precisions": ["fp16"]}
KV = {"model": "gpt2", "contexts": [1], "precisions": ["fp16"]}


WRONG = {
    "unknown hardware": ("analyze", GEMM | {"hardware": "h1000"}, ["hardware"], r"did you mean h100\?"),
    "unknown format": ("analyze", GEMM | {"precision": "fp7"}, [], "precision: expected one of fp32, "),
    "unknown model": ("recommend", RECOMMEND | {"model": "lama-3-8b"}, ["model"], r"mean llama-3-8b\?"),
    "unknown strategy": ("predict", RECOMMEND | {"strategy": "fp17"}, [], "strategy: expected"),
    "unknown phase": ("recommend", RECOMMEND | {"phase": "dekode"}, [], r"did you mean decode\?"),
    "unknown profile": ("analyze", GEMM | {"profile": "x"}, ["profile"], "profile: expected one of vendor"),
    "negative": ("analyze", GEMM | {"M": -5}, ["M"], "M: expected greater than or equal to 1, got -5"),
    "zero": ("analyze", GEMM | {"N": 0}, ["N"], "N: .*, got 0"),
    "absurd": ("analyze", GEMM | {"M": 2**40}, [], "1 <= M <= 2147483648, got 1099511627776"),
    "65 bits": ("analyze", GEMM | {"M": 2**64}, [], "to fit 64 bits"),
    "fraction": ("analyze", GEMM | {"M": 1.5}, ["M"], "M: expected a valid integer, got 1.5"),
    "text": ("analyze", GEMM | {"M": "1"}, ["M"], "M: expected a valid integer, got '1'"),
    "truth": ("analyze", GEMM | {"M": True}, ["M"], "got True"),
    "missing": ("analyze", {"hardware": "h100"}, ["M"], "expected M, got none"),
    "extra": ("analyze", GEMM | {"Q": 1}, ["Q"], "expected no field 'Q'"),
    "long name": ("analyze", GEMM | {"hardware": "h" * 101}, ["hardware"], "at most 100 characters"),
    "heads": ("recommend", {"hardware": "h100", "model_config": LETTERS | {"nkv": 5}}, ["model_config"],
              "expected n_head to be a multiple of n_kv_head, got n_head 32 and n_kv_head 5"),
    "no heads": ("recommend", {"hardware": "h100", "model_config": LETTERS | {"nh": 0}},
                 ["model_config", "nh"], "greater than or equal to 1, got 0"),
    "a letter": ("recommend", {"hardware": "h100", "model_config": {"H": 8}}, ["model_config", "L"],
                 "expected model_config.L, got none"),
    "both models": ("recommend", RECOMMEND | {"model_config": LETTERS}, [], "got both"),
    "no model": ("recommend", {"hardware": "h100"}, [], "either model or model_config, got none"),
    "context": ("predict", RECOMMEND | {"seq_len": 2**40}, ["seq_len"],
                "less than or equal to 67108864, got 1099511627776"),
    "share": ("attention", {"hardware": "h100", "n_head": 1, "n_kv_head": 1, "head_dim": 8, "kv_len": 1,
                            "kept_share": 0}, ["kept_share"], "greater than 0, got 0"),
    "many points": ("sweep", SWEEP | {"shapes": SWEEP["shapes"] * 4096, "precisions": ["fp16", "fp8"]},
                    ["shapes"], "at most 4096 points, got 8192"),
    "too many shapes": ("sweep", SWEEP | {"shapes": SWEEP["shapes"] * 4097}, ["shapes"],
                        "at most 4096 items"),
    "many measured": ("sweep", SWEEP | {"shapes": SWEEP["shapes"] * 17, "measure": True}, ["shapes"],
                      "at most 16 measured points, got 17"),
    "no shapes": ("sweep", SWEEP | {"shapes": []}, ["shapes"], "at least 1 item"),
    "many contexts": ("kv", KV | {"contexts": [1] * 513}, ["contexts"], "at most 512 items"),
    "window": ("kv", KV | {"recent_window": 2**40}, [], "expected 0 <= "),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_one_sentence_names_field_rule_and_value(client, name):
    path, body, loc, sentence = WRONG[name]
    for prefix in ("/api/", "/api/public/"):
        if "measured" in name and prefix == "/api/public/":
            continue
        response = client.post(prefix + path, json=body)
        assert response.status_code == 422, response.text
        first = response.json()["detail"][0]
        assert first["loc"] == ["body", *loc]
        assert re.search(sentence, first["msg"]), first["msg"]
        assert "\n" not in first["msg"]


BODIES = {
    "NaN": (json.dumps(GEMM | {"M": float("nan")}), "M: expected a valid integer, got nan"),
    "Infinity": (json.dumps(GEMM | {"K": float("inf")}), "K: expected .* got inf"),
    "cut off": ('{"hardware":', "expected JSON, got what the parser calls: EOF"),
    "not JSON": ("hello", "expected JSON"),
    "empty": ("", "expected JSON"),
    "a list": ("[]", "the body: expected an object, got a list of 0"),
    "a million brackets": ("[" * 1_000_000, "recursion limit exceeded"),
    "deep objects": ('{"a":' * 150_000, "recursion limit exceeded"),
    "a number of 5000 digits": ('{"M":' + "1" * 5000 + "}", "number out of range"),
    "not UTF-8": (b'{"hardware":"\xff"}', "expected JSON"),
    "half a surrogate": (b'{"hardware":"\\ud800"}', "expected JSON"),
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies_that_are_no_request(client, name):
    content, sentence = BODIES[name]
    response = client.post("/api/analyze", content=content, headers={"content-type": "application/json"})
    assert response.status_code == 422
    assert re.search(sentence, response.json()["detail"][0]["msg"])


def test_nan_in_a_float(client):
    text = json.dumps(RECOMMEND | {"min_speedup": float("nan")})
    response = client.post("/api/recommend", content=text, headers={"content-type": "application/json"})
    assert response.status_code == 422
    assert response.json()["detail"][0] == {
        "loc": ["body", "min_speedup"],
        "msg": "min_speedup: expected a finite number, got nan",
    }


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonx"])
def test_only_json_is_read(client, kind):
    response = client.post("/api/analyze", content=json.dumps(GEMM), headers={"content-type": kind})
    assert response.status_code == 422
    assert "expected application/json" in response.json()["detail"][0]["msg"]


def test_a_list_that_is_all_wrong_gets_a_short_answer(client):
    response = client.post("/api/sweep", json=SWEEP | {"shapes": [{}] * 4096})
    assert response.status_code == 422
    assert len(response.json()["detail"]) == 10


@pytest.mark.parametrize("content", [b"{", b"{}", b"\xff", b"[]\n", b"null", b'{"schema_version": 9}'])
def test_a_results_file_that_is_none(client, content):
    response = client.post("/api/validate", content=content)
    assert response.status_code == 422
    assert response.json()["detail"][0]["msg"].startswith("line:1: expected")


def test_a_results_file_of_nothing(client):
    response = client.post("/api/validate", content=b"\n\n")
    assert response.status_code == 200
    assert (response.json()["records"], response.json()["median_absolute_error"]) == ([], None)


def test_too_large(client):
    for content in (b" " * (2**20 + 1), (b" " * 1000 for _ in range(1100))):
        response = client.post("/api/validate", content=content)
        assert response.status_code == 413
        assert response.json()["detail"][0]["msg"].startswith("expected a body of at most 1048576 bytes")
    assert client.post("/api/validate", content=b" " * 2**20).status_code == 200


HOSTS = {
    "localhost": 200,
    "LOCALHOST:8000": 200,
    "127.0.0.1:8000": 200,
    "[::1]:8000": 200,
    "evil.example": 400,
    "localhost.evil.example": 400,
    "127.0.0.1.evil.example": 400,
    "localhost:8000@evil.example": 400,
    "10.0.0.1": 400,
    "[::2]": 400,
    "localhost:": 400,
    "": 400,
}


@pytest.mark.parametrize("host", HOSTS)
def test_foreign_hosts(client, host):
    for path in ("/", "/docs", "/api/models", "/api/nvml/status", "/nothing"):
        response = client.get(path, headers={"host": host})
        assert (response.status_code == 400) == (HOSTS[host] == 400)


def test_hosts_of_an_open_address():
    settings = server.Settings(host="0.0.0.0", allowed_hosts=("Lab.example.org",))
    client = TestClient(server.create_app(settings), base_url="http://localhost")
    for host, status in {
        "192.168.1.7:80": 200,
        "lab.example.org": 200,
        "[fe80::1]": 200,
        "evil.example": 400,
    }.items():
        assert client.get("/api/models", headers={"host": host}).status_code == status


def test_headers_of_every_answer(client):
    answers = [
        client.get("/"),
        client.get("/docs"),
        client.get("/page/plotly.min.js"),
        client.get("/api/models"),
        client.get("/nothing"),
        client.post("/api/analyze", json={}),
        client.post("/api/validate", content=b" " * (2**20 + 1)),
        client.get("/api/models", headers={"host": "evil.example"}),
        client.delete("/api/models"),
    ]
    assert [one.status_code for one in answers] == [200, 200, 200, 200, 404, 422, 413, 400, 405]
    for one in answers:
        assert {name: one.headers.get(name) for name in SECURITY_HEADERS} == SECURITY_HEADERS
        assert "access-control-allow-origin" not in one.headers
        assert "server" not in one.headers
    assert "unsafe" not in SECURITY_HEADERS["content-security-policy"]
    assert "default-src 'none'" in SECURITY_HEADERS["content-security-policy"]
    assert answers[3].headers["cache-control"] == "no-store"
    assert answers[8].headers["allow"] == "GET"


def test_other_origins_only_when_asked():
    origin = {"origin": "https://example.org"}
    closed = TestClient(server.create_app(server.Settings()), base_url="http://localhost")
    settings = server.Settings(cors_origins=("https://example.org",))
    opened = TestClient(server.create_app(settings), base_url="http://localhost")
    name = "access-control-allow-origin"
    assert name not in closed.get("/api/models", headers=origin).headers
    assert opened.get("/api/models", headers=origin).headers[name] == "https://example.org"
    assert name not in opened.get("/api/models", headers={"origin": "https://other.example"}).headers
    asked = origin | {
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type",
    }
    assert opened.options("/api/analyze", headers=asked).status_code == 200
    assert closed.options("/api/analyze", headers=asked).status_code == 405


def test_files_of_the_page(client):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["cache-control"] == "no-cache"
    again = client.get("/", headers={"if-none-match": page.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    charts = client.get("/page/plotly.min.js")
    assert "javascript" in charts.headers["content-type"]
    assert "max-age" in charts.headers["cache-control"]


PLACES = [
    "/etc/passwd",
    "../../../../etc/passwd",
    "file:///etc/passwd",
    "http://127.0.0.1:1/",
    "\\\\host\\share",
]


@pytest.mark.parametrize("place", PLACES)
def test_no_field_reaches_a_file_or_another_machine(client, place):
    """Every text that a request can hold, as a place: each is an unknown name."""
    paths = client.get("/openapi.json").json()["paths"]
    bodies = {
        "analyze": [GEMM | {name: place} for name in ("hardware", "profile", "precision")],
        "recommend": [RECOMMEND | {name: place} for name in ("model", "phase")],
        "predict": [RECOMMEND | {name: place} for name in ("strategy", "phase")],
        "sweep": [SWEEP | {"precisions": [place]}],
        "kv": [KV | {"model": place}, KV | {"precisions": [place]}],
        "attention": [{"hardware": place, "n_head": 1, "n_kv_head": 1, "head_dim": 8, "kv_len": 1}],
        "validate": [],
    }
    posts = {path.removeprefix("/api/") for path in paths if "post" in paths[path] and "public" not in path}
    assert bodies.keys() == posts
    for path, each in bodies.items():
        for body in each:
            response = client.post(f"/api/{path}", json=body)
            assert response.status_code == 422
            assert "root:" not in response.text
    assert client.post("/api/validate", content=place.encode()).status_code == 422
    assert all("parameters" not in operation for path in paths.values() for operation in path.values())
