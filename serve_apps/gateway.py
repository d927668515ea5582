"""The HTTP face of the content service: checks requests, asks a backend, answers in JSON.

Knows nothing of Ray. Every refusal is `{"error": {"type", "message"}}`; a request can be wrong
in no way that ends in a 5xx.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rec.config import Config
from rec.retrieval.index import MAX_K
from serve_apps.api import (
    ContentInput,
    EmbedRequest,
    EmbedResponse,
    ErrorResponse,
    KnnRequest,
    KnnResponse,
    Neighbours,
    Query,
    Version,
)
from serve_apps.errors import ApiError, invalid

logger = logging.getLogger(__name__)

_STATUS_KINDS = {404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}


class Content(NamedTuple):
    """A checked input on its way to the encoder; `place` is what to call it in messages."""

    place: str
    text: str | None
    picture: bytes | None


class ItemQuery(NamedTuple):
    place: str
    item_id: str


class Found(NamedTuple):
    ids: list[str]
    scores: list[float]


class Limits(Config):
    """How much one request may ask."""

    max_inputs: int = Field(default=64, ge=1)  # inputs or queries
    max_k: int = Field(default=1000, ge=1, le=MAX_K)
    max_text_chars: int = Field(default=100_000, ge=1)  # of one text; the model reads the start
    max_body_bytes: int = Field(default=16 << 20, ge=1)


class Backend(Protocol):
    """What answers. All methods raise ApiError."""

    async def encode(self, inputs: Sequence[Content]) -> np.ndarray:
        """(B, D) float32, unit norm."""
        ...

    async def search(
        self, queries: Sequence[np.ndarray | ItemQuery], k: int, exclude_self: bool
    ) -> list[Found]:
        """Neighbours of (D,) float32 unit vectors and of items, best first."""
        ...

    async def canary(self) -> None:
        """One small encoding and one search, each compared with what must come out."""
        ...


class _BodyLimit:
    """ASGI middleware: reading more than `max_bytes` of a body is a 413."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        num_bytes = 0

        async def limited() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                raise HTTPException(413, f"body: more than {self._max_bytes} bytes")
            return message

        await self._app(scope, limited if scope["type"] == "http" else receive, send)


def make_app(backend: Backend, version: Version, limits: Limits) -> FastAPI:
    """The service as an ASGI application."""
    refusals: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorResponse} for status in (400, 404, 409, 413, 415, 422, 503, 504)
    }
    app = FastAPI(title="Raycall content", version=version.raycall, responses=refusals)
    app.add_middleware(_BodyLimit, max_bytes=limits.max_body_bytes)
    _add_error_handlers(app)

    @app.post("/v1/embed", summary="Texts and pictures to vectors")
    async def embed(body: EmbedRequest) -> EmbedResponse:
        _check_version(body.model_version, version)
        _check_count("inputs", body.inputs, limits)
        contents = [_content(f"inputs[{i}]", c, limits) for i, c in enumerate(body.inputs)]
        vectors = await backend.encode(contents)
        return EmbedResponse(
            vectors=vectors.tolist(), dim=version.dim, model_version=version.model_version
        )

    @app.post("/v1/knn", summary="Nearest items of vectors, items, texts and pictures")
    async def knn(body: KnnRequest) -> KnnResponse:
        _check_version(body.model_version, version)
        _check_count("queries", body.queries, limits)
        if body.k > limits.max_k:
            raise invalid(f"k: {body.k}, expected 1 to {limits.max_k}")
        queries = await _resolve(backend, body.queries, version.dim, limits)
        found = await backend.search(queries, body.k, body.exclude_self)
        return KnnResponse(
            results=[Neighbours(ids=f.ids, scores=f.scores) for f in found],
            model_version=version.model_version,
            index_version=version.index_version,
        )

    @app.get("/v1/version", summary="What is being served")
    async def get_version() -> Version:
        return version

    @app.get("/healthz", summary="Whether a search and an encoding come out as they must")
    async def healthz() -> dict[str, str]:
        try:
            await backend.canary()
        except ApiError as error:
            raise ApiError(503, "not_ready", error.message, retry_after_s=1) from error
        return {"status": "ok"}

    return app


def _check_version(asked: str | None, served: Version) -> None:
    if asked is not None and asked != served.model_version:
        raise ApiError(
            409,
            "model_mismatch",
            f"model_version: {asked!r} asked, {served.model_version!r} is served; vectors of "
            "different models cannot be compared",
        )


def _check_count(name: str, values: Sequence[object], limits: Limits) -> None:
    if len(values) > limits.max_inputs:
        raise invalid(f"{name}: {len(values)}, expected at most {limits.max_inputs} a request")


def _content(place: str, content: ContentInput, limits: Limits) -> Content:
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
            contents.append(_content(place, query, limits))
            resolved.append(None)
    vectors = iter(await backend.encode(contents) if contents else ())
    return [next(vectors) if query is None else query for query in resolved]


def _refusal(error: ApiError) -> JSONResponse:
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    # an echo of half a surrogate pair could not be encoded
    message = error.message.encode("utf-8", "backslashreplace").decode()
    return JSONResponse(
        {"error": {"type": error.kind, "message": message}}, error.status, headers=headers
    )


def _path(location: Sequence[str | int]) -> str:
    """Pydantic's ("body", "inputs", 0, "text") as inputs[0].text."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in location[1:]]
    return "".join(parts).lstrip(".") or "body"


def _add_error_handlers(app: FastAPI) -> None:
    async def on_api_error(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return _refusal(error)

    async def on_http_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        kind = _STATUS_KINDS.get(error.status_code, "bad_request")
        detail = f"{request.method} {request.url.path}: {error.detail}"
        return _refusal(ApiError(error.status_code, kind, detail))

    async def on_invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first, *others = error.errors()
        if first["type"] == "json_invalid":
            place = f"body: not JSON at character {first['loc'][-1]}: {first['ctx']['error']}"
            return _refusal(ApiError(400, "malformed_json", place))
        if first["loc"] == ("body",) and "json" not in request.headers.get("content-type", ""):
            message = "body: expected JSON with the header Content-Type: application/json"
            return _refusal(ApiError(415, "unsupported_media_type", message))
        more = f" (and {len(others)} more)" if others else ""
        message = first["msg"].removeprefix("Value error, ")
        return _refusal(invalid(f"{_path(first['loc'])}: {message}{more}"))

    async def on_failure(request: Request, error: Exception) -> JSONResponse:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return _refusal(ApiError(500, "internal", "failed; the server's log has the reason"))

    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(Exception, on_failure)
