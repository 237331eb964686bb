"""Paths of the API."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.sse import EventSourceResponse

from kvfuse.roofline.results import Recommendation
from kvfuse.roofline.server import schemas
from kvfuse.roofline.server.answers import Answers
from kvfuse.roofline.server.errors import ERROR_ANSWERS, Refused
from kvfuse.roofline.server.gpu_state import GpuMonitor, GpuState
from kvfuse.roofline.server.json_route import JsonRoute
from kvfuse.roofline.server.settings import Limits

_STREAM_SECONDS = 1.0
_JSONL_BODY = {
    "required": True,
    "content": {
        kind: {"schema": {"type": "string", "description": "The lines of a results file of bench_runner."}}
        for kind in ("text/plain", "application/x-ndjson")
    },
}


def theory_router(answers: Answers, *, public: bool) -> APIRouter:
    """What is predicted; measured, too, unless the paths are public ones."""
    router = APIRouter(
        prefix="/api/public" if public else "/api",
        tags=["public" if public else "theory"],
        route_class=JsonRoute,
        responses=ERROR_ANSWERS,
    )

    # Handlers are coroutines: each takes less than handing it to a thread and back. Routes are tried in
    # order: the one that is asked most stands first.
    @router.post("/analyze")
    async def analyze(request: schemas.AnalyzeRequest) -> schemas.AnalyzeAnswer:
        """One matrix product on the roofline, and measured beside it if asked for."""
        machine = answers.machine_of(request)
        measuring = answers.measuring_for(request.measure, public)
        return await answers.analyze(machine, request, request.precision, measuring)

    @router.get("/hardware")
    async def hardware() -> schemas.HardwareAnswer:
        """The machines, with the source of every figure."""
        return answers.hardware

    @router.get("/models")
    async def models() -> schemas.ModelsAnswer:
        """The models known by name."""
        return answers.models

    @router.get("/options")
    async def options() -> schemas.OptionsAnswer:
        """What requests can name, and the limits of this server."""
        return answers.options(public)

    @router.post("/sweep")
    async def sweep(request: schemas.SweepRequest) -> schemas.SweepAnswer:
        """Every shape in every format."""
        return await answers.sweep(request, public)

    @router.post("/recommend")
    async def recommend(request: schemas.RecommendRequest) -> Recommendation:
        """Which strategy and which attention, and the figures that say so."""
        return answers.recommend(request)

    @router.post("/predict")
    async def predict(request: schemas.PredictRequest) -> schemas.PredictAnswer:
        """A decode step or a prefill, operator by operator."""
        return answers.predict(request)

    @router.post("/kv")
    async def kv(request: schemas.KvRequest) -> schemas.KvAnswer:
        """Sizes of the KV cache over contexts, and where they outgrow the weights."""
        return await answers.kv(request)

    @router.post("/attention")
    async def attention(request: schemas.AttentionRequest) -> schemas.AttentionAnswer:
        """One layer's attention by every kernel that does it."""
        return answers.attention(request)

    @router.post("/validate", openapi_extra={"requestBody": _JSONL_BODY})
    async def validate(request: Request) -> schemas.ValidateAnswer:
        """Predictions beside the records of a results file, which is the body itself."""
        return await answers.validate(await request.body())

    return router


def gpu_router(monitor: GpuMonitor, stopping: asyncio.Event, limits: Limits) -> APIRouter:
    """The state of this machine's GPUs, once or as a stream until ``stopping`` is set."""
    router = APIRouter(prefix="/api/nvml", tags=["gpu"], responses=ERROR_ANSWERS)
    open_streams = 0

    async def one_of_the_streams() -> AsyncIterator[None]:
        nonlocal open_streams
        if open_streams >= limits.streams:
            raise Refused(503, f"{open_streams} streams are open already: ask again later", "request")
        open_streams += 1
        try:
            yield
        finally:
            open_streams -= 1

    @router.get("/status")
    async def status() -> GpuState:
        """`available` is false without a GPU, and `reason` says why."""
        return await monitor.state()

    @router.get("/stream", response_class=EventSourceResponse)
    async def stream(_slot: Annotated[None, Depends(one_of_the_streams)]) -> AsyncIterator[GpuState]:
        """The same as server-sent events, one a second."""
        while not stopping.is_set():
            yield await monitor.state()
            try:
                await asyncio.wait_for(stopping.wait(), _STREAM_SECONDS)
            except asyncio.TimeoutError:
                continue

    return router
