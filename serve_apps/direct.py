"""Routes that are answered ahead of FastAPI's and Starlette's own, which take longer than a search.

Knows nothing of Ray. Keys, limits, log and metrics stand before these routes as before all others.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from serve_apps.errors import ApiError


class Answered(NamedTuple):
    body: bytes
    media_type: str
    headers: Mapping[str, str]


Answer = Callable[[Scope, Receive], Awaitable[Answered]]


class Route(NamedTuple):
    path: str
    answer: Answer


class Direct:
    """ASGI middleware, the innermost: POSTs to the paths of `routes` go no further.

    Args:
        routes: by path; may grow.
        errors: the application, whose exception handlers answer what a route raises.
    """

    def __init__(self, app: ASGIApp, routes: Mapping[str, Route], errors: FastAPI) -> None:
        self._app, self._routes, self._errors = app, routes, errors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = scope["type"] == "http" and scope["method"] == "POST"
        route = self._routes.get(scope["path"]) if asked else None
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route  # for the log
        try:
            body, media_type, more = await route.answer(scope, receive)
        except (ApiError, HTTPException, RequestValidationError) as error:
            handle = self._errors.exception_handlers[type(error)]
            refused = await handle(Request(scope, receive), error)  # pyright: ignore[reportGeneralTypeIssues]
            await refused(scope, receive, send)
            return
        headers = [
            (b"content-type", media_type.encode()),
            (b"content-length", b"%d" % len(body)),
            *((name.lower().encode(), value.encode("latin-1")) for name, value in more.items()),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def add_direct(app: FastAPI, path: str, answer: Answer) -> None:
    """Answer POSTs to `path` so; `app` is of `serve_apps.web.new_app`."""
    app.state.direct[path] = Route(path, answer)
