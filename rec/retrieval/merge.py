"""The parts of an index: put together what they found, and leave out what may not be returned."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa

from rec.retrieval import filters

Answers = dict[int, tuple[np.ndarray, np.ndarray]]  # number of a part -> its rows and scores


class Without(NamedTuple):
    """Rows of a part that may not be returned."""

    dead: np.ndarray  # to no query
    dropped: list[np.ndarray] | None  # of each query; None = of none


class Part(Protocol):
    """What an index is made of: rows that are searched together. Rows count from 0 in each."""

    @property
    def size(self) -> int: ...

    @property
    def attributes(self) -> pa.Table: ...

    def search(
        self,
        queries: np.ndarray,
        k: int,
        where: filters.Filter | None = None,
        exact: bool = False,
        without: Without | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """(B, k) rows, best first, -1 where there are fewer; and (B, k) scores, -inf there."""
        ...

    def locate(self, item_ids: Sequence[str]) -> list[np.ndarray]:
        """The rows of each item, in the order of their interests; none where it is not here."""
        ...

    def ids(self, rows: np.ndarray) -> np.ndarray: ...

    def interests(self, rows: np.ndarray) -> np.ndarray: ...

    def vectors(self, rows: np.ndarray) -> np.ndarray: ...


_overdue: WeakKeyDictionary[Part, Future[Any]] = WeakKeyDictionary()


def in_time(
    pool: Executor,
    search: Callable[[Part], tuple[np.ndarray, np.ndarray]],
    parts: Sequence[Part],
    due: float | None,
) -> tuple[Answers, tuple[int, ...]]:
    """What the parts answer by then, and the numbers of those that are late.

    A part that still runs for a search whose time was over is asked once that has ended: with each
    search that it is given one that hangs takes a thread of the pool, and soon all parts would be
    late.
    """
    held: dict[Future[Any], int] = {}
    futures: dict[Future[Any], int] = {}
    for number, part in enumerate(parts):
        overdue = None if due is None else _overdue.get(part)
        if overdue is None or overdue.done():
            futures[pool.submit(search, part)] = number
        else:
            held[overdue] = number
    while held:
        ended, _ = wait(held, _left(due), FIRST_COMPLETED)
        if not ended:
            break
        for number in map(held.pop, ended):
            futures[pool.submit(search, parts[number])] = number
    done, late = wait(futures, _left(due))
    for future in late:
        if not future.cancel():  # one that has not begun need not
            _overdue[parts[futures[future]]] = future
    answers = {futures[future]: future.result() for future in done}
    return answers, tuple(sorted([*held.values(), *(futures[future] for future in late)]))


def _left(due: float | None) -> float | None:
    return None if due is None else max(0.0, due - time.monotonic())


def merge(
    answers: Answers, starts: np.ndarray, num_queries: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of all parts."""
    all_rows = [np.full((num_queries, k), -1, np.int64)]
    all_scores = [np.full((num_queries, k), -np.inf, np.float32)]
    for number in sorted(answers):
        rows, scores = answers[number]
        all_rows.append(np.where(rows < 0, -1, rows + starts[number]))
        all_scores.append(scores)
    # what is absent stands last: its scores are -inf
    rows, scores = np.concatenate(all_rows[::-1], 1), np.concatenate(all_scores[::-1], 1)
    order = np.lexsort((np.where(rows < 0, np.iinfo(np.int64).max, rows), -scores), axis=1)
    best = order[:, :k]
    return np.take_along_axis(rows, best, axis=1), np.take_along_axis(scores, best, axis=1)


def pick(
    rows: np.ndarray, scores: np.ndarray, out: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(B, k) rows and scores of the hits that are not out, and how many each query has of them."""
    kept = np.argsort(out, axis=1, kind="stable")[:, :k]
    picked, values = (np.take_along_axis(array, kept, axis=1) for array in (rows, scores))
    absent = np.take_along_axis(out, kept, axis=1)
    picked[absent], values[absent] = -1, -np.inf
    short = k - picked.shape[1]
    picked = np.pad(picked, ((0, 0), (0, short)), constant_values=-1)
    values = np.pad(values, ((0, 0), (0, short)), constant_values=-np.inf)
    return picked, values, (~out).sum(axis=1)
