"""Gathers what is told of requests and passes it on once a second: off their path, together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")

WAIT_S = 1.0


class Soon(Generic[T]):
    """Passes on to `take` what was added. Used within one event loop; without one nothing waits.

    Args:
        most: so many do not wait for the second.
    """

    def __init__(self, take: Callable[[Sequence[T]], object], most: int) -> None:
        self._take, self._most = take, most
        self._gathered: list[T] = []
        self._timer: asyncio.TimerHandle | None = None

    def add(self, one: T) -> None:
        self._gathered.append(one)
        if self._timer is None:
            try:
                self._timer = asyncio.get_running_loop().call_later(WAIT_S, self.flush)
            except RuntimeError:
                self.flush()
        if len(self._gathered) >= self._most:
            self.flush()

    def flush(self) -> None:
        """Pass on what has been gathered so far."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        gathered, self._gathered = self._gathered, []
        if gathered:
            self._take(gathered)
