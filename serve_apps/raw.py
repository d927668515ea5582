"""The binary routes of the content service, of the form that `rec.wire` tells.

Knows nothing of Ray.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query, Request, Response

from rec import wire
from serve_apps.api import Version
from serve_apps.backend import Backend, Content, Limits
from serve_apps.errors import ApiError, invalid
from serve_apps.web import check_version

_Model = Annotated[
    str | None, Query(description="refuse (409) unless this is the model that answers")
]
_K = Annotated[int, Query(ge=1, description="neighbours a query")]


def add_raw(app: FastAPI, backend: Backend, version: Version, limits: Limits) -> None:
    """Add the routes to the content service, whose backend, version and limits these are."""

    @app.post(
        "/v1/embed/raw",
        summary="Texts and pictures to vectors, in bytes",
        **_bytes_both_ways(
            "uint32 B; B pairs of uint32, bytes of the text and of the picture, 0 for none; then "
            "text, picture, text, picture ...",
            "B rows of float32, of unit norm",
        ),
    )
    async def embed(request: Request, model_version: _Model = None) -> Response:
        check_version(model_version, version.model_version)
        data = await _body(request)
        try:
            inputs = wire.unpack_contents(data, limits.max_inputs)
        except wire.WireError as error:
            raise invalid(f"body: {error}") from error
        contents = [_content(f"inputs[{i}]", *one, limits) for i, one in enumerate(inputs)]
        vectors = await backend.encode(contents)
        headers = {wire.MODEL_HEADER: version.model_version}
        return Response(wire.pack_rows(vectors), media_type=wire.MEDIA_TYPE, headers=headers)

    @app.post(
        "/v1/knn/raw",
        summary="Nearest items of vectors, in bytes",
        **_bytes_both_ways(
            "B rows of float32, each of the model's dimension",
            "B uint32, how many were found of each query; then of all found, query after query: "
            "float32 scores, uint32 lengths of ids, ids in UTF-8",
        ),
    )
    async def knn(request: Request, k: _K = 10, model_version: _Model = None) -> Response:
        check_version(model_version, version.model_version)
        if k > limits.max_k:
            raise invalid(f"k: {k}, expected 1 to {limits.max_k}")
        data = await _body(request)
        try:
            rows = wire.unpack_rows(data, version.dim)
        except wire.WireError as error:
            raise invalid(f"body: {error}") from error
        if len(rows) > limits.max_inputs:
            raise invalid(f"body: {len(rows)} rows, expected at most {limits.max_inputs} a request")
        found = await backend.search(_unit_rows(rows), k, False)
        headers = {
            wire.MODEL_HEADER: version.model_version,
            wire.INDEX_HEADER: found.index_version,
        }
        packed = wire.pack_found(found.results)
        return Response(packed, media_type=wire.MEDIA_TYPE, headers=headers)


def _bytes_both_ways(asked: str, answered: str) -> dict[str, Any]:
    """What the documentation says of a route; all numbers are little-endian."""
    content = {wire.MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}
    return {
        "response_class": Response,
        "responses": {200: {"content": content, "description": f"{answered}. Little-endian."}},
        "openapi_extra": {
            "requestBody": {
                "content": content,
                "required": True,
                "description": f"{asked}. Little-endian.",
            }
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
    """(B, D) float32 of unit norm; in float64, where no finite float32 overflows."""
    wide = rows.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    if not norms.all():
        raise invalid(f"body: row {int((norms == 0).argmax())} is all zeros, which points nowhere")
    return (wide / norms).astype(np.float32)
