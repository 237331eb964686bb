"""kvfuse.roofline.server as a process: bytes that are no HTTP, hosts, paths, streams, signals, its start."""

import json
import signal
import time

import pytest
from roofline_server import ask, request, start, status_of


def test_what_is_no_http(live):
    for text in (b"hello\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/9.9\r\n\r\n", b"\x00" * 100):
        with live.connect() as connection:
            connection.sendall(text)
            assert status_of(connection) in (0, 400)
    assert ask(live)[0] == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        (b"Host: localhost\r\n", 200),
        (b"Host: evil.example\r\n", 400),
        (b"", 400),
        (b"Host: localhost\r\n" * 2, 400),
    ],
)
def test_hosts(live, host, status):
    with live.connect() as connection:
        connection.sendall(b"GET /api/models HTTP/1.1\r\n" + host + b"\r\n")
        assert status_of(connection) == status


@pytest.mark.parametrize(
    "path",
    [
        "/page/../application.py",
        "/page/%2e%2e/application.py",
        "/page/..%2fapplication.py",
        "/page/%2e%2e%2f%2e%2e%2f%2e%2e%2f__init__.py",
        "/page//etc/passwd",
        "/page/%2fetc%2fpasswd",
        "/page/..\\application.py",
        "/page/%00",
        "/page/" + "a" * 5000,
        "/page/",
        "/docs/../application.py",
        "/docs/%2e%2e%2fapplication.py",
        "/docs/redoc.standalone.js",
        "/../../../../../../etc/passwd",
        "//etc/passwd",
    ],
)
def test_no_path_reaches_another_file(live, path):
    with live.connect() as connection:
        connection.sendall(request(path))
        assert status_of(connection) == 404


def test_stream_of_gpu_states(live):
    with live.connect() as connection:
        begin = time.monotonic()
        connection.sendall(request("/api/nvml/stream"))
        text = b""
        while text.count(b"\ndata: ") < 3:
            text += connection.recv(1 << 16)
        assert time.monotonic() - begin > 1.9
    head, _, events = text.partition(b"\r\n\r\n")
    assert b"content-type: text/event-stream" in head
    assert b"content-security-policy" in head
    data = [line for line in events.split(b"\n") if line.startswith(b"data: ")]
    for line in data[:-1]:
        state = json.loads(line.removeprefix(b"data: "))
        assert state["available"] == bool(state["gpus"])


def test_streams_that_are_left_make_room_for_others(live):
    def open_stream():
        connection = live.connect()
        connection.sendall(request("/api/nvml/stream"))
        return connection, status_of(connection)

    first = [open_stream() for _ in range(32)]
    assert {status for _, status in first} == {200}
    assert ask(live)[0] == 200
    refused, status = open_stream()
    assert status == 503
    for connection in (refused, *(one for one, _ in first)):
        connection.close()
    for _ in range(50):
        again, status = open_stream()
        again.close()
        if status == 200:
            return
        time.sleep(0.2)
    pytest.fail("no stream came free")


WARNING = "kvfuse roofline: warning: others can reach this address, and there is no login\n"


@pytest.mark.parametrize(
    ("sent", "code", "host", "warning"),
    [(signal.SIGTERM, 0, "127.0.0.1", ""), (signal.SIGINT, 130, "0.0.0.0", WARNING)],
)
def test_signals_end_it_with_what_is_open(sent, code, host, warning):
    server = start("--no-measure", "--host", host)
    try:
        stream, idle, half = (server.connect() for _ in range(3))
        stream.sendall(request("/api/nvml/stream"))
        half.sendall(b"GET /api")
        assert status_of(stream) == 200
        server.process.send_signal(sent)
        out, error = server.process.communicate(timeout=20)
    finally:
        server.process.kill()
    assert server.process.returncode == code
    assert (out, error) == ("", warning)
    idle.close()


def test_a_port_that_is_taken(live, capsys):
    from kvfuse.roofline.cli import run

    assert run(["serve", "--port", str(live.port)]) == 4
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "another with --port" in lines[0]


@pytest.mark.parametrize("words", [["--port", "70000"], ["--nothing"], ["--port", "x"]])
def test_wrong_words(words, capsys):
    from kvfuse.roofline.cli import run

    assert run(["serve", *words]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_missing_hardware_file(tmp_path, capsys):
    from kvfuse.roofline.cli import run

    assert run(["serve", "--hardware-file", str(tmp_path / "none.json")]) == 3
    assert "none.json" in capsys.readouterr().err
