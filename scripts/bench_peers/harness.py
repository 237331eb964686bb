"""Calls the peers' harness, which is no part of this project: one side a call, in a process of its own."""

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_check.rows import ROOT, python_environment

MODEL = "gpt2"
SIDE_LIMIT_S = 300  # of one side in one round


class HarnessError(Exception):
    """What the harness did not do, in one sentence."""


@dataclass(frozen=True)
class Side:
    """Who generates: a peer by the harness's name, or a version of ours."""

    name: str
    ours: bool

    def words(self) -> list[str]:
        """What the harness is told."""
        if not self.ours:
            return ["--peers", self.name]
        command = [sys.executable, str(ROOT / "scripts" / "peer_command.py"), "--version", self.name]
        return ["--peers", "none", "--extra", f"{self.name}={shlex.join(command)}"]


class Harness:
    """The harness in a folder."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.run_py = folder.resolve() / "run.py"
        if not self.run_py.is_file():
            raise HarnessError(
                f"{folder}: expected the peers' harness (run.py), which is not part of this project, got "
                "nothing (--harness DIR says where it is)"
            )
        self.environment = python_environment(ROOT / "python") | {"PEERS_THREADS": str(threads)}

    def set_up(self) -> None:
        """Makes the peers' environment, unless it is there.

        Raises:
            HarnessError: it could not be made.
        """
        self._call("--peers", "none", "--totals", "1")

    def measure(self, side: Side, totals: list[int]) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the harness says of the run and, of the side, an entry with its times or with ``error``."""
        try:
            run = self._call(*side.words(), "--totals", ",".join(map(str, totals)))
        except HarnessError as error:
            return {}, {"error": str(error)}
        entry: dict[str, Any] = next(iter(run.get("peers", [])), {})
        if entry.get("error") == "":  # killed by a signal, say
            return run, {"error": f"{side.name} ended without an answer or a word"}
        if "error" not in entry and not {"rows", "prefill_s"} <= entry.keys():
            return run, {"error": f"expected rows and prefill_s of {side.name} from the harness, got none"}
        return run, entry

    def _call(self, *words: str) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out.json"
            command = [sys.executable, self.run_py, "--models", MODEL, "--reps", "1", "--attn", "none"]
            command += ["--timeout", str(SIDE_LIMIT_S), "--out", out, *words]
            said = self._run(list(map(str, command)))
            if not out.exists():
                return {}
            try:
                return json.loads(out.read_text())
            except ValueError:
                raise HarnessError(
                    f"expected JSON from the harness, got {said or 'something else'}"
                ) from None

    def _run(self, command: list[str]) -> str:
        """Its last line on stderr. Whatever ends us ends all the processes it has started."""
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
            start_new_session=True,
        )
        try:
            lines = process.communicate()[1].strip().splitlines()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        if process.returncode != 0:
            raise HarnessError(f"the harness ended with {process.returncode}: {' '.join(lines[-1:])}")
        return " ".join(lines[-1:])
