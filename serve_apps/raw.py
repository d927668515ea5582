"""The binary routes of the content service, of the form that `rec.wire` tells.

Knows nothing of Ray.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.routing import Match, Route
from starlette.types import Scope

from rec import wire
from serve_apps.api import Version
from serve_apps.backend import Backend, Content, Limits
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


_LEAST_SQUARES, _MOST_SQUARES = 1e-12, 1e30

Q = TypeVar("Q", bound=_Asked)
Answer = Callable[[Q, bytes], Awaitable[Response]]


def add_raw(app: FastAPI, pin: Pin[Version, Backend], limits: Limits) -> None:
    """Add the routes to the content service, whose pin and limits these are."""

    async def embed(asked: _Asked, data: bytes) -> Response:
        version, backend = pin(asked.model_version, None)
        try:
            inputs = wire.unpack_contents(data, limits.max_inputs)
        except wire.WireError as error:
            raise invalid(f"body: {error}") from error
        contents = [_content(f"inputs[{i}]", *one, limits) for i, one in enumerate(inputs)]
        vectors = await backend.encode(contents)
        headers = {wire.MODEL_HEADER: version.model_version}
        return Response(wire.pack_rows(vectors), media_type=wire.MEDIA_TYPE, headers=headers)

    async def knn(asked: _Neighbours, data: bytes) -> Response:
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
        return Response(found.body, media_type=wire.MEDIA_TYPE, headers=headers)

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


class _PlainRoute(Route):
    """Starlette's, which tells the log which one it is, as FastAPI's does."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        return match, {**child, "route": self}


def _add(
    app: FastAPI, path: str, kind: type[Q], answer: Answer[Q], *, summary: str, **about: str
) -> None:
    """A route without what FastAPI does for each request, which takes longer than a search; its
    own one behind it, of the same function, is in the documentation."""
    endpoint = partial(_answer, kind, answer)
    app.router.routes.append(_PlainRoute(path, endpoint, methods=["POST"]))
    documented = _bytes_both_ways(kind, **about)
    name = f"{getattr(answer, '__name__', '')}_raw"  # of a partial it would be "partial"
    app.add_api_route(
        path, endpoint, methods=["POST"], name=name, summary=summary, description="", **documented
    )


async def _answer(kind: type[Q], answer: Answer[Q], request: Request) -> Response:
    try:
        asked = kind.model_validate(dict(request.query_params))
    except ValidationError as error:
        told = [one | {"loc": ("query", *one["loc"])} for one in error.errors()]
        raise RequestValidationError(told) from error
    return await answer(asked, await _body(request))


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


async def _body(request: Request) -> bytes:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != wire.MEDIA_TYPE:
        message = f"body: expected bytes with the header Content-Type: {wire.MEDIA_TYPE}"
        raise ApiError(415, "unsupported_media_type", message)
    return await request.body()


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
