"""Checks and measures the CUDA operators on a machine with a GPU; the package gpu_check beside it does it."""

import sys

from gpu_check.main import main

if __name__ == "__main__":
    sys.exit(main())
