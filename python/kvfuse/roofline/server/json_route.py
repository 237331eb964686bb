"""Routes that take a model and answer with one, by pydantic's own reader and writer of JSON.

FastAPI's way through Python objects takes several times as long, and half of a prediction's whole time.
"""

from collections.abc import Callable, Coroutine
from typing import Any, get_type_hints

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class JsonRoute(APIRoute):
    """For ``async def endpoint(request: Model) -> Answer``; other endpoints are FastAPI's own affair."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        if self._model() is not None:
            self.app = _app_of(self.get_route_handler())

    def _model(self) -> type[BaseModel] | None:
        found = get_type_hints(self.endpoint).get("request")
        return found if isinstance(found, type) and issubclass(found, BaseModel) else None

    def get_route_handler(self) -> Handler:
        model = self._model()
        if model is None:
            return super().get_route_handler()
        answers = TypeAdapter(get_type_hints(self.endpoint)["return"])
        endpoint = self.endpoint

        async def handle(request: Request) -> Response:
            parsed = _parse(model, request.headers.get("content-type", ""), await request.body())
            found = answers.dump_json(await endpoint(parsed), by_alias=True)
            return Response(found, media_type="application/json")

        return handle


def _app_of(handle: Handler) -> ASGIApp:
    """Without FastAPI's stacks of what dependencies leave open: there are none."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        response = await handle(Request(scope, receive))
        await response(scope, receive, send)

    return app


def _parse(model: type[BaseModel], content_type: str, body: bytes) -> BaseModel:
    # A page of another origin can send other types without asking the browser's leave.
    if content_type.partition(";")[0].strip().lower() != "application/json":
        error = {"type": "content_type", "msg": "expected to be application/json", "input": content_type}
        raise RequestValidationError([error | {"loc": ("header", "content-type")}])
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in found]) from error
