"""A replica's side of a swap: it holds what the plan wants, and says what it holds.

Knows nothing of Ray or HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

from rec.config import Config
from serve_apps.board import Board
from serve_apps.releases import B, Pinned, Plan, Release, V, pin_among

T = TypeVar("T")
logger = logging.getLogger(__name__)

PLAN, MEMBERS = "plan", "member/"  # keys of the board
POLL_S = 0.5  # how long a swap takes to be noticed
_BEAT_S = 2.0


class Status(Config):
    """What a replica says of itself."""

    at: float  # time.time()
    epoch: int = -1  # of the plan that it has carried out; -1: none yet
    ready: tuple[str, ...] = ()  # names of releases
    failed: dict[str, str] = {}  # name of a release -> why it cannot be loaded


class Follower(Generic[T]):
    """Holds something of each release that is wanted. Used within one event loop.

    Args:
        board: of the application.
        name: of the replica, for people and as its key on the board.
        first: the release in use while there is no plan.
        key: what of a release is held: releases of one key share it.
        load: makes it, in a thread; raises what went wrong.
        close: of what is no longer wanted.
    """

    def __init__(
        self,
        board: Board,
        name: str,
        first: Release,
        *,
        key: Callable[[Release], str],
        load: Callable[[Release], T],
        close: Callable[[T], object] | None = None,
        poll_s: float = POLL_S,
    ) -> None:
        self._board, self._name, self._poll_s = board, name, poll_s
        self._key, self._load, self._close = key, load, close
        self._held: dict[str, T] = {}
        self._failed: dict[str, str] = {}  # by the plan of that epoch
        self._seen = -1
        self._first, self.plan = first, Plan(current=first)
        self._read_plan: tuple[bytes | None, Plan] | None = None
        self._done = -1
        self._tasks: list[asyncio.Task[None]] = []

    def get(self, key: str) -> T | None:
        """What is held of releases of this key; None: nothing."""
        return self._held.get(key)

    def items(self) -> list[T]:
        """All that is held, what is in use first."""
        first = self._held[self._key(self.plan.current)]
        return [first, *(one for one in self._held.values() if one is not first)]

    async def start(self) -> None:
        """Load what is wanted, and from then on whatever comes to be; raises what `load` does
        where the release in use cannot be loaded."""
        loop = asyncio.get_running_loop()
        # before the plan is read: a swap that does not see this replica has a plan that it reads
        await self._tell()
        self._tasks.append(loop.create_task(self._beat()))
        try:
            while (plan := await self._read()).epoch != self._done:
                await self._carry_out(plan, at_start=True)
            await self._tell()
        except BaseException:
            await self.stop()
            raise
        self._tasks.append(loop.create_task(self._follow()))

    async def stop(self) -> None:
        """Hold what is held and follow no longer."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with suppress(OSError, RuntimeError):
            await asyncio.to_thread(self._board.delete, MEMBERS + self._name)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                plan = await self._read()
                before = self._done, set(self._held), len(self._failed)
                await self._carry_out(plan)
                if (self._done, set(self._held), len(self._failed)) != before:
                    await self._tell()
            except Exception:  # the board may be away for a while
                logger.exception("%s: the plan cannot be followed for now", self._name)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(_BEAT_S)
            try:
                await self._tell()
            except Exception:
                logger.exception("%s: cannot say that it is there", self._name)

    async def _read(self) -> Plan:
        data = await asyncio.to_thread(self._board.get, PLAN)
        if self._read_plan is None or data != self._read_plan[0]:  # a manifest may be long
            plan = Plan(current=self._first) if data is None else Plan.model_validate_json(data)
            self._read_plan = data, plan
        return self._read_plan[1]

    async def _tell(self) -> None:
        ready = [one.name for one in self.plan.wanted(time.time()) if self._key(one) in self._held]
        status = Status(
            at=time.time(), epoch=self._done, ready=tuple(ready), failed=dict(self._failed)
        )
        data = status.model_dump_json().encode()
        await asyncio.to_thread(self._board.put, MEMBERS + self._name, data)

    async def _carry_out(self, plan: Plan, *, at_start: bool = False) -> None:
        wanted = plan.wanted(time.time())
        if plan.epoch != self._seen:  # it may be asked for again
            self._seen, self._failed = plan.epoch, {}
        for release in wanted:
            given_up = release.name in self._failed and release is not plan.current
            if self._key(release) in self._held or given_up:
                continue
            try:
                loaded = await asyncio.to_thread(self._load, release)
            except Exception as error:
                if at_start and release is plan.current:
                    raise
                logger.exception("%s: %s cannot be loaded", self._name, release)
                self._failed[release.name] = f"{type(error).__name__}: {error}"
            else:
                self._held[self._key(release)] = loaded
        if self._key(plan.current) not in self._held:
            return  # as it was before: what is held answers on
        self.plan, self._done = plan, plan.epoch
        keys = {self._key(release) for release in wanted}
        for key in [key for key in self._held if key not in keys]:
            gone = self._held.pop(key)
            if self._close is not None:
                done = self._close(gone)
                if asyncio.iscoroutine(done):
                    await done


def pin_held(
    follower: Follower[Pinned[V, B]], model: str | None, index: str | None
) -> Pinned[V, B]:
    """A gateway's pin, of a follower that holds by the names of releases."""
    held = [follower.get(one.name) for one in follower.plan.answering(time.time())]
    return pin_among([one for one in held if one is not None], model, index)
