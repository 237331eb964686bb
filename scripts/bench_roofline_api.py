"""Latency of the roofline server's /api/analyze with many clients, each asking as soon as it is answered.

Server and clients share the machine. Prints percentiles and, with --log-file, adds a record to a file.
"""

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import uvloop

ROOT = Path(__file__).resolve().parents[1]
WORDS = {"hardware": "h100", "precision": "fp16"}


class Client(asyncio.Protocol):
    """One connection; keeps the seconds of every answer until ``deadline``."""

    def __init__(self, number: int, port: int, deadline: float) -> None:
        self.seconds: list[float] = []
        self.done = asyncio.get_running_loop().create_future()
        self._port = port
        self._deadline = deadline
        self._size = 1 + number
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        self._size = self._size % 16384 + 1
        body = json.dumps(WORDS | {"M": self._size, "N": 4096, "K": 4096}).encode()
        head = f"POST /api/analyze HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._begin = time.perf_counter()
        self._transport.write(head.encode() + body)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator or len(body) < int(re.search(rb"content-length: (\d+)", head)[1]):
            return
        now = time.perf_counter()
        self.seconds.append(now - self._begin)
        self._received = b""
        if not head.startswith(b"HTTP/1.1 200") or b"predicted_time_us" not in body:
            self.done.set_exception(RuntimeError(f"expected a prediction, got {head[:60]!r}"))
        elif now < self._deadline:
            self._ask()
        else:
            self.done.set_result(None)
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(RuntimeError("expected an answer, got the end of the connection"))


async def ask(port: int, clients: int, seconds: float) -> list[float]:
    """Seconds of every answer to every client."""
    loop = asyncio.get_running_loop()
    deadline = time.perf_counter() + seconds
    made = [
        await loop.create_connection(lambda each=each: Client(each, port, deadline), "127.0.0.1", port)
        for each in range(clients)
    ]
    await asyncio.gather(*(client.done for _, client in made))
    return [one for _, client in made for one in client.seconds]


def start_server() -> tuple[subprocess.Popen[str], int]:
    env = os.environ | {"PYTHONPATH": str(ROOT / "python")}
    command = [sys.executable, "-m", "kvfuse.roofline.server", "--port", "0", "--no-measure"]
    server = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
    line = server.stdout.readline()
    match = re.search(r":(\d+)/", line)
    if match is None:
        raise RuntimeError(f"expected the server to say where it listens, got {line!r}")
    return server, int(match[1])


def resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024 / 1e6


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=50, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=10, help="default: %(default)s")
    parser.add_argument("--log-file", type=Path, metavar="FILE", help="adds the record to this file")
    options = parser.parse_args()
    server, port = start_server()
    try:
        uvloop.run(ask(port, options.clients, min(options.seconds, 2)))  # warm-up
        before = resident_mb(server.pid)
        seconds = uvloop.run(ask(port, options.clients, options.seconds))
        after = resident_mb(server.pid)
    finally:
        server.terminate()
        server.wait()
    cuts = statistics.quantiles(seconds, n=1000, method="inclusive")
    record = {
        "schema_version": 1,
        "benchmark_name": "roofline_api",
        "path": "/api/analyze",
        "clients": options.clients,
        "seconds": options.seconds,
        "requests": len(seconds),
        "requests_per_s": len(seconds) / options.seconds,
        "ms": {
            name: 1e3 * cuts[index]
            for name, index in (("p50", 499), ("p90", 899), ("p99", 989), ("p99.9", 998))
        }
        | {"max": 1e3 * max(seconds)},
        "server_resident_mb": {"before": before, "after": after},
        "context": {"cpus": os.cpu_count(), "load_average": os.getloadavg()[0]},
    }
    print(", ".join(f"{name} {value:.2f} ms" for name, value in record["ms"].items()))
    print(f"{record['requests']} requests, {record['requests_per_s']:.0f} a second, server {after:.0f} MB")
    if options.log_file is not None:
        with options.log_file.open("a") as log:
            log.write(json.dumps(record) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
