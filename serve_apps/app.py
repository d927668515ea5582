"""The content service on Ray Serve: Encoder and Knn deployments behind a Gateway.

`serve_apps.app:build` is the builder that `config.yaml` names.
"""

# no `from __future__ import annotations`: Ray reads the class that `build` takes off its signature

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from fastapi import FastAPI
from pydantic import Field
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from rec.config import Config
from rec.retrieval.filters import Filter
from serve_apps.api import Version
from serve_apps.backend import Packed
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
from serve_apps.explorer import add_page
from serve_apps.follower import Follower, pin_held
from serve_apps.gateway import Content, Limits, Queries, Searched, make_pinned_app
from serve_apps.guard import Access
from serve_apps.items_app import ItemsServeBackend, bind_items
from serve_apps.items_gateway import add_items
from serve_apps.knn import Searcher
from serve_apps.releases import Deployed, Pinned, Release
from serve_apps.versions import content_release, content_version

if TYPE_CHECKING:
    from serve_apps.embed import Embedder


class ServeArgs(Config):
    """What the application builder takes; replica counts and resources may be overridden per
    deployment in `config.yaml` as for any Serve application."""

    encoder: str  # URI of a "content-encoder" artifact
    index: str  # URI of an "index" artifact made with that encoder
    # every replica of the gateway holds the index, or the encoder: the fastest way, of what fits
    index_in_gateway: bool = False
    encoder_in_gateway: bool = False
    # replicas of the gateway, each of a core, where the configuration does not say how many
    gateways: int = Field(default=1, ge=1)
    items: str | None = None  # folder of tables, for items' titles and pictures and the page at /
    # bf16: matrices in bfloat16, twice as many texts where the processor has it (avx512_bf16, AMX)
    # or on a GPU, vectors of cosine .9999 to those of fp32; not by itself, as nodes may differ
    precision: Literal["fp32", "bf16"] = "fp32"
    max_batch: int = Field(default=32, ge=1)  # inputs a forward pass
    batch_wait_ms: float = Field(default=2.0, ge=0)  # how long a lone input waits for company
    timeout_s: float = Field(default=30.0, gt=0)  # for one request, queueing included
    swap: SwapSettings = SwapSettings()
    limits: Limits = Limits()
    access: Access = Access()


def _embedder(args: ServeArgs, release: Release) -> "Embedder":
    # seconds to import, and every replica of the gateway and of the index imports this file
    from serve_apps.embed import Embedder

    found = Embedder(
        release.encoder.uri,
        release.encoder.version,
        max_batch=args.max_batch,
        max_wait_s=args.batch_wait_ms / 1000,
        device=own_device(),
        manifest=release.encoder.manifest,
        bf16=args.precision == "bf16",
    )
    found.probe()
    return found


def _searcher(release: Release) -> Searcher:
    return Searcher(release.index.uri, release.index.version, release.index.manifest)


@serve.deployment(**COMMON, ray_actor_options={"num_cpus": 1})
class Encoder:
    """Texts and pictures to vectors; a model, one thread for it, batches over all callers."""

    async def __init__(self, args: dict[str, Any], deployed: dict[str, Any]) -> None:
        config = ServeArgs.model_validate(args)
        self._models = follow(
            Deployed.model_validate(deployed),
            key=lambda one: one.encoder.version,
            load=lambda one: _embedder(config, one),
            close=lambda embedder: embedder.close(),
        )
        await self._models.start()

    async def encode(self, model: str, inputs: Sequence[Content]) -> np.ndarray | ApiError:
        embedder = self._models.get(model)
        return not_held(model) if embedder is None else await answered(embedder.encode(inputs))

    async def canary(self) -> ApiError | None:
        return await answered(self._models.items()[0].canary())

    async def check_health(self) -> None:
        await self._models.items()[0].canary()


@serve.deployment(**COMMON, ray_actor_options={"num_cpus": 0.5})
class Knn:
    """Vectors and item ids to neighbours; the whole index in memory."""

    async def __init__(self, deployed: dict[str, Any]) -> None:
        self._indexes = follow(
            Deployed.model_validate(deployed),
            key=lambda one: one.index.version,
            load=_searcher,
            close=lambda searcher: searcher.close(),
        )
        await self._indexes.start()

    async def search(
        self,
        index: str,
        queries: Queries,
        k: int,
        exclude_self: bool,
        where: Filter | None = None,
    ) -> Searched | ApiError:
        searcher = self._indexes.get(index)
        if searcher is None:
            return not_held(index)
        return await answered(searcher.search(queries, k, exclude_self, where))

    async def search_packed(self, index: str, rows: np.ndarray, k: int) -> Packed | ApiError:
        searcher = self._indexes.get(index)
        return not_held(index) if searcher is None else await searcher.search_packed(rows, k)

    async def canary(self) -> ApiError | None:
        return await answered(self._indexes.items()[0].canary())

    async def check_health(self) -> None:
        await self._indexes.items()[0].canary()


