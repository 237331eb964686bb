"""The application: routes, pages, and what stands before them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

import kvfuse
from kvfuse.roofline.server.answers import Answers
from kvfuse.roofline.server.errors import add_error_answers
from kvfuse.roofline.server.gpu_state import GpuMonitor
from kvfuse.roofline.server.pages import add_pages
from kvfuse.roofline.server.protection import Protection
from kvfuse.roofline.server.routes import gpu_router, theory_router
from kvfuse.roofline.server.settings import Settings


def create_app(settings: Settings) -> FastAPI:
    """The roofline toolkit as an ASGI application.

    ``app.state.stopping`` is an ``asyncio.Event``: set, it ends the streams, so that a server can stop.

    Raises:
        ValueError: a machine of the settings cannot be offered.
    """
    answers = Answers(settings)
    stopping = asyncio.Event()

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        answers.close()

    app = FastAPI(
        title="kvfuse roofline",
        summary="What transformer inference should take on a machine, and in which formats to run it.",
        version=kvfuse.__version__,
        docs_url=None,  # FastAPI's own pages load their scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},
        lifespan=lifespan,
    )
    app.state.stopping = stopping
    for router in (
        theory_router(answers, public=False),
        theory_router(answers, public=True),
        gpu_router(GpuMonitor(), stopping, settings.limits),
    ):
        app.router.routes.extend(router.routes)  # an included router is searched anew for each request
    add_pages(app)
    add_error_answers(app)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["content-type"],
        )
    app.add_middleware(Protection, settings=settings)  # outermost: the last that is added
    return app
