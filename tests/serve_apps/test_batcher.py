"""The batcher: own answers, batches that fill, a deadline, errors and cancelled callers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_apps.batcher import Batcher


class Recorder:
    """Doubles numbers and remembers the batches; holds a batch until released, if asked."""

    def __init__(self, held: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.started = threading.Event()
        self.release = threading.Event()
        if not held:
            self.release.set()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.started.set()
        assert self.release.wait(10)
        return [2 * item for item in items]


@settings(max_examples=30, deadline=None)
@given(
    items=st.lists(st.integers(), min_size=1, max_size=40),
    max_batch=st.integers(1, 9),
    pauses=st.lists(st.sampled_from([0, 0, 0, 0.002]), min_size=40, max_size=40),
)
def test_every_caller_gets_its_own_answer(
    items: list[int], max_batch: int, pauses: list[float]
) -> None:
    run = Recorder()

    async def one(batcher: Batcher[int, int], item: int, pause: float) -> int:
        await asyncio.sleep(pause)
        return await batcher.submit(item)

    async def main() -> list[int]:
        batcher = Batcher(run, max_batch, 0.001)
        pairs = zip(items, pauses, strict=False)
        answers = await asyncio.gather(*(one(batcher, i, p) for i, p in pairs))
        await batcher.close()
        return answers

    assert asyncio.run(main()) == [2 * item for item in items]
    assert max(len(batch) for batch in run.batches) <= max_batch
    assert sorted(item for batch in run.batches for item in batch) == sorted(items)


def test_what_arrives_while_a_batch_runs_is_one_batch() -> None:
    run = Recorder(held=True)

    async def main() -> None:
        batcher = Batcher(run, 8, 0.0)
        first = asyncio.create_task(batcher.submit(0))
        while not run.started.is_set():
            await asyncio.sleep(0.001)
        rest = [asyncio.create_task(batcher.submit(i)) for i in range(1, 12)]
        await asyncio.sleep(0.02)
        run.release.set()
        assert await asyncio.gather(first, *rest) == [2 * i for i in range(12)]
        await batcher.close()

    asyncio.run(main())
    assert run.batches == [[0], list(range(1, 9)), [9, 10, 11]]


def test_a_lone_item_waits_for_the_deadline_and_a_full_batch_does_not() -> None:
    async def main() -> tuple[float, float]:
        batcher = Batcher(Recorder(), 4, 0.2)
        start = time.perf_counter()
        await batcher.submit(1)
        alone = time.perf_counter() - start
        start = time.perf_counter()
        await asyncio.gather(*(batcher.submit(i) for i in range(4)))
        full = time.perf_counter() - start
        await batcher.close()
        return alone, full

    alone, full = asyncio.run(main())
    assert alone >= 0.19
    assert full < 0.15


def test_an_error_reaches_its_batch_and_the_next_batch_runs() -> None:
    def run(items: Sequence[int]) -> list[float]:
        return [1 / item for item in items]

    async def main() -> None:
        batcher = Batcher(run, 4, 0.001)
        with pytest.raises(ZeroDivisionError):
            await batcher.submit(0)
        assert await batcher.submit(4) == 0.25
        await batcher.close()

    asyncio.run(main())


def test_a_cancelled_caller_is_left_out() -> None:
    run = Recorder(held=True)

    async def main() -> None:
        batcher = Batcher(run, 8, 0.0)
        first = asyncio.create_task(batcher.submit(0))
        while not run.started.is_set():
            await asyncio.sleep(0.001)
        gone, stays = (asyncio.create_task(batcher.submit(i)) for i in (1, 2))
        await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.sleep(0)
        run.release.set()
        assert await asyncio.gather(first, stays) == [0, 4]
        await batcher.close()

    asyncio.run(main())
    assert run.batches == [[0], [2]]


def test_closing_cancels_who_waits() -> None:
    async def main() -> None:
        batcher = Batcher(Recorder(), 8, 60.0)
        waiting = asyncio.create_task(batcher.submit(1))
        await asyncio.sleep(0.01)
        await batcher.close()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())
