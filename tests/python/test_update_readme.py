"""The result tables of README.md: what they show, and that they belong to the committed records."""

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

spec = importlib.util.spec_from_file_location("update_readme", ROOT / "scripts" / "update_readme.py")
update_readme = importlib.util.module_from_spec(spec)
spec.loader.exec_module(update_readme)

README = """before
<!-- results:begin -->
old
<!-- results:end -->
<!-- kernels:begin -->
<!-- kernels:end -->
after
"""


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
        "context": {"cpu": "Some CPU", "isa": "avx2", "num_threads": 2, "read_bandwidth_gb_s": 30.0},
        **changes,
    }


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "README.md").write_text(README)
    (tmp_path / "docs" / "results").mkdir(parents=True)
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


def test_kernels_table(checkout):
    run_of = {"run_name": "decode/1024", "real_time": 12.34, "time_unit": "us", "bytes_per_second": 2.5e10}
    single = {"benchmarks": [run_of]}
    repeated = {"benchmarks": [{**run_of, "real_time": 99.0}, {**run_of, "aggregate_name": "median"}]}
    for content in (single, repeated):
        (checkout / "docs" / "results" / "bench_kernels.json").write_text(json.dumps(content))
        assert run(checkout) == 0
        rows = [line for line in (checkout / "README.md").read_text().splitlines() if "decode" in line]
        assert rows == ["| decode/1024 | 12.3 us | 25.0 |"]


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


@pytest.mark.parametrize("text", ["", README + README, README.replace("begin", "x")])
def test_readme_without_blocks(checkout, capsys, text):
    (checkout / "README.md").write_text(text)
    assert run(checkout) == 3
    assert "README.md: expected one <!-- results:begin -->" in capsys.readouterr().err


def test_committed_readme_is_up_to_date():
    assert update_readme.main(["--check"]) == 0
