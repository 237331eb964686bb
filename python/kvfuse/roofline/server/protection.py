"""What stands before every route: the Host check, limits on bodies and time, the headers of answers."""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kvfuse.roofline.server.errors import error_body
from kvfuse.roofline.server.settings import ANY_ADDRESS, LOOPBACK, Settings

# Everything from this server and no code in pages; an image may be data, as charts are saved.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; font-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
_RAW_HEADERS = [(name.encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]
_NO_STORE = (b"cache-control", b"no-store")

_HOST = re.compile(rb"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::\d{1,5})?")


class _HostRule:
    """Which Host headers are ours: another one comes from a name that was pointed at this machine."""

    def __init__(self, settings: Settings) -> None:
        self._names = {*LOOPBACK, settings.host.lower(), *(name.lower() for name in settings.allowed_hosts)}
        # No name can be pointed at us by way of an address.
        self._any_address = settings.host in ANY_ADDRESS
        if self._any_address:
            self._names.add(socket.gethostname().lower())

    def admits(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        hosts = [value for name, value in headers if name == b"host"]
        match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
        if match is None:
            return False
        host = (match[1] or match[2]).decode().lower()
        return host in self._names or (self._any_address and _is_address(host))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class _Refusal(Exception):
    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class _TimeLimit:
    """Cancels the task that makes it, unless lifted; a scope of anyio would be a tenth of a short request."""

    def __init__(self, seconds: float) -> None:
        self.expired = False
        self._task = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._expire)

    def _expire(self) -> None:
        self.expired = True
        if self._task is not None:
            self._task.cancel()

    def lift(self) -> None:
        self._timer.cancel()


class Protection:
    """ASGI middleware. Bodies are read here, whole, so that one place counts them and limits their time."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._host_rule = _HostRule(settings)
        self._limits = settings.limits
        self._buffered = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_api = scope["path"].startswith("/api/")

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message["headers"], *_RAW_HEADERS]
                if is_api and all(name != b"cache-control" for name, _ in headers):
                    headers.append(_NO_STORE)
                message = {**message, "headers": headers}
            await send(message)

        if not self._host_rule.admits(scope["headers"]):
            sentence = "expected the Host header to name this server (allow another with --allow-host)"
            await self._refuse(_Refusal(400, sentence), scope, receive, send_with_headers)
            return
        held = bytearray()
        late = _Refusal(408, f"expected the body within {self._limits.request_seconds:g} s")
        time_limit = _TimeLimit(self._limits.request_seconds)

        async def send_in_time(message: Message) -> None:
            time_limit.lift()  # a stream may go on for as long as its client reads
            await send_with_headers(message)

        try:
            if _has_body(scope):
                if not await self._read_body(scope, receive, held):
                    return
                receive = _replay(bytes(held), receive)
            late = _Refusal(503, f"the answer took more than {self._limits.request_seconds:g} s")
            await self._app(scope, receive, send_in_time)
        except _Refusal as refusal:
            await self._refuse(refusal, scope, receive, send_with_headers)
        except asyncio.CancelledError:
            if not time_limit.expired:
                raise
            await self._refuse(late, scope, receive, send_with_headers)
        finally:
            time_limit.lift()
            self._buffered -= len(held)

    async def _read_body(self, scope: Scope, receive: Receive, held: bytearray) -> bool:
        """Adds the body to ``held``; False if the client left."""
        limits = self._limits
        too_large = f"expected a body of at most {limits.body_bytes} bytes, got more"
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        if any(int(length) > limits.body_bytes for length in lengths):
            raise _Refusal(413, too_large)
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return False
            body = message.get("body", b"")
            held += body
            self._buffered += len(body)
            if len(held) > limits.body_bytes:
                raise _Refusal(413, too_large)
            if self._buffered > limits.buffered_bytes:
                raise _Refusal(503, "the server holds as many bodies as it may: ask again later")
            more = message.get("more_body", False)
        return True

    @staticmethod
    async def _refuse(refusal: _Refusal, scope: Scope, receive: Receive, send: Send) -> None:
        answer = error_body(refusal.status, str(refusal), "request")
        answer.headers["connection"] = "close"  # the rest of what the client sends is not read
        await answer(scope, receive, send)


def _has_body(scope: Scope) -> bool:
    return any(name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"])


def _replay(body: bytes, receive: Receive) -> Receive:
    waiting = [body]

    async def replayed() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return replayed
