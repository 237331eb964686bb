"""What goes wrong with a request, in one form: ``{"detail": [{"loc": [...], "msg": "one sentence"}]}``."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

_MOST_DETAILS = 10  # of one answer: a wrong list can be wrong in every element
_MOST_SHOWN = 60  # characters of a wrong value
_FORMS = ("letters", "sizes")  # of a model_config: schemas.ModelForm


class ErrorDetail(BaseModel):
    loc: list[str | int]
    msg: str


class ErrorAnswer(BaseModel):
    detail: list[ErrorDetail]


ERROR_ANSWERS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorAnswer, "description": "A foreign Host, or a body that cannot be read"},
    403: {"model": ErrorAnswer, "description": "Measuring is not allowed here"},
    408: {"model": ErrorAnswer, "description": "The body did not come in time"},
    413: {"model": ErrorAnswer, "description": "The body is too large"},
    422: {
        "model": ErrorAnswer,
        "description": "A field breaks a rule; the sentence names field, rule and value",
    },
    503: {"model": ErrorAnswer, "description": "Too much is asked of the server at once"},
}


class Refused(Exception):
    """A request that is answered with one sentence."""

    def __init__(self, status: int, sentence: str, *loc: str | int) -> None:
        super().__init__(sentence)
        self.status = status
        self.loc = loc


@contextmanager
def about(*loc: str) -> Iterator[None]:
    """Around calls of the library: what it refuses of the body's field ``loc`` becomes an answer."""
    try:
        yield
    except ValueError as error:
        raise Refused(422, str(error).removeprefix("roofline: "), "body", *loc) from error


def error_body(status: int, sentence: str, *loc: str | int) -> JSONResponse:
    detail = ErrorDetail(loc=list(loc), msg=sentence)
    return JSONResponse(ErrorAnswer(detail=[detail]).model_dump(), status)


def _shown(value: object) -> str:
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else f"a list of {len(value)}"
    text = ascii(value)
    return text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + "..."


def place(error: Mapping[str, Any]) -> list[str | int]:
    """Where the field is; pydantic also names which form of a model it tried."""
    return [part for part in error["loc"] if part not in _FORMS]


def sentence(error: Mapping[str, Any]) -> str:
    """Field, rule and value of what pydantic found."""
    field = ".".join(map(str, place(error)[1:])) or "the body"
    match error["type"]:
        case "json_invalid":
            return f"expected JSON, got what the parser calls: {error['ctx']['error']}"
        case "missing":
            return f"expected {field}, got none"
        case "extra_forbidden":
            return f"expected no field {field[: 2 * _MOST_SHOWN]!a}"
        case "value_error":
            return str(error["ctx"]["error"])
    rule = error["msg"].replace("Input should", "expected to").replace("expected to be", "expected")
    return f"{field}: {rule[0].lower()}{rule[1:]}, got {_shown(error['input'])}"


async def _invalid(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    found = [{"loc": place(one), "msg": sentence(one)} for one in error.errors()[:_MOST_DETAILS]]
    return JSONResponse({"detail": found}, 422)


async def _refused(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, Refused)
    return error_body(error.status, str(error), *error.loc)


async def _http(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    answer = error_body(error.status_code, f"{error.detail}.", "request")
    answer.headers.update(error.headers or {})
    return answer


def add_error_answers(app: FastAPI) -> None:
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(HTTPException, _http)
