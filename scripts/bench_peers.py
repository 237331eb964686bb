"""Measures kvfuse beside its peers on the CPU; the package bench_peers beside it does it."""

import signal
import sys

from bench_peers.main import main, terminate

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, terminate)
    sys.exit(main())
