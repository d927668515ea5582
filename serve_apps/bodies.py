"""Reads a request's body whole before anything else is done with it: one that is too long or comes
too slowly is refused and holds no place among those that wait. Knows nothing of Ray."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_apps.errors import ApiError, refusal
from serve_apps.observe import REFUSED

_BODILESS = frozenset({"GET", "HEAD", "OPTIONS"})


class WholeBody:
    """ASGI middleware: what is behind it receives a body as one message.

    Args:
        max_bytes: a longer one is a 413, at once where its length was told.
        max_s: one that takes longer to come is a 408.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, max_s: float) -> None:
        self._app, self._max_bytes, self._max_s = app, max_bytes, max_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in _BODILESS:
            await self._app(scope, receive, send)
            return
        try:
            body = await self._read(scope, receive)
        except ApiError as error:
            scope[REFUSED] = error.kind
            # no end to what is slow; what is long is read to its end, so that the answer arrives
            close = {"Connection": "close"} if error.status == 408 else None
            await refusal(error, close)(scope, receive, send)
            return
        if body is None:  # the caller has gone
            return
        given = False

        async def whole() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, whole, send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > self._max_bytes:
                raise self._too_long()
        parts: list[bytes] = []
        num_bytes = 0
        try:
            async with asyncio.timeout(self._max_s):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        return None
                    parts.append(message.get("body", b""))
                    num_bytes += len(parts[-1])
                    if num_bytes > self._max_bytes:
                        raise self._too_long()
                    if not message.get("more_body", False):
                        return b"".join(parts) if len(parts) > 1 else parts[0]
        except TimeoutError as error:
            message = f"body: not whole after {self._max_s:g} s; send it faster, or less at once"
            raise ApiError(408, "body_too_slow", message) from error

    def _too_long(self) -> ApiError:
        most = f"body: more than {self._max_bytes} bytes; send less at once"
        return ApiError(413, "body_too_large", most)
