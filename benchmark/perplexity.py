"""``python benchmark/perplexity.py``: the same as ``python -m kvfuse.perplexity``."""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1] / "python"))
    runpy.run_module("kvfuse.perplexity", run_name="__main__")
