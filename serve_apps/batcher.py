"""Joins single requests into batches: waits a millisecond or two for company, never longer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class _Waiting(NamedTuple, Generic[T, R]):
    item: T
    deadline: float
    future: asyncio.Future[R]


class Batcher(Generic[T, R]):
    """Runs `run` on batches of what concurrent callers submit, in one thread of its own.

    A batch starts when it is full, or when its oldest item has waited `max_wait_s`. While one
    batch runs the next one gathers, so under load batches fill by themselves and nobody waits
    for the deadline. Must be made and used within one event loop.

    Args:
        run: n items to n results, in the same order; called in the batcher's thread. What it
            raises is raised to every caller of that batch.
        max_batch: most items a batch, at least 1.
        max_wait_s: longest that an item waits for company while the thread is free.
    """

    def __init__(
        self, run: Callable[[Sequence[T]], Sequence[R]], max_batch: int, max_wait_s: float
    ) -> None:
        self._run = run
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._queue: asyncio.Queue[_Waiting[T, R]] = asyncio.Queue()
        self._futures: set[asyncio.Future[R]] = set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batcher")
        self._loop = asyncio.get_running_loop()
        self._worker = self._loop.create_task(self._work())

    async def submit(self, item: T) -> R:
        """The result for `item`. A cancelled caller's item is left out if its batch still waits."""
        future: asyncio.Future[R] = self._loop.create_future()
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        self._queue.put_nowait(_Waiting(item, self._loop.time() + self._max_wait_s, future))
        return await future

    async def close(self) -> None:
        """Stop; callers that still wait are cancelled."""
        self._worker.cancel()
        await asyncio.gather(self._worker, return_exceptions=True)
        for future in list(self._futures):
            future.cancel()
        self._thread.shutdown(wait=False)

    async def _gather(self) -> list[_Waiting[T, R]]:
        batch = [await self._queue.get()]
        # a deadline long past still lets get() return what stands in the queue already, for
        # the timeout can only strike where get() would have to wait
        try:
            async with asyncio.timeout_at(batch[0].deadline):
                while len(batch) < self._max_batch:
                    batch.append(await self._queue.get())
        except TimeoutError:
            return batch
        return batch

    async def _work(self) -> None:
        while True:
            batch = [w for w in await self._gather() if not w.future.done()]
            if not batch:
                continue
            items = [w.item for w in batch]
            try:
                results = await self._loop.run_in_executor(self._thread, self._run, items)
                if len(results) != len(items):
                    raise RuntimeError(f"a batch of {len(items)} gave {len(results)} results")
            except Exception as error:
                for w in batch:
                    if not w.future.done():
                        w.future.set_exception(error)
                continue
            for w, result in zip(batch, results, strict=True):
                if not w.future.done():
                    w.future.set_result(result)
