"""Callers that ask while something happens to the service, and what is killed under them."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil

from rec.client import Client, RequestError


class Callers:
    """Threads that ask; what they were refused, and how often each was answered."""

    def __init__(
        self,
        asks: list[Callable[[Client], None]],
        url: str,
        key: str | None,
        patience_s: float,
    ) -> None:
        self.failures: list[tuple[float, RequestError]] = []  # seconds of the monotonic clock
        self.wrong: list[BaseException] = []
        self.answered = [0] * len(asks)
        self.pause_s = 0.0  # of each after an answer
        self._over = threading.Event()
        self._url = url
        self._how: dict[str, Any] = {"key": key, "patience_s": patience_s}
        self._threads = [
            threading.Thread(target=self._run, args=(number, ask))
            for number, ask in enumerate(asks)
        ]

    def start(self) -> None:
        for one in self._threads:
            one.start()

    def stop(self) -> None:
        self._over.set()
        for one in self._threads:
            one.join(90)

    def _run(self, number: int, ask: Callable[[Client], None]) -> None:
        with Client(self._url, **self._how) as client:
            while not self._over.is_set():
                try:
                    ask(client)
                except RequestError as error:
                    self.failures.append((time.monotonic(), error))
                    time.sleep(0.05)
                except Exception as error:  # an answer that is wrong, or of a version unheard of
                    self.wrong.append(error)
                    return
                else:
                    self.answered[number] += 1
                    time.sleep(self.pause_s)

    def go_on(self, least: int, timeout_s: float = 60) -> None:
        """Until each caller has been answered `least` times more."""
        wanted = [number + least for number in self.answered]
        deadline = time.monotonic() + timeout_s
        while any(a < b for a, b in zip(self.answered, wanted, strict=True)):
            assert not self.wrong, self.wrong
            assert time.monotonic() < deadline, (self.answered, wanted, self.failures[-3:])
            time.sleep(0.05)

    @contextmanager
    def slower(self) -> Iterator[None]:
        """Ask five times a second each: what starts meanwhile needs the processor."""
        self.pause_s = 0.2
        try:
            yield
        finally:
            self.pause_s = 0.0


@contextmanager
def asking(
    asks: list[Callable[[Client], None]],
    url: str,
    key: str | None = None,
    patience_s: float = 0.0,
) -> Iterator[Callers]:
    """Callers that ask within the block; fails where one was refused or an answer was wrong."""
    callers = Callers(asks, url, key, patience_s)
    callers.start()
    try:
        yield callers
    finally:
        callers.stop()
    assert not callers.wrong, callers.wrong
    assert not callers.failures, callers.failures[:3]


def pids(start: str, root: int) -> list[int]:
    """Of the processes below `root` whose command line begins as the pattern says."""
    found: list[int] = []
    for one in psutil.Process(root).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # dead, perhaps not yet waited for
            if re.match(start, "".join(one.cmdline())):
                found.append(one.pid)
    return found


def kill_one(callers: Callers, start: str, number: int, root: int) -> None:
    """Kill, under full load, one of `number` processes whose command line begins as the pattern
    says; returns when another is in its place and all callers are still answered."""
    callers.go_on(5)
    victims = pids(start, root)
    assert len(victims) == number
    os.kill(victims[0], signal.SIGKILL)
    callers.go_on(10)
    deadline = time.monotonic() + 90
    with callers.slower():
        while victims[0] in (left := pids(start, root)) or len(left) < number:
            assert time.monotonic() < deadline, f"{start}: {len(left)} of {number}"
            time.sleep(0.2)
    callers.go_on(10)