class ServeBackend:
    """The gateway's backend for one release: the two deployments, each call with a deadline.

    Each is told the version that is meant: vectors of one model in the index of another would give
    neighbours that look like any others. What has no deployment is held here.
    """

    def __init__(
        self,
        encoder: DeploymentHandle | None,
        knn: DeploymentHandle | None,
        release: Release,
        args: ServeArgs,
    ) -> None:
        self._encoder, self._knn, self._timeout_s = encoder, knn, args.timeout_s
        self._model, self._index = release.encoder.version, release.index.version
        self._own_encoder = _embedder(args, release) if encoder is None else None
        self._own_index = _searcher(release) if knn is None else None

    async def encode(self, inputs: Sequence[Content]) -> np.ndarray:
        if self._own_encoder is not None:
            return await within(self._timeout_s, self._own_encoder.encode(inputs))
        return await ask(self._timeout_s, _there(self._encoder).encode, self._model, inputs)

    async def search(
        self, queries: Queries, k: int, exclude_self: bool, where: Filter | None = None
    ) -> Searched:
        asked = queries, k, exclude_self, where
        if self._own_index is not None:
            return await self._own_index.search(*asked)
        return await ask(self._timeout_s, _there(self._knn).search, self._index, *asked)

    async def search_packed(self, rows: np.ndarray, k: int) -> Packed:
        if self._own_index is not None:
            return await self._own_index.search_packed(rows, k)
        return await ask(self._timeout_s, _there(self._knn).search_packed, self._index, rows, k)

    async def check_own(self) -> None:
        """Raises ApiError unless what is held here answers as it did."""
        for one in (self._own_encoder, self._own_index):
            if one is not None:
                await one.canary()

    async def canary(self) -> None:
        await self.check_own()
        for one in (self._knn, self._encoder):
            if one is not None:
                await ask(self._timeout_s, one.canary)

    async def close(self) -> None:
        if self._own_encoder is not None:
            await self._own_encoder.close()
        if self._own_index is not None:
            self._own_index.close()


def _there(handle: DeploymentHandle | None) -> DeploymentHandle:
    assert handle is not None
    return handle


@serve.deployment(**COMMON, ray_actor_options={"num_cpus": 0.15})
@serve.ingress()
class Gateway:
    """The HTTP ingress; see `serve_apps.gateway`."""

    async def __init__(
        self,
        args: dict[str, Any],
        deployed: dict[str, Any],
        encoder: DeploymentHandle | None,
        knn: DeploymentHandle | None,
        items: DeploymentHandle | None = None,
        items_version: str = "",
    ) -> None:
        self._args = args_ = ServeArgs.model_validate(args)
        check_transport(args_.limits.max_body_bytes)
        self._deployed = Deployed.model_validate(deployed)
        self._releases: Follower[Pinned[Version, ServeBackend]] = follow(
            self._deployed,
            key=lambda one: one.name,
            load=lambda one: Pinned(content_version(one), ServeBackend(encoder, knn, one, args_)),
            close=lambda pinned: pinned.backend.close(),
        )
        await self._releases.start()
        self._items = None if items is None else ItemsServeBackend(items, args_.timeout_s)
        self._items_version = items_version

    async def check_health(self) -> None:
        await self._releases.items()[0].backend.check_own()

    def __serve_build_asgi_app__(self) -> FastAPI:
        operations = operate(self._args.access, "content")
        pin = partial(pin_held, self._releases)
        app = make_pinned_app(pin, self._args.limits, operations)
        if self._items is not None:
            add_items(app, pin, self._items, self._items_version, self._args.limits)
            add_page(app)
        read = lambda places: content_release(places["encoder"], places["index"])  # noqa: E731
        operator_of(self._deployed, read, self._args).add_routes(app, "/v1/admin")
        return app


def build(args: ServeArgs) -> Application:
    """The application; reads only manifests, the replicas load the files.

    Raises:
        ArtifactError: a manifest cannot be read, the index was made with another encoder, or there
            are no finished tables of items.
    """
    gateway = gateways(Gateway, args.gateways, holds_model=args.encoder_in_gateway)
    deployed = Deployed(first=content_release(args.encoder, args.index)).model_dump()
    plain = args.model_dump()
    encoder = None if args.encoder_in_gateway else Encoder.bind(plain, deployed)
    knn = None if args.index_in_gateway else Knn.bind(deployed)
    about = bind_items(args.items) if args.items else (None, "")
    return gateway.bind(plain, deployed, encoder, knn, *about)
