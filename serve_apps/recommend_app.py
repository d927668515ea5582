"""Recommendations on Ray Serve: a Recommend deployment behind a gateway.

`serve_apps.recommend_app:build` is the builder that `config.yaml` names.
"""

# no `from __future__ import annotations`: Ray reads the class that `build` takes off its signature

import asyncio
from typing import Any

from fastapi import FastAPI
from pydantic import Field
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from serve_apps.api import RecommendVersion
from serve_apps.deployment import COMMON, answered, ask, check_transport, operate
from serve_apps.errors import ApiError
from serve_apps.guard import Access
from serve_apps.recommend import Places, Recommender
from serve_apps.recommend_gateway import (
    Asked,
    History,
    Recommended,
    RecommendLimits,
    make_recommend_app,
)
from serve_apps.versions import match_users


class RecommendArgs(Places):
    """What the application builder takes."""

    max_batch: int = Field(default=64, ge=1)  # histories a forward pass
    batch_wait_ms: float = Field(default=2.0, ge=0)  # how long a lone history waits for company
    timeout_s: float = Field(default=30.0, gt=0)  # for one request, queueing included
    limits: RecommendLimits = RecommendLimits()
    access: Access = Access()


def _recommender(args: RecommendArgs, version: RecommendVersion) -> Recommender:
    import torch  # seconds, and the gateway's replicas import this file too

    return Recommender(
        args,
        Places(
            encoder=version.model_version, index=version.index_version, rows=version.rows_version
        ),
        max_batch=args.max_batch,
        max_wait_s=args.batch_wait_ms / 1000,
        # Ray hides the GPUs from a replica that did not ask for one
        device="cuda" if torch.cuda.is_available() else "cpu",
    )


# little of a CPU each: on two cores there is room for this beside the content service
@serve.deployment(**COMMON, ray_actor_options={"num_cpus": 0.15})
class Recommend:
    """Histories to items: encoder, index and users' histories in memory."""

    async def __init__(self, args: dict[str, Any], version: dict[str, Any]) -> None:
        self._recommender = await asyncio.to_thread(
            _recommender,
            RecommendArgs.model_validate(args),
            RecommendVersion.model_validate(version),
        )

    async def recommend(self, asked: Asked) -> Recommended | ApiError:
        return await answered(self._recommender.recommend(asked))

    async def history(self, user: str, limit: int) -> History | ApiError:
        return await answered(self._recommender.history(user, limit))

    async def users(self, prefix: str, limit: int) -> list[tuple[str, int]]:
        return await self._recommender.users(prefix, limit)

    async def canary(self) -> ApiError | None:
        return await answered(self._recommender.canary())

    async def check_health(self) -> None:
        await self._recommender.canary()


class RecommendServeBackend:
    """The gateway's backend: the deployment, each call with a deadline."""

    def __init__(self, recommend: DeploymentHandle, timeout_s: float) -> None:
        self._recommend, self._timeout_s = recommend, timeout_s

    async def recommend(self, asked: Asked) -> Recommended:
        return await ask(self._timeout_s, self._recommend.recommend, asked)

    async def history(self, user: str, limit: int) -> History:
        return await ask(self._timeout_s, self._recommend.history, user, limit)

    async def users(self, prefix: str, limit: int) -> list[tuple[str, int]]:
        return await ask(self._timeout_s, self._recommend.users, prefix, limit)

    async def canary(self) -> None:
        await ask(self._timeout_s, self._recommend.canary)


@serve.deployment(**COMMON, ray_actor_options={"num_cpus": 0.1})
@serve.ingress()
class RecommendGateway:
    """The HTTP ingress; see `serve_apps.recommend_gateway`."""

    def __init__(
        self, args: dict[str, Any], version: dict[str, Any], recommend: DeploymentHandle
    ) -> None:
        self._args = RecommendArgs.model_validate(args)
        check_transport(self._args.limits.max_body_bytes)
        self._version = RecommendVersion.model_validate(version)
        self._backend = RecommendServeBackend(recommend, self._args.timeout_s)

    def __serve_build_asgi_app__(self) -> FastAPI:
        operations = operate(self._args.access, "recommend")
        return make_recommend_app(self._backend, self._version, self._args.limits, operations)


def build(args: RecommendArgs) -> Application:
    """The application, for the prefix `recommend_gateway.PATH`; reads manifests only, the replicas
    load the files.

    Raises:
        ArtifactError: a manifest cannot be read, or the index was made with another encoder.
    """
    version = match_users(args.encoder, args.index, args.rows).model_dump()
    plain = args.model_dump()
    return RecommendGateway.bind(plain, version, Recommend.bind(plain, version))
