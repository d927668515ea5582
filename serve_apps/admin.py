"""The routes of those who run a service: which versions are in use, swapping, going back.

Knows nothing of Ray. The routes are below .../admin, which `serve_apps.web` opens to admins' keys.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Response
from pydantic import BaseModel, ConfigDict, Field

from rec.artifacts import ArtifactError
from serve_apps.api import Body, Text
from serve_apps.errors import ApiError, invalid
from serve_apps.releases import Plan, Release
from serve_apps.swap import Swaps, step_back


class SwapRequest(Body):
    """Places of published artifacts; the one in use now where none is given, whose newest version
    is taken."""

    encoder: Text | None = Field(None, description="path or s3:// URI")
    index: Text | None = None
    rows: Text | None = Field(None, description="of users' histories, for recommendations alone")


class ReleaseDetail(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    model_version: str
    index_version: str
    rows_version: str | None
    encoder: str
    index: str
    rows: str | None


class ReplicaDetail(BaseModel):
    name: str
    up_to_date: bool = Field(description="does as the last change wants it")
    holds: int = Field(description="releases that it has in memory")
    failed: str | None = Field(description="why it cannot load what is being prepared")


class SwapDetail(BaseModel):
    what: str
    done: bool
    message: str = Field(description="why it was not done")
    seconds_ago: float


class Versions(BaseModel):
    current: ReleaseDetail
    previous: ReleaseDetail | None = Field(description="to which a rollback leads")
    preparing: ReleaseDetail | None = Field(description="being loaded beside the current one")
    replicas: list[ReplicaDetail]
    last: SwapDetail | None = Field(description="swap or rollback that has ended")


class Operator:
    """What the routes do.

    Args:
        swaps: leads them.
        read: the published release at these places, "encoder", "index" and perhaps "rows"; raises
            ArtifactError.
        wait_s: how long a request may wait for a swap to end.
    """

    def __init__(
        self, swaps: Swaps, read: Callable[[dict[str, str]], Release], wait_s: float
    ) -> None:
        self._swaps, self._read, self._wait_s = swaps, read, wait_s
        self._under_way: set[asyncio.Task[Any]] = set()

    def add_routes(self, app: FastAPI, below: str) -> None:
        """Add them to a service, below the path `below`."""

        @app.get(f"{below}/versions", summary="What is in use, and which replicas hold it")
        async def versions() -> Versions:
            return await asyncio.to_thread(self._versions)

        under_way: dict[int | str, dict[str, Any]] = {
            202: {"model": Versions, "description": "under way; ask for the versions"}
        }

        @app.post(f"{below}/swap", summary="Use what is published now", responses=under_way)
        async def swap(body: SwapRequest, response: Response) -> Versions:
            return await self._lead("swap", lambda plan: self._wanted(plan, body), response)

        @app.post(f"{below}/rollback", summary="Use what was in use before", responses=under_way)
        async def rollback(response: Response) -> Versions:
            return await self._lead("rollback", step_back, response)

    async def _lead(
        self, what: str, choose: Callable[[Plan], Release], response: Response
    ) -> Versions:
        """Goes on though the caller goes away."""
        task = asyncio.create_task(asyncio.to_thread(self._swaps.swap, what, choose))
        self._under_way.add(task)
        task.add_done_callback(self._ended)
        done, _ = await asyncio.wait({task}, timeout=self._wait_s)
        if done:
            task.result()
        else:
            response.status_code = 202
        return await asyncio.to_thread(self._versions)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # is told by the versions, if nobody waits any more

    def _wanted(self, plan: Plan, body: SwapRequest) -> Release:
        places = {name: part.uri for name, part in plan.current if part is not None}
        given = {name: uri for name, uri in body if uri is not None}
        if unknown := set(given) - set(places):
            raise invalid(f"{', '.join(sorted(unknown))}: not a part of what is served here")
        try:
            return self._read(places | given)
        except (ArtifactError, OSError) as error:
            raise ApiError(422, "unusable_artifact", f"{error}. Nothing has changed") from error

    def _versions(self) -> Versions:
        plan, now = self._swaps.plan(), time.time()
        last = self._swaps.last()
        preparing = plan.preparing if now < plan.preparing_until else None
        return Versions(
            current=_detail(plan.current),
            previous=None if plan.previous is None else _detail(plan.previous),
            preparing=None if preparing is None else _detail(preparing),
            replicas=[
                ReplicaDetail(
                    name=name,
                    up_to_date=one.epoch >= plan.epoch,
                    holds=len(one.ready),
                    failed="; ".join(one.failed.values()) or None,
                )
                for name, one in self._swaps.members().items()
            ],
            last=None
            if last is None
            else SwapDetail(
                what=last.what, done=last.done, message=last.message, seconds_ago=now - last.at
            ),
        )


def _detail(release: Release) -> ReleaseDetail:
    rows = release.rows
    return ReleaseDetail(
        model_version=release.encoder.version,
        index_version=release.index.version,
        rows_version=None if rows is None else rows.version,
        encoder=release.encoder.uri,
        index=release.index.uri,
        rows=None if rows is None else rows.uri,
    )
