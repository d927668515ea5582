"""The content service on Ray Serve: Encoder and Knn deployments behind a Gateway.

`serve_apps.app:build` is the builder that `config.yaml` names.
"""

# no `from __future__ import annotations`: Ray reads the class that `build` takes off its signature

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from fastapi import FastAPI
from pydantic import Field
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from rec.config import Config
from serve_apps.api import Version
from serve_apps.deployment import COMMON, answered, ask, check_transport, operate, stale
from serve_apps.errors import ApiError
from serve_apps.explorer import add_page
from serve_apps.gateway import Content, Limits, Queries, Searched, make_app
from serve_apps.guard import Access
from serve_apps.items_app import ItemsServeBackend, bind_items
from serve_apps.items_gateway import add_items
from serve_apps.knn import Searcher
from serve_apps.versions import match

if TYPE_CHECKING:
    from serve_apps.embed import Embedder


class ServeArgs(Config):
    """What the application builder takes; replica counts and resources may be overridden per
    deployment in `config.yaml` as for any Serve application."""

    encoder: str  # URI of a "content-encoder" artifact
    index: str  # URI of an "index" artifact made with that encoder
    items: str | None = None  # folder of tables, for items' titles and pictures and the page at /
    max_batch: int = Field(default=32, ge=1)  # inputs a forward pass
    batch_wait_ms: float = Field(default=2.0, ge=0)  # how long a lone input waits for company
    timeout_s: float = Field(default=30.0, gt=0)  # for one request, queueing included
    limits: Limits = Limits()
    access: Access = Access()


def _embedder(args: ServeArgs, version: str) -> "Embedder":
    # seconds to import, and every replica of the gateway and of the index imports this file
    import torch

    from serve_apps.embed import Embedder

    return Embedder(
        args.encoder,
        version,
        max_batch=args.max_batch,
        max_wait_s=args.batch_wait_ms / 1000,
        # Ray hides the GPUs from a replica that did not ask for one
        device="cuda" if torch.cuda.is_available() else "cpu",
    )


@serve.deployment(**COMMON, ray_actor_options={"num_cpus": 1})
class Encoder:
    """Texts and pictures to vectors; one model, one thread, batches over all callers."""

    async def __init__(self, args: dict[str, Any], version: str) -> None:
        self._version = version
        self._embedder = await asyncio.to_thread(_embedder, ServeArgs.model_validate(args), version)

    async def encode(self, model: str, inputs: Sequence[Content]) -> np.ndarray | ApiError:
        return stale(model, self._version) or await answered(self._embedder.encode(inputs))

    async def canary(self) -> ApiError | None:
        return await answered(self._embedder.canary())

    async def check_health(self) -> None:
        await self._embedder.canary()


@serve.deployment(**COMMON, ray_actor_options={"num_cpus": 0.5})
class Knn:
    """Vectors and item ids to neighbours; the whole index in memory."""

    async def __init__(self, args: dict[str, Any], version: str) -> None:
        config = ServeArgs.model_validate(args)
        self._searcher = await asyncio.to_thread(Searcher, config.index, version)

    async def search(
        self, model: str, queries: Queries, k: int, exclude_self: bool
    ) -> Searched | ApiError:
        refusal = stale(model, self._searcher.encoder_version)
        return refusal or await answered(self._searcher.search(queries, k, exclude_self))

    async def canary(self) -> ApiError | None:
        return await answered(self._searcher.canary())

    async def check_health(self) -> None:
        await self._searcher.canary()


class ServeBackend:
    """The gateway's backend: the two deployments, each call with a deadline.

    Each is told the model that is meant: vectors of one in the index of another would give
    neighbours that look like any others.
    """

    def __init__(
        self, encoder: DeploymentHandle, knn: DeploymentHandle, model: str, timeout_s: float
    ) -> None:
        self._encoder, self._knn, self._timeout_s = encoder, knn, timeout_s
        self._model = model

    async def encode(self, inputs: Sequence[Content]) -> np.ndarray:
        return await ask(self._timeout_s, self._encoder.encode, self._model, inputs)

    async def search(self, queries: Queries, k: int, exclude_self: bool) -> Searched:
        return await ask(self._timeout_s, self._knn.search, self._model, queries, k, exclude_self)

    async def canary(self) -> None:
        await ask(self._timeout_s, self._knn.canary)
        await ask(self._timeout_s, self._encoder.canary)


@serve.deployment(**COMMON, ray_actor_options={"num_cpus": 0.15})
@serve.ingress()
class Gateway:
    """The HTTP ingress; see `serve_apps.gateway`."""

    def __init__(
        self,
        args: dict[str, Any],
        version: dict[str, Any],
        encoder: DeploymentHandle,
        knn: DeploymentHandle,
        items: DeploymentHandle | None = None,
        items_version: str = "",
    ) -> None:
        self._args = ServeArgs.model_validate(args)
        check_transport(self._args.limits.max_body_bytes)
        self._version = Version.model_validate(version)
        self._backend = ServeBackend(
            encoder, knn, self._version.model_version, self._args.timeout_s
        )
        self._items = None if items is None else ItemsServeBackend(items, self._args.timeout_s)
        self._items_version = items_version

    def __serve_build_asgi_app__(self) -> FastAPI:
        operations = operate(self._args.access, "content")
        app = make_app(self._backend, self._version, self._args.limits, operations)
        if self._items is not None:
            about = self._version, self._items_version, self._args.limits
            add_items(app, self._backend, self._items, *about)
            add_page(app)
        return app


def build(args: ServeArgs) -> Application:
    """The application; reads only manifests, the replicas load the files.

    Raises:
        ArtifactError: a manifest cannot be read, the index was made with another encoder, or there
            are no finished tables of items.
    """
    version = match(args.encoder, args.index)
    plain = args.model_dump()
    encoder = Encoder.bind(plain, version.model_version)
    knn = Knn.bind(plain, version.index_version)
    about = bind_items(args.items) if args.items else (None, "")
    return Gateway.bind(plain, version.model_dump(), encoder, knn, *about)
