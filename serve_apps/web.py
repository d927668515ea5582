"""What the HTTP services have in common: refusals in one form, limits, no way to end in a 5xx.

Knows nothing of Ray. Every refusal is `{"error": {"type", "message"}}`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_apps.admission import Admitted, Patience
from serve_apps.api import ErrorResponse
from serve_apps.bodies import WholeBody
from serve_apps.direct import Direct
from serve_apps.docs_page import add_docs
from serve_apps.errors import ApiError, invalid, refusal
from serve_apps.guard import Guard
from serve_apps.observe import CALLER, REFUSED, Observed, Operations

_STATUSES = (400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 503, 504)
_STATUS_KINDS = {404: "not_found", 405: "method_not_allowed"}


def new_app(
    title: str,
    version: str,
    max_body_bytes: int,
    max_body_s: float,
    below: str = "",
    operations: Operations | None = None,
    patience: Mapping[str, Patience] | None = None,
) -> FastAPI:
    """An application without routes that answers whatever goes wrong in the one form.

    Args:
        title, version: for its documentation, at `below`/docs.
        max_body_bytes: a longer body is a 413.
        max_body_s: one that takes longer to come is a 408.
        below: path that all its routes begin with; its own where Serve puts it below that path.
        operations: who may ask and what is told of it. All routes need a key, health alone does
            not; those below `below`/admin (/v1/admin) need one of that role.
        patience: path -> how long a request there may have to wait; see `Admission`.
    """
    refusals: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorResponse} for status in _STATUSES
    }
    app = FastAPI(
        title=title,
        version=version,
        responses=refusals,
        docs_url=None,  # FastAPI's pages load what they need from a public network
        redoc_url=None,
        openapi_url=f"{below}/openapi.json",
    )
    operations = operations or Operations()
    app.state.direct = {}
    app.add_middleware(Direct, routes=app.state.direct, errors=app)
    if patience:
        app.add_middleware(Admitted, patience=patience)
    app.add_middleware(WholeBody, max_bytes=max_body_bytes, max_s=max_body_s)
    if operations.guard is not None:
        app.add_middleware(_Guarded, guard=operations.guard, below=below)
    app.add_middleware(Observed, service=title, operations=operations)
    if below:
        app.add_middleware(_WholePath, below=below)
    _add_error_handlers(app)
    add_docs(app, below)
    return app


def add_health(app: FastAPI, path: str, canary: Callable[[], Awaitable[None]]) -> None:
    """GET `path` is 200 where `canary` raises no ApiError, else 503 with its message."""

    @app.get(path, summary="Whether a small request comes out as it must")
    async def healthz() -> dict[str, str]:
        try:
            await canary()
        except ApiError as error:
            raise ApiError(503, "not_ready", error.message, retry_after_s=1) from error
        return {"status": "ok"}


def check_version(asked: str | None, served: str) -> None:
    """Refuse (409) a request that is for another model than the one that is served."""
    if asked is not None and asked != served:
        raise ApiError(
            409,
            "model_mismatch",
            f"model_version: {asked!r} asked, {served!r} is served; vectors of "
            "different models cannot be compared",
        )


class _WholePath:
    """ASGI middleware: routes are matched with the path as it was asked for, `below` included."""

    def __init__(self, app: ASGIApp, below: str) -> None:
        self._app = app
        self._below = below

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            root = scope.get("root_path", "").removesuffix(self._below)
            scope = {**scope, "root_path": root}
        await self._app(scope, receive, send)


class _Guarded:
    """ASGI middleware: who may not ask is refused before their body is read."""

    def __init__(self, app: ASGIApp, guard: Guard, below: str) -> None:
        self._app, self._guard = app, guard
        self._health, self._admin = f"{below}/healthz", f"{below or '/v1'}/admin"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        role = "admin" if path == self._admin or path.startswith(f"{self._admin}/") else "read"
        try:
            scope[CALLER] = self._guard.admit(scope, None if path == self._health else role)
        except ApiError as error:
            scope[REFUSED] = error.kind
            await refusal(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _refuse(
    request: Request, error: ApiError, more: Mapping[str, str] | None = None
) -> JSONResponse:
    request.scope[REFUSED] = error.kind
    return refusal(error, more)


def _path(location: Sequence[str | int]) -> str:
    """Pydantic's ("body", "inputs", 0, "text") as inputs[0].text."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in location[1:]]
    return "".join(parts).lstrip(".") or "body"


def _add_error_handlers(app: FastAPI) -> None:
    async def on_api_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return _refuse(request, error)

    async def on_http_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        kind = _STATUS_KINDS.get(error.status_code, "bad_request")
        detail = f"{request.method} {request.url.path}: {error.detail}"
        return _refuse(request, ApiError(error.status_code, kind, detail), error.headers)

    async def on_invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first, *others = error.errors()
        if first["type"] == "json_invalid":
            place = f"body: not JSON at character {first['loc'][-1]}: {first['ctx']['error']}"
            return _refuse(request, ApiError(400, "malformed_json", place))
        if first["loc"] == ("body",) and "json" not in request.headers.get("content-type", ""):
            message = "body: expected JSON with the header Content-Type: application/json"
            return _refuse(request, ApiError(415, "unsupported_media_type", message))
        more = f" (and {len(others)} more)" if others else ""
        message = first["msg"].removeprefix("Value error, ")
        return _refuse(request, invalid(f"{_path(first['loc'])}: {message}{more}"))

    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
