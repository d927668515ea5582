"""The binary routes of the content service, of the form that `rec.wire` tells.

Knows nothing of Ray.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import Receive, Scope

from rec import wire
from serve_apps.api import Version
from serve_apps.backend import Backend, Content, Limits
from serve_apps.direct import Answered, add_direct
from serve_apps.errors import ApiError, invalid
from serve_apps.releases import Pin


class _Asked(BaseModel):
    """The query of a request."""

    model_config = ConfigDict(protected_namespaces=())

    model_version: str | None = Field(
        None, description="refuse (409) unless this is the model that answers"
    )


class _Neighbours(_Asked):
    k: int = Field(10, ge=1, description="neighbours a query")
    index_version: str | None = Field(
        None, description="refuse (409) unless this is the index that answers"
    )


_MEDIA_TYPE = wire.MEDIA_TYPE.encode()
_LEAST_SQUARES, _MOST_SQUARES = 1e-12, 1e30

Q = TypeVar("Q", bound=_Asked)
Answer = Callable[[Q, bytes], Awaitable[Answered]]


def add_raw(app: FastAPI, pin: Pin[Version, Backend], limits: Limits) -> None:
    """Add the routes to the content service, whose pin and limits these are."""

    async def embed(asked: _Asked, data: bytes) -> Answered:
        version, backend = pin(asked.model_version, None)
        try:
            inputs = wire.unpack_contents(data, limits.max_inputs)
        except wire.WireError as error:
            raise invalid(f"body: {error}") from error
        contents = [_content(f"inputs[{i}]", *one, limits) for i, one in enumerate(inputs)]
        vectors = await backend.encode(contents)
        return Answered(
            wire.pack_rows(vectors), wire.MEDIA_TYPE, {wire.MODEL_HEADER: version.model_version}
        )

    async def knn(asked: _Neighbours, data: bytes) -> Answered:
        version, backend = pin(asked.model_version, asked.index_version)
        if asked.k > limits.max_k:
            raise invalid(f"k: {asked.k}, expected 1 to {limits.max_k}")
        try:
            rows = wire.view_rows(data, version.dim)
            if len(rows) > limits.max_inputs:
                most = f"expected at most {limits.max_inputs} a request"
                raise invalid(f"body: {len(rows)} rows, {most}")
            units = _unit_rows(rows)
        except wire.WireError as error:
            raise invalid(f"body: {error}") from error
        found = await backend.search_packed(units, asked.k)
        headers = {
            wire.MODEL_HEADER: version.model_version,
            wire.INDEX_HEADER: found.index_version,
        }
        return Answered(found.body, wire.MEDIA_TYPE, headers)

    _add(
        app,
        "/v1/embed/raw",
        _Asked,
        embed,
        summary="Texts and pictures to vectors, in bytes",
        asked="uint32 B; B pairs of uint32, bytes of the text and of the picture, 0 for none; then "
        "text, picture, text, picture ...",
        answered="B rows of float32, of unit norm",
    )
    _add(
        app,
        "/v1/knn/raw",
        _Neighbours,
        knn,
        summary="Nearest items of vectors, in bytes",
        asked="B rows of float32, each of the model's dimension",
        answered="B uint32, how many were found of each query; then of all found, query after "
        "query: float32 scores, uint32 lengths of ids, ids in UTF-8",
    )


def _add(
    app: FastAPI, path: str, kind: type[Q], answer: Answer[Q], *, summary: str, **about: str
) -> None:
    """A direct route; FastAPI's own one behind it, of the same function, is in the
    documentation."""

    async def answered(scope: Scope, receive: Receive) -> Answered:
        asked = _asked(kind, scope["query_string"])
        return await answer(asked, await _body(scope, receive))

    async def endpoint(request: Request) -> Response:
        body, media_type, headers = await answered(request.scope, request.receive)
        return Response(body, media_type=media_type, headers=dict(headers))

    add_direct(app, path, answered)
    # Serve looks through the routes for each request, too: it finds this one first
    app.router.routes.insert(0, Route(path, endpoint, methods=["POST"]))
    documented = _bytes_both_ways(kind, **about)
    name = f"{getattr(answer, '__name__', '')}_raw"
    app.add_api_route(
        path, endpoint, methods=["POST"], name=name, summary=summary, description="", **documented
    )


@lru_cache(maxsize=256)  # callers ask for the same again and again; what is wrong is not kept
def _asked(kind: type[Q], query: bytes) -> Q:
    try:
        return kind.model_validate(dict(QueryParams(query)))
    except ValidationError as error:
        told = [one | {"loc": ("query", *one["loc"])} for one in error.errors()]
        raise RequestValidationError(told) from error


def _bytes_both_ways(kind: type[_Asked], asked: str, answered: str) -> dict[str, Any]:
    """What the documentation says of a route; all numbers are little-endian."""
    content = {wire.MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}
    return {
        "response_class": Response,
        "responses": {200: {"content": content, "description": f"{answered}. Little-endian."}},
        "openapi_extra": {
            "parameters": [
                {"name": name, "in": "query", "required": False, "schema": schema}
                for name, schema in kind.model_json_schema()["properties"].items()
            ],
            "requestBody": {
                "content": content,
                "required": True,
                "description": f"{asked}. Little-endian.",
            },
        },
    }


async def _body(scope: Scope, receive: Receive) -> bytes:
    given = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
    if given.partition(b";")[0].strip().lower() != _MEDIA_TYPE:
        message = f"body: expected bytes with the header Content-Type: {wire.MEDIA_TYPE}"
        raise ApiError(415, "unsupported_media_type", message)
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _content(place: str, text: str | None, picture: bytes | None, limits: Limits) -> Content:
    if not (text and text.strip()) and not picture:
        raise invalid(f"{place}: empty, expected a text, a picture or both")
    if text is not None and len(text) > limits.max_text_chars:
        raise invalid(
            f"{place}.text: {len(text)} characters, expected at most {limits.max_text_chars}"
        )
    return Content(place, text, picture)


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    """(B, D) float32 of unit norm; raises WireError where a number is not finite."""
    squares = np.einsum("ij,ij->i", rows, rows)  # warns of nothing
    # where float32 has room on both sides; no sum with NaN or infinity is there
    if squares.min() > _LEAST_SQUARES and squares.max() < _MOST_SQUARES:
        return rows * (1 / np.sqrt(squares))[:, None]
    wire.check_finite(rows)
    wide = rows.astype(np.float64)  # where no finite float32 overflows
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    if not norms.all():
        raise invalid(f"body: row {int((norms == 0).argmax())} is all zeros, which points nowhere")
    return (wide / norms).astype(np.float32)
