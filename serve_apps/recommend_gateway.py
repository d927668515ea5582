"""The HTTP face of recommendations: checks requests, asks a backend, answers in JSON.

Knows nothing of Ray. Refusals are those of `serve_apps.web`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, NamedTuple, Protocol

from fastapi import FastAPI, Query, Request
from pydantic import Field

from rec import __version__
from rec.config import Config
from rec.retrieval.filters import Filter
from rec.retrieval.queries import MAX_EXCLUDED, MAX_K
from serve_apps.admission import Patience
from serve_apps.api import RecommendRequest, RecommendResponse, RecommendVersion
from serve_apps.errors import ApiError, invalid
from serve_apps.observe import SPANS, Operations
from serve_apps.reasons import Reasons
from serve_apps.releases import Pin, fixed
from serve_apps.users_api import MAX_LISTED, HistoryResponse, User, UserList
from serve_apps.web import add_health, check_version, new_app

PATH = "/v1/recommend"  # Serve's prefix of this application


class Asked(NamedTuple):
    """A checked request: a history or a user, not both."""

    history: Sequence[str] | None  # item ids, the newest last
    user: str | None
    k: int  # 1 to 10,000
    exclude: Sequence[str] = ()  # at most MAX_EXCLUDED
    exclude_seen: bool = True
    reasons: int = 0  # items of the history told with each; 0: none
    where: Filter | None = None  # only items that fit
    diversity: float = 0.0  # 0 (by score alone) to 1


class Recommended(NamedTuple):
    ids: list[str]  # the best first, at most k
    scores: list[float]
    source: Literal["model", "popular"]
    num_known: int  # events of the history whose items the model knows
    num_unknown: int
    model_version: str  # of what answered, which a roll-out may have made newer than the gateway
    index_version: str
    why: Reasons | None = None  # None: not asked for, or what is popular
    spans: Mapping[str, float] = {}  # milliseconds in what answered, by what they went into


class History(NamedTuple):
    ids: list[str]  # of items, the newest last
    num_events: int  # there are in all
    rows_version: str


class RecommendLimits(Config):
    """How much one request may ask."""

    max_k: int = Field(default=1000, ge=1, le=MAX_K)
    max_history: int = Field(default=5000, ge=1, le=MAX_EXCLUDED)  # items of a request's history
    max_exclude: int = Field(default=5000, ge=0, le=MAX_EXCLUDED)
    max_body_bytes: int = Field(default=1 << 20, ge=1)
    max_body_s: float = Field(default=20.0, gt=0)  # that a body may take to come
    # what would take longer than that with all that is under way is refused (503)
    max_wait_s: float = Field(default=0.02, gt=0)
    max_wait_times: float = Field(default=4.0, ge=0)  # or this much longer than one takes alone


class RecommendBackend(Protocol):
    """What answers. All methods raise ApiError."""

    async def recommend(self, asked: Asked) -> Recommended: ...

    async def history(self, user: str, limit: int) -> History: ...

    async def users(self, prefix: str, limit: int) -> list[tuple[str, int]]: ...

    async def canary(self) -> None:
        """One small history, compared with what must come out."""
        ...


def make_recommend_app(
    backend: RecommendBackend,
    version: RecommendVersion,
    limits: RecommendLimits,
    operations: Operations | None = None,
) -> FastAPI:
    """The service of one release as an ASGI application; all its routes are below PATH."""
    return make_pinned_recommend_app(fixed(backend, version), limits, operations)


def make_pinned_recommend_app(
    pin: Pin[RecommendVersion, RecommendBackend],
    limits: RecommendLimits,
    operations: Operations | None = None,
) -> FastAPI:
    """The service as an ASGI application; all its routes are below PATH."""
    title = "Raycall recommendations"
    patience = {PATH: Patience(limits.max_wait_s, limits.max_wait_times)}
    body = limits.max_body_bytes, limits.max_body_s
    app = new_app(title, __version__, *body, PATH, operations, patience)

    @app.post(PATH, summary="Items for a user", response_model_exclude_none=True)
    async def recommend(body: RecommendRequest, request: Request) -> RecommendResponse:
        version, backend = pin(body.model_version, body.index_version)
        if body.domain is not None and body.domain != version.domain:
            message = f"domain: {body.domain!r} asked, {version.domain!r} is served"
            raise ApiError(404, "unknown_domain", message)
        if body.k > limits.max_k:
            raise invalid(f"k: {body.k}, expected 1 to {limits.max_k}")
        _check_count("history", len(body.history or ()), limits.max_history)
        _check_count("exclude", len(body.exclude), limits.max_exclude)
        asked = Asked(
            body.history,
            body.user,
            body.k,
            body.exclude,
            body.exclude_seen,
            body.reasons,
            body.where,
            body.diversity,
        )
        since = time.perf_counter()
        found = await backend.recommend(asked)
        call = 1000 * (time.perf_counter() - since)
        request.scope[SPANS] = {**found.spans, "call": call}
        check_version(body.model_version, found.model_version)
        return _response(found)

    @app.get(f"{PATH}/history", summary="What a user chose")
    async def history(
        user: Annotated[str, Query(description="of the rows that are served")],
        limit: Annotated[int, Query(ge=1, le=MAX_LISTED, description="the latest of them")] = 50,
    ) -> HistoryResponse:
        found = await pin(None, None).backend.history(user, limit)
        return HistoryResponse(user=user, **found._asdict())

    @app.get(f"{PATH}/users", summary="Users of the rows, in order of their ids")
    async def users(
        prefix: Annotated[str, Query(description="what their ids begin with")] = "",
        limit: Annotated[int, Query(ge=1, le=MAX_LISTED)] = 20,
    ) -> UserList:
        found = await pin(None, None).backend.users(prefix, limit)
        return UserList(users=[User(user=user, num_events=number) for user, number in found])

    @app.get(f"{PATH}/version", summary="What is being served")
    async def get_version() -> RecommendVersion:
        return pin(None, None).version

    add_health(app, f"{PATH}/healthz", lambda: pin(None, None).backend.canary())
    return app


def _response(found: Recommended) -> RecommendResponse:
    told = {name: value for name, value in found._asdict().items() if name not in ("why", "spans")}
    if found.why is not None:
        told["interests"] = [one._asdict() for one in found.why.interests]
        told["reasons"] = [one._asdict() for one in found.why.items]
    return RecommendResponse.model_validate(told)


def _check_count(name: str, number: int, limit: int) -> None:
    if number > limit:
        raise invalid(f"{name}: {number} ids, expected at most {limit}; give the latest")
