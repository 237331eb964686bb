"""``python benchmark/versions.py``: the same as ``python -m kvfuse.versions`` in a checkout that is built."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1] / "python"))
    runpy.run_module("kvfuse.versions", run_name="__main__")
