"""The table of items on Ray Serve: a deployment that the content service's gateway asks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle

from serve_apps.catalogue import (
    Browsed,
    Card,
    Catalogue,
    Listing,
    Picture,
    TagCount,
    tables_version,
)
from serve_apps.deployment import COMMON, answered, ask
from serve_apps.errors import ApiError
from serve_apps.item_tags import Suggested
from serve_apps.versions import same


# little of a CPU: all the services together have two
@serve.deployment(**COMMON, ray_actor_options={"num_cpus": 0.1})
class Items:
    """What is told of items; titles and tags in memory, pictures on disk."""

    async def __init__(self, uri: str, version: str) -> None:
        self._catalogue = await asyncio.to_thread(Catalogue, uri)
        same(uri, self._catalogue.version, version)

    async def browse(self, asked: Listing) -> Browsed:
        return self._catalogue.browse(asked)

    async def lookup(self, item_ids: Sequence[str]) -> list[Card | None]:
        return self._catalogue.lookup(item_ids)

    async def tags(self, limit: int, prefix: str) -> list[TagCount]:
        return self._catalogue.tags(limit, prefix)

    async def suggest(
        self, neighbours: Sequence[str], similarities: Sequence[float], own: str | None, limit: int
    ) -> list[Suggested]:
        return self._catalogue.suggest(neighbours, similarities, own, limit)

    async def picture(self, item_id: str) -> Picture | ApiError:
        return await answered(asyncio.to_thread(self._catalogue.picture, item_id))


class ItemsServeBackend:
    """The gateway's backend: the deployment, each call with a deadline."""

    def __init__(self, items: DeploymentHandle, timeout_s: float) -> None:
        self._items, self._timeout_s = items, timeout_s

    async def browse(self, asked: Listing) -> Browsed:
        return await ask(self._timeout_s, self._items.browse, asked)

    async def lookup(self, item_ids: Sequence[str]) -> list[Card | None]:
        return await ask(self._timeout_s, self._items.lookup, item_ids)

    async def tags(self, limit: int, prefix: str) -> list[TagCount]:
        return await ask(self._timeout_s, self._items.tags, limit, prefix)

    async def suggest(
        self, neighbours: Sequence[str], similarities: Sequence[float], own: str | None, limit: int
    ) -> list[Suggested]:
        return await ask(self._timeout_s, self._items.suggest, neighbours, similarities, own, limit)

    async def picture(self, item_id: str) -> Picture:
        return await ask(self._timeout_s, self._items.picture, item_id)


def bind_items(uri: str) -> tuple[Application, str]:
    """The deployment of the tables at `uri`, and their version; raises ArtifactError."""
    version = tables_version(uri)
    return Items.bind(uri, version), version
