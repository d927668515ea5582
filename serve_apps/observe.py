"""What is told of each request: its id, a line in the log, its metrics. Knows nothing of Ray.

Where a route has left times of its parts in the scope (SPANS), the line has them, and the answer
too, in a Server-Timing header.

The line has neither bodies nor headers nor what stands in the path: a route's pattern, sizes, times
and the name of the key's holder.
"""

from __future__ import annotations

import logging
import time
import traceback
import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_apps.errors import ApiError, refusal
from serve_apps.guard import NOBODY, Guard

access_log = logging.getLogger("serve_apps.access")
logger = logging.getLogger(__name__)

CALLER = "raycall.caller"  # keys of an ASGI scope
REFUSED = "raycall.refused"
SPANS = "raycall.spans"  # milliseconds by what they went into

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_MAX_ID = 128
_GONE = 499  # as nginx counts a caller who did not wait


class Meter(Protocol):
    def __call__(self, route: str, status: int, caller: str, seconds: float) -> None:
        """Count one request that was answered."""
        ...


class Operations(NamedTuple):
    """What a gateway does beside answering."""

    guard: Guard | None = None  # None: anybody may ask anything
    meter: Meter | None = None
    returns_ids: bool = True  # False where the server before it returns X-Request-ID, as Serve does


class _Told:
    """One request as it is being answered."""

    def __init__(self) -> None:
        self.status = _GONE
        self.started = False
        self.bytes_in = self.bytes_out = 0
        self._since = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._since


class Observed:
    """ASGI middleware: gives each request an id, tells of it, and lets no exception through."""

    def __init__(self, app: ASGIApp, service: str, operations: Operations) -> None:
        self._app, self._service = app, service
        self._meter, self._returns_ids = operations.meter, operations.returns_ids

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, told = _request_id(scope), _Told()

        async def counted() -> Message:
            message = await receive()
            told.bytes_in += len(message.get("body", b""))
            return message

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                told.started, told.status = True, message["status"]
                if self._returns_ids:
                    MutableHeaders(scope=message)["X-Request-ID"] = request_id
                if SPANS in scope:
                    timing = _timing(scope[SPANS], told.seconds)
                    MutableHeaders(scope=message)["Server-Timing"] = timing
            told.bytes_out += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, counted, sent)
        except Exception as error:
            told.status = 500
            _log_failure(error, request_id)
            if not told.started:
                failed = ApiError(500, "internal", "failed; the server's log has the reason")
                scope[REFUSED] = failed.kind
                await refusal(failed)(scope, counted, sent)
        finally:
            self._tell(scope, request_id, told)

    def _tell(self, scope: Scope, request_id: str, told: _Told) -> None:
        route = getattr(scope.get("route"), "path", "unknown")
        caller = scope.get(CALLER, NOBODY)
        seconds = told.seconds
        fields: dict[str, Any] = {
            "request_id": request_id,
            "service": self._service,
            "method": scope["method"] if scope["method"] in _METHODS else "other",
            "route": route,
            "status": told.status,
            "refused": scope.get(REFUSED),  # the type of the refusal
            "caller": caller,
            "ms": round(1000 * seconds, 3),
            "bytes_in": told.bytes_in,
            "bytes_out": told.bytes_out,
        }
        if SPANS in scope:
            fields["spans"] = {name: round(ms, 3) for name, ms in scope[SPANS].items()}
        line = f"{fields['method']} {route} {told.status} {fields['ms']} ms"
        access_log.info(line, extra={"access": fields})
        if self._meter is not None:
            self._meter(route, told.status, caller, seconds)


def _request_id(scope: Scope) -> str:
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    # whatever it is, it becomes no second line of the log and no second header
    text = given[:_MAX_ID].decode("latin-1")
    if not text.isprintable():
        text = "".join(one for one in text if one.isprintable())
    return text or uuid.uuid4().hex


def _timing(spans: Mapping[str, float], seconds: float) -> str:
    """As the header Server-Timing has it; "app" is all the time until the answer began."""
    parts = {**spans, "app": 1000 * seconds}
    return ", ".join(f"{name};dur={ms:.3f}" for name, ms in parts.items())


def _log_failure(error: Exception, request_id: str) -> None:
    """Where it went wrong, without the message, which may quote what was asked."""
    where = "".join(traceback.format_tb(error.__traceback__))
    logger.error("request %s failed with %s at\n%s", request_id, type(error).__name__, where)
