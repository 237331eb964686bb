"""bench_runner from the command line: options, summaries, precedence, and one line for each mistake."""

import csv
import io
import json
import re
import shutil

import pytest
import torch
from conftest import REPOSITORY
from runner import ERROR, TINY_MODEL, problem, problems, statuses

BENCHMARKS = ("latency", "vram")
SMOKE_LENGTHS = {
    "latency_vs_T": (16, 32, 64),
    "vram_vs_T": (16, 32, 64),
    "per_phase_breakdown": (64,),
    "max_batch_capacity": (64,),
}
SMOKE_VERSIONS = ("v0", "v1", "v2", "v3", "v4", "v3a", "v4a", "v3f", "v4f")
DEFAULT_STAGES = ("v0_prefill", "v1_prefill", "v1_decode")


def parse_table(text: str) -> list[dict]:
    """Rows of the plain table: columns are two spaces apart and as wide as their dashes."""
    lines = text.splitlines()
    rule = next(i for i, line in enumerate(lines) if re.fullmatch(r"-+(  -+)+", line))
    spans = [match.span() for match in re.finditer("-+", lines[rule])]
    cells = [[line[begin:end].strip() for begin, end in spans] for line in lines[rule - 1 :]]
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:]]


def parse_markdown(text: str) -> list[dict]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert all(re.fullmatch("-+:?", cell) for cell in rows[1])
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


PARSERS = {
    "table": parse_table,
    "md": parse_markdown,
    "csv": lambda text: list(csv.DictReader(io.StringIO(text))),
    "json": json.loads,
}


@pytest.mark.parametrize("form", PARSERS)
@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_summary_in_every_form(bench, benchmark, form):
    result = bench.run(benchmark, "--config", bench.configure(), "-o", form)
    assert result.returncode == 0, result.stderr
    rows = PARSERS[form](result.stdout)
    assert [(int(row["T"]), row["version"]) for row in rows] == [
        (T, version) for T in (4, 8) for version in ("v0", "v1", "v2")
    ]
    if benchmark == "latency":
        assert {"total ms", "ms/token", "vs v0", "vs v1", "limit_fraction"} < rows[0].keys()
        assert re.fullmatch(r"\d+\.\d\d \[\d+\.\d\d, \d+\.\d\d\]", rows[1]["vs v0"])
        assert rows[0]["vs v0"] == "1.00"
        assert all(float(row["limit_fraction"]) >= 0 for row in rows)


def test_summaries_of_two_benchmarks_stay_apart(bench):
    """What one parser reads per benchmark, it reads for several."""
    config = bench.configure(T_values=[4])
    result = bench.run(*BENCHMARKS, "--config", config, "-o", "md")
    latency, vram = result.stdout.strip("\n").split("\n\n")
    assert "ms/token" in parse_markdown(latency)[0] and "peak MB" in parse_markdown(vram)[0]
    result = bench.run(*BENCHMARKS, "--config", config, "-o", "json")
    assert "ms/token" in str(json.loads(result.stdout)) and "peak MB" in str(json.loads(result.stdout))


def test_help_and_versions(bench):
    result = bench.run("--help")
    assert result.returncode == 0 and result.stderr == ""
    for word in ("latency", "--config", "--resume", "-o", "Precedence", "Exit codes"):
        assert word in result.stdout
    result = bench.run("--list-versions", "-o", "json")
    rows = {row["version"]: row for row in json.loads(result.stdout)}
    assert rows.keys() >= {"v0", "v1", "v2"}
    assert [rows[v]["use_cache"] for v in ("v0", "v1", "v2")] == ["no", "yes", "yes"]
    assert [rows[v]["kv_cache_dtype"] for v in ("v1", "v2")] == ["model", "int8"]
    assert list(bench.folder.iterdir()) == []


def test_self_check(bench):
    result = bench.run("--self-check")
    assert result.returncode == 0
    assert "instruction set: " in result.stdout and "PyTorch " + torch.__version__ in result.stdout
    for op in (
        "kv_append",
        "decode_attention",
        "append_decode_attention",
        "prefill_attention",
        "quantize_kv",
    ):
        assert re.search(rf"\b{op}\b.* ok$", result.stdout, re.MULTILINE)


def test_every_instruction_set(bench):
    available = re.search(r"\(available: (.*)\)", bench.run("--self-check").stdout)[1].split()
    assert available[0] == "portable"
    smoke = REPOSITORY / "configs" / "smoke.yaml"
    for isa in available:
        environment = {"KVFUSE_ISA": isa}
        assert f"instruction set: {isa} " in bench.run("--self-check", environment=environment).stdout
        options = ["--config", smoke, "--log-file", bench.log]
        records = bench.measure("vram", *options, environment=environment)
        assert [record["context"]["isa"] for record in records] == [isa] * 3 * len(SMOKE_VERSIONS)
    for option in ([], ["--self-check"], ["--dry-run"]):
        line = problem(bench.run(*option, environment={"KVFUSE_ISA": "mmx"}), 2)
        assert line == f'KVFUSE_ISA: expected one that this machine runs ({", ".join(available)}), got "mmx"'


def test_smoke_config(bench):
    """The file as it is shipped, from the folder where it expects to be run."""
    shutil.copytree(REPOSITORY / "configs", bench.folder / "configs")
    result = bench.run("--config", "configs/smoke.yaml")
    assert result.returncode == 0, result.stderr
    assert "perplexity is left out: expected " in result.stderr
    bench.log = bench.folder / "results" / "smoke.jsonl"
    passes = [record for record in bench.records() if record["benchmark_name"] == "roofline"]
    assert [(r["stage"], r["status"]) for r in passes] == [(stage, "ok") for stage in DEFAULT_STAGES]
    assert sorted(statuses([record for record in bench.records() if record not in passes])) == sorted(
        (name, version, T, "ok")
        for name, lengths in SMOKE_LENGTHS.items()
        for version in SMOKE_VERSIONS
        for T in lengths
    )


