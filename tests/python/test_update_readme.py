"""The tables of README.md and docs/measuring.md: what they show, and that they belong to the records."""

import json
import sys

import pytest
from conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "scripts"))

import update_readme

README = """before
<!-- results:begin -->
old
<!-- results:end -->
<!-- peers:begin -->
<!-- peers:end -->
<!-- kernels:begin -->
<!-- kernels:end -->
after
"""
MEASURING = "how\n<!-- peers:begin -->\n<!-- peers:end -->\n"


def record(version: str, samples: list[float], **changes) -> dict:
    median = sorted(samples)[len(samples) // 2]
    return {
        "benchmark_name": "latency_vs_T",
        "version": version,
        "T": 64,
        "status": "ok",
        "time_total_ms_median": median,
        "time_per_token_ms_median": median / 64,
        "time_total_ms_samples": samples,
        "limit_fraction": 0.876,
        "pretrained": "gpt2",
        "dtype": "float32",
        "prompt_length": 32,
        "batch_size": 1,
        "read_bandwidth_bytes_per_s": 30.0e9,
        "context": {"cpu": "Some CPU", "isa": "avx2", "num_threads": 2},
        **changes,
    }


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "README.md").write_text(README)
    (tmp_path / "docs" / "results" / "python").mkdir(parents=True)
    (tmp_path / "docs" / "measuring.md").write_text(MEASURING)
    return tmp_path


def write_records(checkout, *records: dict) -> None:
    lines = "".join(json.dumps(line) + "\n" for line in records)
    (checkout / "docs" / "results" / "run.jsonl").write_text(lines)


def run(checkout, *arguments: str) -> int:
    return update_readme.main(["--root", str(checkout), *arguments])


def test_table_and_check(checkout):
    write_records(
        checkout,
        record("v2", [60.0, 64.0, 68.0]),
        record("v0", [640.0, 640.0, 640.0]),
        record("v1", [128.0, 128.0, 128.0]),
        record("v1", [1.0], T=32, status="failed"),
        record("v1", [1.0], benchmark_name="vram_vs_T"),
    )
    assert run(checkout, "--check") == 1
    assert (checkout / "README.md").read_text() == README
    assert run(checkout) == 0
    text = (checkout / "README.md").read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "Some CPU (avx2), 2 threads, 30.0 GB/s read bandwidth; gpt2, float32, batch 1, prompt 32." in text
    rows = [line for line in text.splitlines() if line.startswith("| 64 |")]
    assert rows == [
        "| 64 | v0 | 640.0 | 10.00 |  | 0.20x [0.20, 0.20] | 0.88 |",
        "| 64 | v1 | 128.0 | 2.00 | 5.00x [5.00, 5.00] |  | 0.88 |",
        "| 64 | v2 | 64.0 | 1.00 | 10.00x [9.41, 10.67] | 2.00x [1.88, 2.13] | 0.88 |",
    ]
    assert "| 32 |" not in text
    assert run(checkout, "--check") == 0


def test_tables_of_several_files(checkout):
    write_records(checkout, record("v1", [128.0]))
    other = checkout / "docs" / "results" / "second.jsonl"
    other.write_text(json.dumps(record("v1", [256.0], batch_size=8)) + "\n")
    assert run(checkout) == 0
    text = (checkout / "README.md").read_text()
    assert text.index("batch 1") < text.index("| 128.0 |") < text.index("batch 8") < text.index("| 256.0 |")


def test_kernels_table(checkout):
    times = {
        "int8": 10.0,
        "int8_append": 10.5,
        "float32": 30.0,
        "torch_float32": 45.0,
        "torch_dequantise": 120.0,
    }
    runs = [
        {"name": f"{way}/B1/L1024/{state}/iterations:9/manual_time", "us": us, "share": 0.9}
        for way, us in times.items()
        for state in ("cold", "hot")
    ]
    report = {"context": {"threads": "2", "isa": "avx2"}, "benchmarks": runs}
    results = checkout / "docs" / "results"
    (results / "bench_kernels.json").write_text(json.dumps(report))
    report["context"]["isa"] = "avx512"
    (results / "bench_kernels-other.json").write_text(json.dumps(report))
    assert run(checkout) == 0
    text = (checkout / "README.md").read_text()
    assert [line for line in text.splitlines() if "| 1024 |" in line] == 2 * [
        "| 1 | 1024 | cold | 10.0 | 0.90 | 0.90 | 4.50x | 12.0x | 1.50x | 1.050 |",
        "| 1 | 1024 | hot | 10.0 |  |  | 4.50x | 12.0x | 1.50x | 1.050 |",
    ]
    assert "2 threads, avx2. Cold" in text and "2 threads, avx512. Cold" in text


def peer_record(side: str, seconds: float, *, version=None, prefill=False, **changes) -> dict:
    generated = {
        "time_per_token_ms_median": seconds * 1e3 / 96,
        "weight_bytes_per_parameter": 1.0625,
        "kv_bytes_per_entry": 4,
        "read_bandwidth_bytes_per_s": 25e9,
        "limit_fraction": 0.456,
        "peak_rss_bytes": 300 * 2**20,
        "equal_tokens": 7,
    }
    return {
        "run_id": "b",
        "benchmark_name": "peers_prefill" if prefill else "peers_generate",
        "status": "ok",
        "side": side,
        "version": version,
        "model": "gpt2",
        "prompt_length": 512 if prefill else 32,
        "T": 0 if prefill else 96,
        "rounds": 3,
        "time_total_s": {"median": seconds},
        "speedup": {"llama": {"value": 2.5, "low": 2.25, "high": 2.75}} if version else {},
        "context": {"cpu": "Some CPU", "isa": "avx2", "num_threads": 2, "reference": "ct2"},
        **({} if prefill else generated),
        **changes,
    }


