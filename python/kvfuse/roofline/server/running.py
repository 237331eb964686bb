"""Running the application with uvicorn until a signal."""

import errno
import gc
import signal
import socket
import sys
from types import FrameType

import uvicorn
from fastapi import FastAPI

from kvfuse._exit_codes import INTERRUPTED
from kvfuse.roofline.server.application import create_app
from kvfuse.roofline.server.protocol import BoundedProtocol
from kvfuse.roofline.server.settings import LOOPBACK, Settings

_GRACE_SECONDS = 5  # for answers that are under way when a signal comes


class ServerError(OSError):
    """Why a server cannot start, in one sentence."""


class _Server(uvicorn.Server):
    """Ends streams when it stops, and remembers the signal instead of raising it again."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app
        self.stopped_by: int | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.stopped_by = self.stopped_by or sig
        super().handle_exit(sig, frame)
        self._captured_signals.clear()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.state.stopping.set()
        await super().shutdown(sockets)


def _bind(host: str, port: int) -> socket.socket:
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, OverflowError, UnicodeError) as error:
        raise ServerError(f"cannot listen on {host}:{port}: {error}") from error
    listener = socket.socket(family, kind)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        advice = " (choose another with --port)" if error.errno == errno.EADDRINUSE else ""
        raise ServerError(f"cannot listen on {host}:{port}: {error.strerror or error}{advice}") from error
    return listener


def serve(port: int = 8000, settings: Settings | None = None) -> int:
    """Serves until SIGTERM or Ctrl-C, on ``settings.host``; port 0 takes any that is free.

    Returns:
        The exit code: 0 after SIGTERM, 130 after Ctrl-C.

    Raises:
        ServerError: the port is taken, or the address is not this machine's.
    """
    settings = settings or Settings()
    listener = _bind(settings.host, port)
    app = create_app(settings)
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    server = _Server(config, app)
    for one in (signal.SIGINT, signal.SIGTERM):  # from here on, not only once uvicorn runs
        signal.signal(one, server.handle_exit)
    shown = f"[{settings.host}]" if ":" in settings.host else settings.host
    print(f"kvfuse roofline: http://{shown}:{listener.getsockname()[1]}/ (Ctrl-C stops it)", flush=True)
    if settings.host not in LOOPBACK:
        warning = "others can reach this address, and there is no login"
        print(f"kvfuse roofline: warning: {warning}", file=sys.stderr, flush=True)
    # What is loaded by now stays: looking through all of torch for garbage would hold up every client.
    gc.collect()
    gc.freeze()
    server.run(sockets=[listener])
    return INTERRUPTED if server.stopped_by == signal.SIGINT else 0
