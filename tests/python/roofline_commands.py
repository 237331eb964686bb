"""What the tests of ``kvfuse roofline`` share."""

import json
from pathlib import Path

from kvfuse.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs/results/1-default.jsonl"
CALIBRATION = ROOT / "tests/python/calibration.json"
LETTERS = "H=4096,L=32,nh=32,nkv=8,dh=128,dff=14336"


class Commands:
    """``kvfuse roofline`` on a machine that nobody calibrated."""

    def __init__(self, capsys, monkeypatch, folder: Path) -> None:
        self._capsys = capsys
        monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))

    def __call__(self, *words) -> tuple[int, str, str]:
        """The exit code, standard output and standard error of a command."""
        code = main(["roofline", *map(str, words)])
        return code, *self._capsys.readouterr()

    def json(self, *words):
        """What a command prints with --json."""
        code, out, err = self(*words, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)
