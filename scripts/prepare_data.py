"""``python -m kvfuse.prepare_data`` in a checkout, before anything is built."""

import runpy
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).parents[1] / "python/kvfuse/prepare_data.py"), run_name="__main__")
