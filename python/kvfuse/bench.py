"""``python -m kvfuse.bench``: bench_runner, the C++ program, with the same words and the same exit codes.

Imports nothing but the standard library, so that ``python benchmark/main.py`` needs nothing installed.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import NoReturn

CHECKOUT = Path(__file__).resolve().parents[2]
RESOURCES = 4  # bench_runner's exit code for what the machine lacks


def find_runner() -> Path | None:
    """KVFUSE_BENCH_RUNNER, else what a checkout has built (in KVFUSE_BUILD_DIR or build/cpu), else PATH's."""
    if chosen := os.environ.get("KVFUSE_BENCH_RUNNER"):
        return Path(chosen)
    built = CHECKOUT / os.environ.get("KVFUSE_BUILD_DIR", "build/cpu") / "bench_runner"
    if (CHECKOUT / "CMakeLists.txt").is_file() and built.is_file():
        return built
    found = shutil.which("bench_runner")
    return Path(found) if found else None


def run(words: list[str]) -> NoReturn:
    """Becomes bench_runner with these words."""
    runner = find_runner()
    if runner is None:
        where = "build/cpu, and none on PATH"
        problem = f"expected bench_runner in {where} (hint: build it with scripts/bootstrap in a checkout)"
    else:
        try:
            os.execv(runner, [str(runner), *words])
        except OSError as error:
            problem = f"{runner}: expected a program, got: {error.strerror} (hint: see KVFUSE_BENCH_RUNNER)"
    print(f"kvfuse.bench: error: {problem}", file=sys.stderr)
    sys.exit(RESOURCES)


if __name__ == "__main__":
    run(sys.argv[1:])
