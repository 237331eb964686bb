"""``python -m kvfuse.roofline.server``: the command ``kvfuse roofline serve``."""

import sys

from kvfuse.roofline.cli import run

if __name__ == "__main__":
    sys.exit(run(["serve", *sys.argv[1:]]))