def test_dry_run_writes_nothing(bench):
    config = bench.configure(T_values=[4, 100])
    before = sorted(bench.folder.iterdir())
    result = bench.run("--config", config, "--dry-run", "-o", "json")
    assert (result.returncode, result.stderr.count(ERROR)) == (0, 0)
    plan = json.loads(result.stdout)
    points = {(name, T) for name in ("latency_vs_T", "vram_vs_T") for T in (4, 100)}
    points |= {("per_phase_breakdown", 64)}
    stages = [row["version"] for row in plan if row["benchmark"] == "roofline"]
    plan = [row for row in plan if row["benchmark"] != "roofline"]
    assert stages == list(DEFAULT_STAGES)
    assert len(plan) == len(points) * 3  # versions
    assert {(row["benchmark"], row["T"]) for row in plan} == points
    assert sorted(bench.folder.iterdir()) == before


def test_shipped_default_config_is_found(bench):
    """Without --config it is configs/default.yaml of the working folder, else what is built in."""
    built_in = json.loads(bench.run("latency", "--dry-run", "-o", "json").stdout)
    assert {row["T"] for row in built_in} == {32, 64, 128, 256, 512}
    assert {row["version"] for row in built_in} == {"v0", "v1"}
    shutil.copytree(REPOSITORY / "configs", bench.folder / "configs")
    shipped = json.loads(bench.run("latency", "--dry-run", "-o", "json").stdout)
    assert {row["version"] for row in shipped} == {"v0", "v1", "v2"}
    assert shipped[0]["weights MB"] == pytest.approx(124.4 * 4, abs=1)


@pytest.mark.parametrize("form", [["latency"], ["--benchmark", "latency_vs_T"], ["latency", "latency_vs_T"]])
def test_reference_calls(bench, form):
    """The reference program's command lines, with a configuration small enough for a test."""
    config = bench.configure(versions=["v0"], log_file="other.jsonl")
    bench.log.write_text('{"schema_version":1}\n')
    options = ["--version", "v0", "v1", "v2", "--clear-log", "--log-file", bench.log.name]
    assert bench.run(*form, "--config", config, *options).returncode == 0
    assert statuses(bench.records()) == [
        ("latency_vs_T", version, T, "ok") for T in (4, 8) for version in ("v0", "v1", "v2")
    ]
    assert not (bench.folder / "other.jsonl").exists(), "the command line overrides the file"


def test_command_line_overrides_the_file(bench):
    config = bench.configure(model_config=None, pretrained="gpt2-medium", versions=["v2"])

    def plan(*options):
        result = bench.run("vram", "--config", config, "--dry-run", "-o", "json", *options)
        return {(row["version"], round(row["weights MB"])) for row in json.loads(result.stdout)}

    assert plan() == {("v2", 1419)}
    assert plan("--preset", "gpt2", "--version", "v1") == {("v1", 498)}
    both = bench.configure(model_config=TINY_MODEL, pretrained="gpt2")
    result = bench.run("vram", "--config", both, "--dry-run", "-o", "json")
    assert round(json.loads(result.stdout)[0]["weights MB"]) == 498, "pretrained overrides model_config"


@pytest.mark.parametrize(
    ("arguments", "sentences"),
    [
        (["latancy"], ['"latancy": expected a benchmark (all, latency, ', '(hint: did you mean "latency"?)']),
        (["--confg", "x"], ["--confg: expected a known option", '(hint: did you mean "--config"?)']),
        (["--config"], ["--config: expected a value, got none"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml: "]),
        (["--version", "v9"], ["--version: ", '"v9"']),
        (["--version", "v1", "latency"], ["(hint: name benchmarks before the options)"]),
        (["--resume", "--clear-log"], ["--resume: expected not beside --clear-log"]),
        (["-o", "xml"], ["-o: expected one of table, md, csv, json"]),
        (["--preset", "gpt3"], ["--preset: ", "gpt2-medium"]),
        (["perplexity"], ["perplexity: expected a token file", "--dataset"]),
        (["--device", "cuda"], ["device: ", "cuda"]),
        (["--max-tokens", "010"], ["--max-tokens: "]),
    ],
)
def test_wrong_command_line(bench, arguments, sentences):
    line = problem(bench.run(*arguments), 2)
    for sentence in sentences:
        assert sentence in line
    assert list(bench.folder.iterdir()) == []


def test_every_problem_of_a_config_is_reported_with_its_place(bench):
    config = bench.folder / "bad.yaml"
    config.write_text("seed: abc\nT_valus: [1]\nversions: [v1, v7]\nbatch_size: 1\nbatch_size: 2\n")
    lines = problems(bench.run("--config", config, "--version", "v8"), 2)
    for start in (":1:7: seed: ", ":2:1: ", ":3:16: versions[1]: ", ":5:1: "):
        assert any(line.startswith(f"{config}{start}") for line in lines), (start, lines)
    assert any(line.startswith("--version: ") for line in lines)
    assert len(lines) == 5
    assert not bench.log.exists()


def test_prompt_and_generation_must_fit(bench):
    config = bench.configure(prompt_length=500, T_values=[4, 12, 13])
    line = problem(bench.run("--config", config), 2)
    assert "T_values: expected prompt_length + T <= block_size (512 of custom), got 500 + 13 = 513" in line
    assert f"{config}:" in line
    assert not bench.log.exists()
    assert len(bench.measure("vram", "--config", bench.configure(prompt_length=500, T_values=[12]))) == 3
