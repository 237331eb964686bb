"""The page, its files, and the documentation of the API: all from this machine."""

import importlib.util
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

_HERE = Path(__file__).parent
_REVALIDATE = "no-cache"  # the browser asks, and is answered 304 while the file is the same
_PINNED = "public, max-age=86400"  # files of installed packages


def _packaged(package: str, file: str) -> Path:
    """A file of another package, which is not imported for it; missing packages give a path to nothing."""
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    return Path(folders[0] if folders else _HERE / "missing", file)


async def _file(path: Path, request: Request, cache: str) -> Response:
    if not path.is_file():
        raise HTTPException(404, f"{path.name} is not installed: pip install kvfuse[server]")
    response = await StaticFiles(directory=path.parent).get_response(path.name, request.scope)
    response.headers["cache-control"] = cache
    return response


class _PageFiles(StaticFiles):
    def file_response(self, *arguments, **keywords) -> Response:  # type: ignore[no-untyped-def]
        response = super().file_response(*arguments, **keywords)
        response.headers["cache-control"] = _REVALIDATE
        return response


def add_pages(app: FastAPI) -> None:
    """``/`` and ``/page/``, ``/docs`` and ``/docs/``."""
    router = APIRouter(include_in_schema=False)
    plotly = _packaged("plotly", "package_data/plotly.min.js")
    swagger = {
        name: _packaged("fastapi_offline", f"static/{name}")
        for name in ("swagger-ui-bundle.js", "swagger-ui.css")
    }

    @router.get("/")
    async def index(request: Request) -> Response:
        return await _file(_HERE / "page/index.html", request, _REVALIDATE)

    @router.get("/page/plotly.min.js")
    async def charts(request: Request) -> Response:
        return await _file(plotly, request, _PINNED)

    @router.get("/docs")
    async def docs(request: Request) -> Response:
        return await _file(_HERE / "docs/index.html", request, _REVALIDATE)

    @router.get("/docs/start.js")
    async def docs_start(request: Request) -> Response:
        return await _file(_HERE / "docs/start.js", request, _REVALIDATE)

    @router.get("/docs/{name}")
    async def docs_file(name: str, request: Request) -> Response:
        if name not in swagger:
            raise HTTPException(404)
        return await _file(swagger[name], request, _PINNED)

    app.include_router(router)
    app.mount("/page", _PageFiles(directory=_HERE / "page"))
