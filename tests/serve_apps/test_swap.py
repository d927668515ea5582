"""Swaps in two phases, among followers and gateways of one process."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from rec.artifacts import Manifest
from serve_apps.board import MemoryBoard
from serve_apps.errors import ApiError
from serve_apps.follower import MEMBERS, PLAN, Follower, Status, pin_held
from serve_apps.releases import Pinned, Placed, Plan, Release, fixed
from serve_apps.swap import Swaps, step_back

POLL_S = 0.01
M1, M2 = "a1" * 8, "a2" * 8  # versions of models
I1, I2, I3 = "b1" * 8, "b2" * 8, "b3" * 8  # and of indexes


def release(model: str, index: str) -> Release:
    def placed(kind: str, version: str) -> Placed:
        made = Manifest(
            kind=kind, version=version, root=f"v-{version}", files={}, created_at="2026-01-01"
        )
        return Placed(uri=f"/{kind}", manifest=made)

    return Release(encoder=placed("content-encoder", model), index=placed("index", index))


ONE, TWO, THREE = release(M1, I1), release(M2, I2), release(M2, I3)


class Told(NamedTuple):
    model_version: str
    index_version: str


def gateway(board: MemoryBoard, first: Release = ONE, name: str = "gateway") -> Follower[Any]:
    def load(one: Release) -> Pinned[Told, str]:
        return Pinned(Told(one.encoder.version, one.index.version), one.name)

    return Follower(board, name, first, key=lambda one: one.name, load=load, poll_s=POLL_S)


class Holder:
    """A replica that holds indexes; `fails` makes it refuse those of that version."""

    def __init__(self, board: MemoryBoard, name: str, *, load_s: float = 0.0) -> None:
        self.fails, self.load_s = "", load_s
        self.loaded: list[str] = []
        self.closed: list[str] = []
        self.follower: Follower[str] = Follower(
            board,
            name,
            ONE,
            key=lambda one: one.index.version,
            load=self._load,
            close=self.closed.append,
            poll_s=POLL_S,
        )

    def _load(self, one: Release) -> str:
        time.sleep(self.load_s)
        if one.index.version == self.fails:
            raise ValueError("its file is torn")
        self.loaded.append(one.index.version)
        return one.index.version


async def swap(swaps: Swaps, to: Release) -> Plan:
    return await asyncio.to_thread(swaps.swap, "swap", lambda _: to)


async def back(swaps: Swaps) -> Plan:
    return await asyncio.to_thread(swaps.swap, "rollback", step_back)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(POLL_S)


def test_all_load_it_then_all_use_it_and_go_back() -> None:
    async def main() -> None:
        board = MemoryBoard()
        holders = [Holder(board, f"Knn {n}") for n in range(2)]
        door = gateway(board)
        for one in (*(holder.follower for holder in holders), door):
            await one.start()
        swaps = Swaps(board, ONE, keep_s=60)
        assert set(swaps.members()) == {"Knn 0", "Knn 1", "gateway"}
        plan = await swap(swaps, TWO)
        assert (plan.current, plan.previous, plan.preparing) == (TWO, ONE, None)
        # when the swap has ended, nothing answers with the old version unless it is asked to
        assert pin_held(door, None, None).version == (M2, I2)
        assert pin_held(door, M1, None).version == (M1, I1)
        for holder in holders:
            assert holder.follower.get(I2) == I2
            assert holder.follower.get(I1) == I1
        assert (await swap(swaps, TWO)).epoch == plan.epoch  # it is in use already
        plan = await back(swaps)
        assert (plan.current, plan.previous) == (ONE, TWO)
        assert pin_held(door, None, None).version == (M1, I1)
        assert all(holder.loaded == [I1, I2] for holder in holders)  # nothing anew
        last = swaps.last()
        assert last is not None
        assert (last.what, last.done) == ("rollback", True)

    asyncio.run(main())


def test_what_was_in_use_is_let_go_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_apps.releases._UNDER_WAY_S", 0.2)

    async def main() -> None:
        board = MemoryBoard()
        holder, door = Holder(board, "Knn 0"), gateway(board)
        await holder.follower.start()
        await door.start()
        await swap(Swaps(board, ONE, keep_s=0.0), TWO)
        for model, index, kind in ((M1, None, "model"), (None, I1, "index")):
            with pytest.raises(ApiError, match=r"'(..)\1{7}' asked, '(..)\2{7}' is served") as told:
                pin_held(door, model, index)
            assert (told.value.status, told.value.kind) == (409, f"{kind}_mismatch")
        # held on for requests that were under way
        assert holder.follower.get(I1) == I1
        await until(lambda: holder.closed == [I1])
        assert holder.follower.get(I1) is None

    asyncio.run(main())


def test_a_replica_that_cannot_load_it_leaves_all_as_it_was() -> None:
    async def main() -> None:
        board = MemoryBoard()
        good, bad, door = Holder(board, "Knn good"), Holder(board, "Knn bad"), gateway(board)
        bad.fails = I2
        for one in (good.follower, bad.follower, door):
            await one.start()
        swaps = Swaps(board, ONE)
        with pytest.raises(ApiError, match="Knn bad: ValueError: its file is torn") as told:
            await swap(swaps, TWO)
        assert (told.value.status, told.value.kind) == (409, "swap_failed")
        assert f"model {M1}, index {I1} answers" in told.value.message
        assert pin_held(door, None, None).version == (M1, I1)
        await until(lambda: good.closed == [I2])
        last = swaps.last()
        assert last is not None
        assert not last.done
        assert "Knn bad" in last.message
        with pytest.raises(ApiError, match="is the first that this deployment serves"):
            await back(swaps)
        bad.fails = ""  # and the same again at once
        assert (await swap(swaps, TWO)).current == TWO
        assert bad.follower.get(I2) == I2

    asyncio.run(main())


def test_whoever_starts_later_takes_what_is_in_use_or_being_prepared() -> None:
    async def main() -> None:
        board = MemoryBoard()
        door, slow = gateway(board), Holder(board, "Knn slow", load_s=0.3)
        await door.start()
        await slow.follower.start()
        swaps = Swaps(board, ONE)
        task = asyncio.create_task(swap(swaps, TWO))
        await asyncio.sleep(0.1)
        meanwhile = Holder(board, "Knn meanwhile")
        await meanwhile.follower.start()
        assert meanwhile.loaded == [I1, I2]
        await task
        later = Holder(board, "Knn later")
        await later.follower.start()
        assert later.follower.get(I2) == I2
        assert later.follower.items()[0] == I2

    asyncio.run(main())


def test_a_replica_without_what_is_in_use_does_not_start() -> None:
    async def main() -> None:
        board = MemoryBoard()
        holder = Holder(board, "Knn 0")
        holder.fails = I1
        with pytest.raises(ValueError, match="torn"):
            await holder.follower.start()
        assert board.keys(MEMBERS) == []

    asyncio.run(main())


def test_a_replica_that_is_gone_is_not_waited_for_and_a_silent_one_is_named() -> None:
    async def main() -> None:
        board = MemoryBoard()
        door = gateway(board)  # held: a task that nobody holds ends when memory is gathered
        await door.start()
        dead = Status(at=time.time() - 3600, epoch=0)
        board.put(f"{MEMBERS}Knn dead", dead.model_dump_json().encode())
        assert (await swap(Swaps(board, ONE), TWO)).current == TWO
        assert "member/Knn dead" not in board.keys(MEMBERS)
        silent = Status(at=time.time(), epoch=0)
        board.put(f"{MEMBERS}Knn silent", silent.model_dump_json().encode())
        with pytest.raises(ApiError, match=r"not ready within 3 s: Knn silent\. Nothing has"):
            await swap(Swaps(board, ONE, prepare_s=3), THREE)

    asyncio.run(main())


def test_one_swap_at_a_time_unless_its_gateway_died(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        board = MemoryBoard()
        slow = Holder(board, "Knn slow", load_s=0.3)
        await slow.follower.start()
        swaps = Swaps(board, ONE)
        first = asyncio.create_task(swap(swaps, TWO))
        await asyncio.sleep(0.1)
        with pytest.raises(ApiError, match="another swap is under way") as told:
            await swap(Swaps(board, ONE), THREE)
        assert (told.value.status, told.value.kind) == (409, "swap_in_progress")
        assert (await first).current == TWO
        # a gateway died in the first phase and left its lock and its plan
        board.put("lock", f"{time.time() - 1} x".encode())
        plan = Plan.model_validate_json(board.get(PLAN) or b"")
        left = plan.model_copy(
            update={"epoch": 9, "preparing": THREE, "preparing_until": time.time() + 0.2}
        )
        board.put(PLAN, left.model_dump_json().encode())
        await until(lambda: slow.loaded == [I1, I2, I3])
        await until(lambda: slow.closed == [I3])  # its time has run out
        assert (await back(swaps)).current == ONE

    asyncio.run(main())


class _Flaky(MemoryBoard):
    away = False

    def get(self, key: str) -> bytes | None:
        if self.away:
            raise RuntimeError("the store is away")
        return super().get(key)


def test_a_board_that_is_away_for_a_while_changes_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        board = _Flaky()
        holder = Holder(board, "Knn 0")
        await holder.follower.start()
        board.away = True
        await until(lambda: "cannot be followed for now" in caplog.text)
        assert holder.follower.get(I1) == I1
        board.away = False
        assert (await swap(Swaps(board, ONE), TWO)).current == TWO
        assert holder.follower.get(I2) == I2

    asyncio.run(main())


def test_no_request_meets_two_versions_however_often_they_are_swapped() -> None:
    """A request pins a version, then asks two kinds of replicas for it, as a text's neighbours
    do, with pauses in between."""

    async def main() -> None:
        board = MemoryBoard()
        holders = [Holder(board, f"Knn {n}", load_s=0.02) for n in range(2)]
        doors = [gateway(board, name=f"gateway {n}") for n in range(2)]
        for one in (*(holder.follower for holder in holders), *doors):
            await one.start()
        over, seen = threading.Event(), set[Told]()

        async def ask(number: int) -> int:
            asked = 0
            while not over.is_set():
                pinned = pin_held(doors[number % 2], None, None)
                for holder in holders:
                    await asyncio.sleep(0.003)
                    assert holder.follower.get(pinned.version.index_version) is not None
                seen.add(pinned.version)
                asked += 1
            return asked

        callers = [asyncio.create_task(ask(number)) for number in range(8)]
        swaps = Swaps(board, ONE, keep_s=0.0)
        for to in (TWO, THREE, ONE, TWO):
            await swap(swaps, to)
            await back(swaps)
        over.set()
        assert min(await asyncio.gather(*callers)) > 20
        assert seen == {(M1, I1), (M2, I2), (M2, I3)}

    asyncio.run(main())


def test_one_release_for_ever() -> None:
    pin = fixed("backend", Told(M1, I1))
    assert pin(None, None) == pin(M1, I1) == ((M1, I1), "backend")
    with pytest.raises(ApiError, match=f"model_version: '{M2}' asked, '{M1}' is served"):
        pin(M2, I1)
