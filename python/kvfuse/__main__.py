"""``kvfuse``, or ``python -m kvfuse``: says what was built and checks that it runs; the roofline toolkit."""

import argparse
import sys
from typing import Any

import torch

import kvfuse
from kvfuse import _library
from kvfuse._self_check import describe, run_checks


def main(arguments: list[str] | None = None) -> int:
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["roofline"]:
        from kvfuse.roofline.cli import run

        return run(words[1:])
    parser = argparse.ArgumentParser(
        prog="kvfuse",
        description=kvfuse.__doc__.splitlines()[0],
        epilog="kvfuse roofline --help: predictions, recommendations, calibration and validation",
    )
    parser.add_argument("--version", action="version", version=f"kvfuse {kvfuse.__version__}")
    parser.add_argument(
        "--self-check",
        action="store_true",
        help="print what was built and exercise each operator once; exit status 1 if a result is wrong",
    )
    if not parser.parse_args(words).self_check:
        parser.print_help()
        return 0
    return self_check()


def self_check() -> int:
    try:
        info = kvfuse.build_info()
    except RuntimeError as error:
        print(f"kvfuse: error: {error}", file=sys.stderr)
        return 1
    print(f"kvfuse {info['version']} ({info['compiler']})")
    print(f"libraries: {_library.folder()}")
    print(f"PyTorch: {torch.__version__} (built with {info['torch_version']})")
    print(f"instruction set: {info['active_isa']} (this machine runs {', '.join(info['available_isas'])})")
    print(f"head sizes: {', '.join(map(str, info['supported_head_dims']))}")
    print(f"CUDA operators: {_cuda_state(info)}")
    checks = run_checks()
    for check in checks:
        print(f"{'ok    ' if check.passed else 'FAILED'} {describe(check)}")
    return 0 if all(check.passed for check in checks) else 1


def _cuda_state(info: dict[str, Any]) -> str:
    if not info["cuda_architectures"]:
        return "not built"
    if not info["cuda"]:
        return "missing (the library was built but is not beside the others)"
    head_dims = ", ".join(map(str, info["cuda_head_dims"]))
    state = "loaded" if info["cuda_loaded"] else "not loaded, PyTorch finds no GPU"
    return f"{state} (built for {info['cuda_architectures']}; head sizes: {head_dims})"


if __name__ == "__main__":
    sys.exit(main())
