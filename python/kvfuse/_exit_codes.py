"""How the package's commands end: with the exit codes of bench_runner, and one line for what went wrong."""

import sys

USAGE, DATA, RESOURCES, INTERRUPTED = 2, 3, 4, 130


def fail(name: str, sentence: str, code: int) -> int:
    """Says on stderr what went wrong in the command ``name``; returns ``code``."""
    print(f"{name}: error: {sentence}", file=sys.stderr)
    return code
