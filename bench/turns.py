"""Two programs in turns, so that what else the machine does falls on both alike.

On a shared machine a program that runs minutes after another may find it a third slower. Here one
runs for some seconds while the other is stopped with all its processes, and a program's speed is
its steps by the time that it was let run.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from torch.multiprocessing.spawn import spawn


class Speed(NamedTuple):
    """How fast a side was."""

    start_s: float  # of its own time until its first step began
    rate: float  # steps a second of its own time, from its warm-up on


class Turns:
    """A program in fresh processes that stops and goes on when told.

    Args:
        work: called as work(rank, *arguments) in each process.
        processes: how many.
        marks: the file to which it adds a line with time.monotonic() when a step begins.
    """

    def __init__(
        self, work: Callable[..., None], arguments: tuple[Any, ...], processes: int, marks: Path
    ) -> None:
        self._work, self._arguments, self._processes = work, arguments, processes
        self._marks = marks
        self._spans: list[tuple[float, float]] = []  # in which it ran
        self._since: float | None = None  # running since then
        self._context: Any = None

    def go(self) -> None:
        """Start, or go on."""
        if self._context is None:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # one side would take the GPU, the other not
            self._since = time.monotonic()
            self._context = spawn(
                self._work, args=self._arguments, nprocs=self._processes, join=False
            )
            return
        self._since = time.monotonic()
        for process in self._tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def stop(self) -> None:
        """Stop all processes, those too that are born meanwhile."""
        known: set[int] = set()
        while new := [p for p in self._tree() if p.pid not in known]:
            for process in new:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.suspend()
            known |= {p.pid for p in new}
        if self._since is not None:
            self._spans.append((self._since, time.monotonic()))
            self._since = None

    def run(self, until: Callable[[], bool]) -> None:
        """Go on, and stop as soon as `until` holds.

        Raises:
            ProcessRaisedException: it failed.
        """
        self.go()
        while not until():
            if self._context.join(timeout=0.05) and not until():
                raise RuntimeError(f"{self._work.__name__} ended after {len(self.steps())} steps")
        self.stop()

    def end(self) -> None:
        """Let it run to its end."""
        self.go()
        while not self._context.join():
            continue

    def steps(self) -> list[float]:
        """When its steps began, in seconds of its own time."""
        if not self._marks.exists():
            return []
        whole = self._marks.read_text().rpartition("\n")[0]  # the last line may be half written
        return [self._own(float(line)) for line in whole.split()]

    def _own(self, moment: float) -> float:
        spans = self._spans if self._since is None else [*self._spans, (self._since, moment)]
        return sum(min(stop, moment) - start for start, stop in spans if start < moment)

    def _tree(self) -> list[psutil.Process]:
        found: list[psutil.Process] = []
        for pid in self._context.pids():
            with contextlib.suppress(psutil.NoSuchProcess):
                root = psutil.Process(pid)
                found += [root, *root.children(recursive=True)]
        return found


def take_turns(
    first: Turns, second: Turns, warm_up: int, steps: int, turn_s: float
) -> tuple[Speed, Speed]:
    """Run both to step `warm_up`, one after the other, then in turns until one has begun its last.

    Args:
        steps: how many each makes.
        turn_s: seconds of a turn.
    """
    sides = (first, second)
    for side in sides:
        side.run(lambda side=side: len(side.steps()) > warm_up)
    while all(len(side.steps()) < steps for side in sides):
        for side in sides:
            end = time.monotonic() + turn_s
            side.run(
                lambda side=side, end=end: time.monotonic() > end or len(side.steps()) >= steps
            )
    speeds = []
    for side in sides:
        times = side.steps()[:steps]
        rate = (len(times) - 1 - warm_up) / (times[-1] - times[warm_up])
        speeds.append(Speed(times[0], rate))
    for side in sides:
        side.end()
    return speeds[0], speeds[1]
