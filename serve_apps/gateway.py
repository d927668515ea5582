"""The HTTP face of the content service: checks requests, asks a backend, answers in JSON.

Knows nothing of Ray. The binary routes are in `serve_apps.raw`. Refusals are those of
`serve_apps.web`; a request can be wrong in no way that ends in a 5xx.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from fastapi import FastAPI

from rec import __version__
from serve_apps.admission import Patience
from serve_apps.api import (
    ContentInput,
    EmbedRequest,
    EmbedResponse,
    KnnRequest,
    KnnResponse,
    Neighbours,
    Query,
    Version,
)
from serve_apps.backend import Backend, Content, Found, ItemQuery, Limits, Queries, Searched
from serve_apps.errors import invalid
from serve_apps.observe import Operations
from serve_apps.raw import add_raw
from serve_apps.releases import Pin, fixed
from serve_apps.web import add_health, new_app

__all__ = [
    "Backend",
    "Content",
    "Found",
    "ItemQuery",
    "Limits",
    "Queries",
    "Searched",
    "make_app",
    "make_pinned_app",
]


def make_app(
    backend: Backend, version: Version, limits: Limits, operations: Operations | None = None
) -> FastAPI:
    """The service of one release as an ASGI application."""
    return make_pinned_app(fixed(backend, version), limits, operations)


def make_pinned_app(
    pin: Pin[Version, Backend], limits: Limits, operations: Operations | None = None
) -> FastAPI:
    """The service as an ASGI application."""
    title = "Raycall content"
    patience: dict[str, Patience] = {}
    patience |= dict.fromkeys(("/v1/embed", "/v1/embed/raw"), Patience(limits.max_embed_s))
    patience |= dict.fromkeys(("/v1/knn", "/v1/knn/raw"), Patience(limits.max_knn_s))
    body = limits.max_body_bytes, limits.max_body_s
    app = new_app(title, __version__, *body, operations=operations, patience=patience)

    @app.post("/v1/embed", summary="Texts and pictures to vectors")
    async def embed(body: EmbedRequest) -> EmbedResponse:
        version, backend = pin(body.model_version, None)
        _check_count("inputs", body.inputs, limits)
        contents = [checked_content(f"inputs[{i}]", c, limits) for i, c in enumerate(body.inputs)]
        vectors = await backend.encode(contents)
        return EmbedResponse(
            vectors=vectors.tolist(), dim=version.dim, model_version=version.model_version
        )

    @app.post("/v1/knn", summary="Nearest items of vectors, items, texts and pictures")
    async def knn(body: KnnRequest) -> KnnResponse:
        version, backend = pin(body.model_version, body.index_version)
        _check_count("queries", body.queries, limits)
        if body.k > limits.max_k:
            raise invalid(f"k: {body.k}, expected 1 to {limits.max_k}")
        queries = await _resolve(backend, body.queries, version.dim, limits)
        found = await backend.search(queries, body.k, body.exclude_self, body.where)
        return KnnResponse(
            results=[Neighbours(ids=f.ids, scores=f.scores) for f in found.results],
            model_version=version.model_version,
            index_version=found.index_version,
        )

    @app.get("/v1/version", summary="What is being served")
    async def get_version() -> Version:
        return pin(None, None).version

    add_raw(app, pin, limits)
    add_health(app, "/healthz", lambda: pin(None, None).backend.canary())
    return app


def _check_count(name: str, values: Sequence[object], limits: Limits) -> None:
    if len(values) > limits.max_inputs:
        raise invalid(f"{name}: {len(values)}, expected at most {limits.max_inputs} a request")


def checked_content(place: str, content: ContentInput, limits: Limits) -> Content:
    """What a request gives to embed; raises ApiError where it is nothing or too much."""
    if content.is_empty:
        raise invalid(f"{place}: empty, expected a text, an image or both")
    if content.text is not None and len(content.text) > limits.max_text_chars:
        raise invalid(
            f"{place}.text: {len(content.text)} characters, expected at most "
            f"{limits.max_text_chars}"
        )
    try:
        return Content(place, content.text, content.picture or None)
    except ValueError as error:
        raise invalid(f"{place}.image: {error}") from error


def _unit(place: str, values: Sequence[float], dim: int) -> np.ndarray:
    """(D,) float32 of unit norm; scaled in float64, where no finite float32 can overflow."""
    if len(values) != dim:
        raise invalid(f"{place}.vector: {len(values)} numbers, expected {dim}")
    vector = np.asarray(values, np.float64)
    largest = np.abs(vector).max()
    if largest == 0:
        raise invalid(f"{place}.vector: all zeros, which points nowhere")
    vector = vector / largest
    return (vector / np.linalg.norm(vector)).astype(np.float32)


async def _resolve(
    backend: Backend, queries: Sequence[Query], dim: int, limits: Limits
) -> list[np.ndarray | ItemQuery]:
    """Queries as the index takes them; texts and pictures are encoded in one call."""
    resolved: list[np.ndarray | ItemQuery | None] = []
    contents: list[Content] = []
    for i, query in enumerate(queries):
        place = f"queries[{i}]"
        if query.vector is not None:
            resolved.append(_unit(place, query.vector, dim))
        elif query.item_id is not None:
            resolved.append(ItemQuery(place, query.item_id))
        else:
            contents.append(checked_content(place, query, limits))
            resolved.append(None)
    vectors = iter(await backend.encode(contents) if contents else ())
    return [next(vectors) if query is None else query for query in resolved]
