"""``python benchmark/main.py latency --version v0 v1``: the same as bench_runner with these words."""

import runpy
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).parents[1] / "python/kvfuse/bench.py"), run_name="__main__")
