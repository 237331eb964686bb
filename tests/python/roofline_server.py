"""A roofline server as a process of its own, and raw connections to it."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT / "python"), "OMP_WAIT_POLICY": "passive"}
GEMM = {"hardware": "h100", "M": 1, "N": 4096, "K": 4096, "precision": "fp16"}


@dataclass
class Server:
    process: subprocess.Popen
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def resident_mb(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024 / 1e6


def start(*arguments: str, setup: str = "") -> Server:
    """With ``setup``, a Python program that serves; otherwise the command with these arguments."""
    command = ["-c", setup] if setup else ["-m", "kvfuse.roofline.server", "--port", "0", *arguments]
    process = subprocess.Popen(
        [sys.executable, *command],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = process.stdout.readline()
    match = re.search(r":(\d+)/", line)
    assert match, f"{line!r}\n{process.communicate(timeout=10)[1]}"
    return Server(process, int(match[1]))


@contextmanager
def running(*arguments: str, setup: str = "") -> Iterator[Server]:
    server = start(*arguments, setup=setup)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.communicate()


def request(path: str, body: object = None, *, host: str = "localhost", headers: str = "") -> bytes:
    """The bytes of a request; a body makes it a POST of JSON."""
    text = b"" if body is None else json.dumps(body).encode()
    head = f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nHost: {host}\r\n{headers}"
    if body is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n"
    return head.encode() + b"\r\n" + text


def status_of(connection: socket.socket) -> int:
    """Of the answer; 0 if the connection ended without one."""
    try:
        first = connection.recv(1 << 16)
    except ConnectionResetError:
        return 0
    return int(first.split()[1]) if first else 0


def ask(server: Server, path: str = "/api/analyze", body: object = GEMM) -> tuple[int, float]:
    """Status and seconds of one answer on a connection of its own."""
    begin = time.perf_counter()
    with server.connect() as connection:
        connection.sendall(request(path, body))
        status = status_of(connection)
    return status, time.perf_counter() - begin


def wait_for_end(connection: socket.socket, seconds: float) -> bool:
    """Whether the server ends the connection in this time."""
    connection.settimeout(seconds)
    try:
        while connection.recv(1 << 20):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True