def write_peers(checkout, *records: dict) -> None:
    path = checkout / "docs" / "results" / "python" / "peers.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in records))


def test_tables_of_peers(checkout):
    write_peers(
        checkout,
        peer_record("v1", 1.0, version="v1", run_id="a"),
        peer_record("llama", 2.4),
        peer_record("v2", 0.96, version="v2", equal_tokens=None, limit_fraction=None),
        peer_record("llama", 0.64, prefill=True),
        peer_record("v2", 0.256, version="v2", prefill=True, rounds=1),
        {**peer_record("hf", 1.0, prefill=True), "status": "failed", "reason": "no memory"},
    )
    assert run(checkout, "--check") == 1
    assert run(checkout) == 0
    head = (
        "Some CPU (avx2), 2 threads, 25.0 GB/s read bandwidth; gpt2 with random weights, batch 1, "
        "3 rounds in turn. Medians; ratios with 95 % interval.\n\n"
    )
    ratios = (
        "| tokens | version | ms/token | vs llama |\n|:--|:--|--:|--:|\n"
        "| 32 + 96 | v2 | 10.00 | 2.50x [2.25, 2.75] |\n"
        "| 512, prefill | v2 | 0.50 | 2.50x |\n<!-- peers:end -->"
    )
    assert f"<!-- peers:begin -->\n{head}{ratios}" in (checkout / "README.md").read_text()
    times = (
        "| tokens | | ms/token | limit_fraction | bytes a weight | a KV entry | peak MB | tokens as ct2 |\n"
        "|--:|:--|--:|--:|--:|--:|--:|--:|\n"
        "| 128 | v2 | 10.00 |  | 1.06 | 4.00 | 300 |  |\n"
        "| 128 | llama | 25.00 | 0.46 | 1.06 | 4.00 | 300 | 7 of 96 |\n\n"
        "| prefill | | ms | tokens/s |\n|--:|:--|--:|--:|\n"
        "| 512 | v2 | 256 | 2000 |\n| 512 | llama | 640 | 800 |\n\n"
        "Not measured: hf: no memory\n<!-- peers:end -->"
    )
    assert f"how\n<!-- peers:begin -->\n{head}{times}" in (checkout / "docs" / "measuring.md").read_text()
    assert run(checkout, "--check") == 0


def test_a_stale_page_is_named(checkout, capsys):
    assert run(checkout) == 0
    (checkout / "docs" / "measuring.md").write_text(MEASURING)
    assert run(checkout, "--check") == 1
    assert capsys.readouterr().err == (
        "update_readme: error: docs/measuring.md is not up to date (make results-table)\n"
    )


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "run.jsonl:2: expected a JSON object"),
        (json.dumps({"benchmark_name": "latency_vs_T", "status": "ok"}), "a record has no 'T'"),
        (json.dumps(record("v1", [1.0], dtype="bfloat16")), "expected records of one machine and one model"),
    ],
)
def test_bad_records(checkout, capsys, line, sentence):
    write_records(checkout, record("v0", [1.0]))
    with (checkout / "docs" / "results" / "run.jsonl").open("a") as file:
        file.write(line + "\n")
    assert run(checkout) == 3
    assert sentence in capsys.readouterr().err
    assert (checkout / "README.md").read_text() == README


def test_a_bad_record_of_peers(checkout, capsys):
    context = {"cpu": "Some CPU"}
    write_peers(checkout, {"run_id": "b", "context": context}, {"context": context})
    assert run(checkout) == 3
    assert "a record has no 'run_id'" in capsys.readouterr().err
    assert (checkout / "docs" / "measuring.md").read_text() == MEASURING


@pytest.mark.parametrize("text", ["", README + README, README.replace("begin", "x")])
def test_readme_without_blocks(checkout, capsys, text):
    (checkout / "README.md").write_text(text)
    assert run(checkout) == 3
    assert "README.md: expected one <!-- results:begin -->" in capsys.readouterr().err


def test_committed_pages_are_up_to_date():
    assert update_readme.main(["--check"]) == 0


def test_peers_of_several_machines(checkout):
    other = {"cpu": "Other CPU", "isa": "amx_int8", "num_threads": 2, "reference": "ct2"}
    write_peers(
        checkout,
        peer_record("v1", 1.0, version="v1", run_id="a"),
        peer_record("v1", 2.0, version="v1", run_id="b", context=other),
        peer_record("v2", 3.0, version="v2", run_id="b", context=other),
        peer_record("v1", 4.0, version="v1", run_id="c"),
    )
    assert run(checkout) == 0
    text = (checkout / "README.md").read_text()
    shown = [line[:22] for line in text.splitlines() if line.startswith(("Some", "Other", "| 32"))]
    assert shown == [
        "Some CPU (avx2), 2 thr",
        "| 32 + 96 | v1 | 41.67",
        "Other CPU (amx_int8), ",
        "| 32 + 96 | v1 | 20.83",
        "| 32 + 96 | v2 | 31.25",
    ]
