"""kvfuse.roofline.server as a process: many, slow and hostile clients."""

import contextlib
import json
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from kvfuse import roofline
from roofline_server import GEMM, ask, request, running, status_of, wait_for_end

CLIENTS = 50
# Deadlines of seconds that a test need not wait for.
IMPATIENT = """
from kvfuse.roofline import server
from kvfuse.roofline.server import protocol
protocol.HEAD_SECONDS = 1
protocol.STALLED_SECONDS = 1
server.serve(0, server.Settings(limits=server.Limits(request_seconds=1)))
"""


@pytest.fixture(scope="module")
def impatient():
    with running(setup=IMPATIENT) as server:
        yield server


def read_answer(connection) -> tuple[int, bytes]:
    """Status and body of an answer that says its length."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(1 << 16)
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split()[0])
    while len(body) < length:
        body += connection.recv(1 << 16)
    return int(head.split()[1]), body


def ask_often(server, number: int, times: int) -> None:
    """Different products on one connection, each answered with its own prediction."""
    machine = roofline.get_hardware("h100")
    with server.connect() as connection:
        for each in range(times):
            M = 1 + number * times + each
            connection.sendall(request("/api/analyze", GEMM | {"M": M}))
            status, body = read_answer(connection)
            assert status == 200
            want = roofline.predict_gemm(machine, M, 4096, 4096, "fp16")
            assert json.loads(body)["theory"]["predicted_time_us"] == want.predicted_time_us


def test_fifty_clients_at_once(live):
    def round_of(times: int) -> float:
        with ThreadPoolExecutor(CLIENTS) as clients:
            list(clients.map(lambda number: ask_often(live, number, times), range(CLIENTS)))
        return live.resident_mb()

    before = round_of(10)
    after = max(round_of(20) for _ in range(3))
    assert after <= 1.05 * before


def test_large_answers_leave_no_memory_behind(live):
    shapes = [{"M": M, "N": 64, "K": 64} for M in range(1, 4097)]
    sweep = {"hardware": "h100", "shapes": shapes, "precisions": ["fp16"]}

    def sweep_once() -> float:
        with live.connect() as connection:
            connection.sendall(request("/api/sweep", sweep))
            status, body = read_answer(connection)
        assert status == 200
        assert len(json.loads(body)["results"]) == 4096
        return live.resident_mb()

    before = max(sweep_once() for _ in range(2))
    assert sweep_once() <= 1.05 * before


def test_others_are_answered_beside_a_large_sweep(live):
    shapes = [{"M": M, "N": 64, "K": 64} for M in range(1, 4097)]
    text = request("/api/sweep", {"hardware": "h100", "shapes": shapes, "precisions": ["fp16"]})
    ended = threading.Event()
    answered = []

    def sweep():
        with live.connect() as connection:
            connection.sendall(text)
            answered.append(read_answer(connection)[0])
        ended.set()

    thread = threading.Thread(target=sweep)
    thread.start()
    beside = 0
    while not ended.is_set():
        assert ask(live)[0] == 200
        beside += 1
    thread.join()
    assert answered == [200]
    assert beside >= 3


def test_slow_heads_do_not_hold_up_others(impatient):
    before = impatient.resident_mb()
    slow = [impatient.connect() for _ in range(200)]
    for connection in slow:
        connection.sendall(b"POST /api/ana")
    for letter in b"lyze HTTP":
        for connection in slow[:20]:
            with contextlib.suppress(OSError):  # ended by now, as it should
                connection.sendall(bytes([letter]))
        assert ask(impatient)[0] == 200
        assert impatient.resident_mb() <= 1.05 * before
        time.sleep(0.05)
    assert all(wait_for_end(connection, 10) for connection in slow)
    assert ask(impatient)[0] == 200


def test_a_connection_without_a_request_ends(impatient):
    silent, blank = impatient.connect(), impatient.connect()
    blank.sendall(b"\r\n" * 10)
    kept = impatient.connect()
    kept.sendall(request("/api/models"))
    assert read_answer(kept)[0] == 200
    kept.sendall(b"\r\n")  # stays open between requests, but not like this
    assert all(wait_for_end(one, 10) for one in (silent, blank, kept))


def test_slow_bodies_are_answered_408(impatient):
    slow = [impatient.connect() for _ in range(50)]
    for connection in slow:
        connection.sendall(b"POST /api/validate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\nx")
    assert ask(impatient)[0] == 200
    assert {status_of(connection) for connection in slow} == {408}
    assert all(wait_for_end(connection, 5) for connection in slow)


CHUNKED = b"POST /api/validate HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"


def test_bodies_that_are_too_large_are_not_read(live):
    before = live.resident_mb()
    with live.connect() as announced:
        announced.sendall(
            b"POST /api/validate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n"
        )
        assert status_of(announced) == 413
        assert wait_for_end(announced, 5)
    with live.connect() as endless:
        endless.sendall(CHUNKED)
        with pytest.raises(OSError):  # the server ends it after 1 MiB
            for _ in range(1000):
                endless.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
    with live.connect() as tiny_chunks:
        tiny_chunks.sendall(CHUNKED)
        with pytest.raises(OSError):
            for _ in range(1000):
                tiny_chunks.sendall(b"1\r\n \r\n" * 10000)
    assert live.resident_mb() <= 1.05 * before
    assert ask(live)[0] == 200


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n", b"X: " + b"y" * 997 + b"\r\n"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ", b"y" * 1000),
        (b"GET /", b"y" * 1000),
        (CHUNKED + b"0\r\n", b"X: " + b"y" * 997 + b"\r\n"),
    ],
    ids=["headers", "one header", "path", "trailers"],
)
def test_endless_heads_end(live, begin, more):
    before = live.resident_mb()
    with live.connect() as connection:
        connection.sendall(begin)
        with pytest.raises(OSError):
            for _ in range(100_000):
                connection.sendall(more)
    assert live.resident_mb() <= 1.05 * before + 10
    assert ask(live)[0] == 200


def test_requests_ahead_of_their_answers_are_few(live):
    with live.connect() as few:
        few.sendall(request("/api/options") * 5)
        text = b""
        while text.count(b"HTTP/1.1 200") < 5:
            text += few.recv(1 << 16)
    with live.connect() as many:
        many.sendall(request("/api/options") * 1000)
        text = b""
        while more := many.recv(1 << 16):
            text += more
    assert text.count(b"HTTP/1.1 200") < 50


def sockets_of(server) -> int:
    folder = f"/proc/{server.process.pid}/fd"
    links = (os.path.join(folder, name) for name in os.listdir(folder))
    return sum(os.readlink(link).startswith("socket:") for link in links if os.path.lexists(link))


def test_who_does_not_read_is_let_go(impatient):
    time.sleep(1)  # connections of earlier tests end
    before = sockets_of(impatient)
    unread = []
    for _ in range(10):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        connection.connect(("127.0.0.1", impatient.port))
        connection.sendall(request("/page/plotly.min.js"))
        unread.append(connection)
    assert ask(impatient)[0] == 200
    assert sockets_of(impatient) >= before + 10
    for _ in range(50):
        time.sleep(0.2)
        if sockets_of(impatient) <= before:
            break
    assert sockets_of(impatient) <= before
    for connection in unread:
        connection.close()
