"""Runs bench_runner in a folder of its own, as a user would, and reads what it wrote."""

import json
import os
import re
import subprocess
import time
from pathlib import Path

TINY_MODEL = {"n_layer": 1, "n_head": 1, "n_embd": 16, "block_size": 512, "vocab_size": 32}
ERROR = "bench_runner: error: "
TIMEOUT_S = 120


class Runner:
    def __init__(self, program: Path, folder: Path):
        self.program, self.folder = program, folder
        self.log = folder / "results.jsonl"

    def configure(self, name: str = "config.yaml", **changes) -> Path:
        """A small configuration, one key a line; None leaves a key out."""
        keys = {
            "model_config": TINY_MODEL,
            "versions": ["v0", "v1", "v2"],
            "prompt_length": 4,
            "T_values": [4, 8],
            "num_warmup_runs": 0,
            "num_measure_runs": 2,
            "log_file": self.log.name,
        } | changes
        lines = [f"{key}: {json.dumps(value)}" for key, value in keys.items() if value is not None]
        path = self.folder / name
        path.write_text("\n".join(lines) + "\n")
        return path

    def start(self, *arguments, environment=(), **popen) -> subprocess.Popen:
        command = [str(argument) for argument in (self.program, *arguments)]
        # Threads that wait for each other on a busy machine take many times as long as one.
        inherited = {name: value for name, value in os.environ.items() if name != "KVFUSE_ISA"}
        inherited["OMP_NUM_THREADS"] = "1"
        settings = {
            "cwd": self.folder,
            "env": inherited | dict(environment),
            "text": True,
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
        }
        return subprocess.Popen(command, **(settings | popen))

    def run(self, *arguments, **popen) -> subprocess.CompletedProcess:
        with self.start(*arguments, **popen) as process:
            return finish(process)

    def measure(self, *arguments, **popen) -> list[dict]:
        """The records that a run without any failure has added."""
        before = len(self.records()) if self.log.exists() else 0
        result = self.run(*arguments, **popen)
        assert result.returncode == 0, result.stderr
        return self.records()[before:]

    def records(self) -> list[dict]:
        text = self.log.read_text()
        assert text == "" or text.endswith("\n"), "the last line is torn"
        return [json.loads(line) for line in text.splitlines()]


def finish(process: subprocess.Popen) -> subprocess.CompletedProcess:
    try:
        out, err = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def problems(result: subprocess.CompletedProcess, code: int) -> list[str]:
    """What a failed run complains about; nothing else may stand on stderr but what was recorded before."""
    assert result.returncode == code, result
    lines = [line for line in result.stderr.splitlines() if not is_report(line)]
    assert lines and all(line.startswith(ERROR) for line in lines), result.stderr
    return [line.removeprefix(ERROR) for line in lines]


def problem(result: subprocess.CompletedProcess, code: int) -> str:
    (only,) = problems(result, code)
    return only


def is_report(line: str) -> bool:
    report = r"recorded |done in |stopped after |warning: |\w+ is left out: |\s*\d+%  "
    return re.match(report, line) is not None


def wait_for(process: subprocess.Popen, text: str) -> list[str]:
    """Reads stderr up to the line that contains `text`."""
    lines = []
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        line = process.stderr.readline()
        assert line, f"ended before {text!r}: {lines}"
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError(f"no {text!r} in {TIMEOUT_S} s: {lines}")


def statuses(records: list[dict]) -> list[tuple]:
    """Each point with its status, in the order of the log."""
    return [(r["benchmark_name"], r["version"], r.get("T"), r["status"]) for r in records]
