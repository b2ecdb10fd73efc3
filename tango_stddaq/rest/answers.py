"""How the two families of endpoints answer, and whom they answer."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response

from tango_stddaq.control.token import HINT, is_allowed
from tango_stddaq.errors import StdDaqError

MAX_BODY_BYTES: Final = 1024 * 1024
_API: Final = "/api/"
_OPEN_PATHS: Final = ("/docs", "/openapi.json")

Next = Callable[[Request], Awaitable[Response]]


def ok(message: str, **values: Any) -> dict[str, Any]:
    """Return the answer of a call that worked."""
    return {"status": "ok", "message": message, **values}


def failure(request: Request, message: str, code: int = HTTPStatus.BAD_REQUEST) -> JSONResponse:
    """Return the answer of a call that did not.

    Existing clients of the first family look at `status`, and take any HTTP code but 200 for a crash.
    """
    if not request.url.path.startswith(_API) and code != HTTPStatus.UNAUTHORIZED:
        code = HTTPStatus.OK
    return JSONResponse({"status": "error", "message": message}, code)


def install(app: FastAPI, token: str) -> None:
    """Let every error be an answer, and nobody in who has no token, if one is asked for."""

    @app.exception_handler(StdDaqError)
    async def _refused(request: Request, error: StdDaqError) -> JSONResponse:
        return failure(request, str(error))

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return failure(request, "; ".join(_what(entry) for entry in error.errors()))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code in (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED):
            message = f"{request.method} {request.url.path}: {error.detail}; see /docs"
            return JSONResponse({"status": "error", "message": message}, error.status_code)
        return failure(request, str(error.detail), error.status_code)

    @app.middleware("http")
    async def _guard(request: Request, call_next: Next) -> Response:
        refusal = _too_large(request)
        if refusal:
            return failure(request, refusal, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        if request.url.path not in _OPEN_PATHS and not is_allowed(request.headers, token):
            return failure(request, HINT, HTTPStatus.UNAUTHORIZED)
        return await call_next(request)


def _too_large(request: Request) -> str:
    if request.method in ("GET", "HEAD"):
        return ""
    length = request.headers.get("content-length")
    if length is None:
        return "" if "transfer-encoding" not in request.headers else "say the Content-Length"
    if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
        return f"a body of {length[:20]} bytes; allowed are {MAX_BODY_BYTES}"
    return ""


def _what(entry: Any) -> str:
    place = ".".join(str(part) for part in entry["loc"] if part not in ("body", "query", "path"))
    given = "" if entry["type"] == "missing" else f" {str(entry.get('input'))[:80]!r}"
    return f"{place or 'the body'}{given}: {entry['msg']}"
