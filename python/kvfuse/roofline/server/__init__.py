"""The roofline toolkit over HTTP, and its page: ``kvfuse roofline serve``, or an ASGI server and ``app``.

``create_app`` makes the application, ``serve`` runs it with the bounds on connections that an application
cannot set itself (docs/roofline.md).
"""

from typing import TYPE_CHECKING

try:
    import fastapi
    import uvicorn  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"kvfuse.roofline.server needs FastAPI and uvicorn, and {error.name} is missing: "
        "pip install kvfuse[server]",
        name=error.name,
    ) from error

from kvfuse.roofline.server.application import create_app
from kvfuse.roofline.server.running import ServerError, serve
from kvfuse.roofline.server.settings import Limits, Settings

if TYPE_CHECKING:
    app: fastapi.FastAPI

__all__ = ["Limits", "ServerError", "Settings", "app", "create_app", "serve"]


def __getattr__(name: str) -> "fastapi.FastAPI":
    """``app``, with the settings that are usual: made when something asks for it, such as ``uvicorn``."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()["app"] = create_app(Settings())
    return globals()["app"]
