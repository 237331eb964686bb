"""Locks a GPU's clocks while a command runs, so that its times repeat; optional, through nvidia-smi.

    python scripts/gpu_clocks.py                                  # what the clocks are, and whether they vary
    sudo python scripts/gpu_clocks.py run build/cpu/bench_runner latency --device cuda

Locking needs the rights of an administrator. The clocks go back to what the driver chooses when the command
ends, also by Ctrl-C. Exit code: the command's; 2 usage, 4 without GPU or without the right.
"""

import argparse
import signal
import subprocess
import sys
from collections.abc import Sequence

USAGE, RESOURCES = 2, 4
QUERY = ("index", "name", "pstate", "clocks.sm", "clocks.max.sm", "clocks.mem", "clocks.max.mem")


class ClocksError(Exception):
    """What nvidia-smi cannot do, in one sentence."""


def nvidia_smi(*words: str) -> str:
    try:
        result = subprocess.run(["nvidia-smi", *words], capture_output=True, text=True)
    except FileNotFoundError:
        raise ClocksError(
            "expected nvidia-smi, which comes with the driver of a GPU, found none (nothing needs it)"
        ) from None
    if result.returncode != 0:
        said = (result.stdout + result.stderr).strip().splitlines()
        raise ClocksError(f"nvidia-smi {' '.join(words)}: {said[-1] if said else result.returncode}")
    return result.stdout


def state(gpu: str) -> dict[str, str]:
    line = nvidia_smi("-i", gpu, f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits")
    return dict(zip(QUERY, (field.strip() for field in line.strip().split(",")), strict=True))


def describe(found: dict[str, str]) -> str:
    return (
        f"GPU {found['index']} ({found['name']}): {found['pstate']}, SM {found['clocks.sm']} of "
        f"{found['clocks.max.sm']} MHz, memory {found['clocks.mem']} of {found['clocks.max.mem']} MHz"
    )


def run_locked(gpu: str, command: Sequence[str]) -> int:
    """Runs ``command`` with the SM clock at its maximum."""
    most = state(gpu)["clocks.max.sm"]
    nvidia_smi("-i", gpu, f"--lock-gpu-clocks={most},{most}")
    # Ctrl-C is the command's to act on: it ends, and then the clocks are unlocked.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        child = subprocess.Popen(command, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        code = child.wait()
        return code if code >= 0 else 128 - code
    except OSError as error:
        raise ClocksError(f"{command[0]}: {error.strerror}") from None
    finally:
        nvidia_smi("-i", gpu, "--reset-gpu-clocks")
        signal.signal(signal.SIGINT, before)


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--gpu", default="0", metavar="INDEX", help="default: 0")
    parser.add_argument("action", nargs="?", choices=("state", "run"), default="state")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="what to run")
    options = parser.parse_args(words)
    if (options.action == "run") != bool(options.command):
        parser.error("expected a command after run, and after run alone")
    try:
        if options.action == "run":
            return run_locked(options.gpu, options.command)
        print(describe(state(options.gpu)))
    except ClocksError as error:
        print(f"gpu_clocks: error: {error}", file=sys.stderr)
        return RESOURCES
    return 0


if __name__ == "__main__":
    sys.exit(main())
