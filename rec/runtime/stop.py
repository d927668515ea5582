"""What workers are told while they train: to stop, and that a node of theirs is about to go.

A wish to stop travels as a file in the run's folder, on any storage.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rec import artifacts

STOP = "stop"
_POLL_S = 1.0


def clear_stop(run: str) -> None:
    """Forget an earlier wish."""
    files, path = artifacts.filesystem(artifacts.join(run, STOP))
    if artifacts.exists(artifacts.join(run, STOP)):
        files.delete_file(path)


@contextmanager
def stop_on_sigterm(run: str) -> Iterator[Callable[[], bool]]:
    """SIGTERM asks the workers, wherever they are, to stop after their step; gives whether it
    came."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # a driver inside a Tune trial or a server: its owner handles signals
        return
    asked = threading.Event()

    def ask(number: int, frame: Any) -> None:  # noqa: ARG001
        asked.set()

    def tell() -> None:
        asked.wait()
        if not done:
            print("stopping after this step; a checkpoint will be written ...", flush=True)
            artifacts.write_atomic(artifacts.join(run, STOP), b"")

    done: list[bool] = []
    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
        done.append(True)
        asked.set()
        teller.join()


@contextmanager
def sigint_as_before() -> Iterator[None]:
    """Ray Train leaves a handler of Ctrl-C behind that aborts the training, which has ended."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(signal.SIGINT, before)


@contextmanager
def watch_stop(run: str, rank: int) -> Iterator[Callable[[], bool]]:
    """Rank 0 looks for the stop file once a second, aside of the loop."""
    stop, closed = threading.Event(), threading.Event()

    def look() -> None:
        while not closed.wait(_POLL_S):
            with suppress(OSError):  # of storage far away, once; the next look may be answered
                if artifacts.exists(artifacts.join(run, STOP)):
                    stop.set()
                    return

    watcher = threading.Thread(target=look, daemon=True)
    if rank == 0:
        watcher.start()
    try:
        yield stop.is_set
    finally:
        closed.set()
        if rank == 0:
            watcher.join()


def watch_notice() -> Callable[[], bool]:
    """For a worker of Ray Train: true once, when a node of its group is announced to go, as a spot
    node is. What has been learned since the last checkpoint would be lost with it.

    Ray's own question (ray.train.get_preemption_info) is a barrier of all ranks, too dear for every
    step; what it asks for is known here, and the loop's ranks agree on it by themselves.
    """
    from ray.train.v2._internal.execution.context import get_train_context

    told = get_train_context().preemption_context
    seen: list[bool] = []

    def noticed() -> bool:
        if seen or told.preemption_info is None:
            return False
        seen.append(True)
        return True

    return noticed
