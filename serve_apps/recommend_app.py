"""Recommendations on Ray Serve: a Recommend deployment behind a gateway.

`serve_apps.recommend_app:build` is the builder that `config.yaml` names.
"""

# no `from __future__ import annotations`: Ray reads the class that `build` takes off its signature

from functools import partial
from typing import Any, TypeAlias

from fastapi import FastAPI
from pydantic import Field
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from serve_apps.api import RecommendVersion
from serve_apps.deployment import (
    COMMON,
    SwapSettings,
    answered,
    ask,
    check_transport,
    follow,
    gateways,
    not_held,
    operate,
    operator_of,
    own_device,
    within,
)
from serve_apps.errors import ApiError
from serve_apps.follower import Follower, pin_held
from serve_apps.guard import Access
from serve_apps.recommend import Places, Recommender
from serve_apps.recommend_gateway import (
    PATH,
    Asked,
    History,
    Recommended,
    RecommendLimits,
    make_pinned_recommend_app,
)
from serve_apps.releases import Deployed, Pinned, Release
from serve_apps.versions import users_release, users_version


class RecommendArgs(Places):
    """What the application builder takes."""

    # every replica of the gateway holds encoder, index and histories: the fastest way, if they fit
    in_gateway: bool = False
    # replicas of the gateway, where the configuration does not say how many
    gateways: int = Field(default=1, ge=1)
    max_batch: int = Field(default=64, ge=1)  # histories a forward pass
    batch_wait_ms: float = Field(default=2.0, ge=0)  # how long a lone history waits for company
    timeout_s: float = Field(default=30.0, gt=0)  # for one request, queueing included
    swap: SwapSettings = SwapSettings()
    limits: RecommendLimits = RecommendLimits()
    access: Access = Access()


def _recommender(args: RecommendArgs, release: Release) -> Recommender:
    parts = {name: part for name, part in release if part is not None}
    return Recommender(
        Places(**{name: part.uri for name, part in parts.items()}),
        Places(**{name: part.version for name, part in parts.items()}),
        max_batch=args.max_batch,
        max_wait_s=args.batch_wait_ms / 1000,
        device=own_device(),
        release=release,
    )


# little of a CPU each: on two cores there is room for this beside the content service
@serve.deployment(**COMMON, ray_actor_options={"num_cpus": 0.15})
class Recommend:
    """Histories to items: encoder, index and users' histories in memory."""

    async def __init__(self, args: dict[str, Any], deployed: dict[str, Any]) -> None:
        config = RecommendArgs.model_validate(args)
        self._releases = follow(
            Deployed.model_validate(deployed),
            key=lambda one: one.name,
            load=lambda one: _recommender(config, one),
            close=lambda recommender: recommender.close(),
        )
        await self._releases.start()

    async def recommend(self, release: str, asked: Asked) -> Recommended | ApiError:
        held = self._releases.get(release)
        return not_held(release) if held is None else await answered(held.recommend(asked))

    async def history(self, release: str, user: str, limit: int) -> History | ApiError:
        held = self._releases.get(release)
        return not_held(release) if held is None else await answered(held.history(user, limit))

    async def users(
        self, release: str, prefix: str, limit: int
    ) -> list[tuple[str, int]] | ApiError:
        held = self._releases.get(release)
        return not_held(release) if held is None else await held.users(prefix, limit)

    async def canary(self) -> ApiError | None:
        return await answered(self._releases.items()[0].canary())

    async def check_health(self) -> None:
        await self._releases.items()[0].canary()


class RecommendServeBackend:
    """The gateway's backend for one release: the deployment, each call with a deadline."""

    def __init__(self, recommend: DeploymentHandle, release: str, timeout_s: float) -> None:
        self._recommend, self._release, self._timeout_s = recommend, release, timeout_s

    async def recommend(self, asked: Asked) -> Recommended:
        return await ask(self._timeout_s, self._recommend.recommend, self._release, asked)

    async def history(self, user: str, limit: int) -> History:
        return await ask(self._timeout_s, self._recommend.history, self._release, user, limit)

    async def users(self, prefix: str, limit: int) -> list[tuple[str, int]]:
        return await ask(self._timeout_s, self._recommend.users, self._release, prefix, limit)

    async def canary(self) -> None:
        await ask(self._timeout_s, self._recommend.canary)

    async def check_own(self) -> None:
        """Nothing is held here."""

    async def close(self) -> None:
        """The deployment closes what it holds."""


class OwnRecommendBackend:
    """The same, of what the gateway itself holds."""

    def __init__(self, recommender: Recommender, timeout_s: float) -> None:
        self._recommender, self._timeout_s = recommender, timeout_s
        self.history, self.users = recommender.history, recommender.users
        self.canary = self.check_own = recommender.canary
        self.close = recommender.close

    async def recommend(self, asked: Asked) -> Recommended:
        return await within(self._timeout_s, self._recommender.recommend(asked))


_GatewayBackend: TypeAlias = RecommendServeBackend | OwnRecommendBackend


@serve.deployment(**COMMON, ray_actor_options={"num_cpus": 0.1})
@serve.ingress()
class RecommendGateway:
    """The HTTP ingress; see `serve_apps.recommend_gateway`."""

    async def __init__(
        self,
        args: dict[str, Any],
        deployed: dict[str, Any],
        recommend: DeploymentHandle | None,
    ) -> None:
        self._args = args_ = RecommendArgs.model_validate(args)
        check_transport(args_.limits.max_body_bytes)
        self._deployed = Deployed.model_validate(deployed)

        def load(one: Release) -> Pinned[RecommendVersion, _GatewayBackend]:
            if recommend is None:
                backend = OwnRecommendBackend(_recommender(args_, one), args_.timeout_s)
            else:
                backend = RecommendServeBackend(recommend, one.name, args_.timeout_s)
            return Pinned(users_version(one), backend)

        self._releases: Follower[Pinned[RecommendVersion, _GatewayBackend]] = follow(
            self._deployed,
            key=lambda one: one.name,
            load=load,
            close=lambda pinned: pinned.backend.close(),
        )
        await self._releases.start()

    async def check_health(self) -> None:
        await self._releases.items()[0].backend.check_own()

    def __serve_build_asgi_app__(self) -> FastAPI:
        operations = operate(self._args.access, "recommend")
        pin = partial(pin_held, self._releases)
        app = make_pinned_recommend_app(pin, self._args.limits, operations)
        read = lambda places: users_release(**places)  # noqa: E731
        operator_of(self._deployed, read, self._args).add_routes(app, f"{PATH}/admin")
        return app


def build(args: RecommendArgs) -> Application:
    """The application, for the prefix `recommend_gateway.PATH`; reads manifests only, the replicas
    load the files.

    Raises:
        ArtifactError: a manifest cannot be read, or the index was made with another encoder.
    """
    deployed = Deployed(first=users_release(args.encoder, args.index, args.rows)).model_dump()
    plain = args.model_dump()
    gateway = gateways(RecommendGateway, args.gateways, holds_model=args.in_gateway)
    recommend = None if args.in_gateway else Recommend.bind(plain, deployed)
    return gateway.bind(plain, deployed, recommend)
