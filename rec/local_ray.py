"""What Ray is told where a process starts one of its own, on this machine."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray._private.node import Node

# Ray ends a worker that has been idle for a second, and a job's next phase imports everything anew:
# a small ingest took 66 s of processor time instead of 26, and twice as long. Nodes of a cluster
# have this from their image
KEEP_IDLE = {"RAY_idle_worker_killing_time_threshold_ms": "60000"}
_SETTINGS = {
    **KEEP_IDLE,
    # a process of Ray Train's that asks whether this machine is about to be taken away
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
# Tasks over tables take hundreds of megabytes and give them back many times a second. Page by page
# from the system each time, that was a third of their processor time: keep what was taken, and
# take it in huge pages, for NumPy and Arrow alike
_OF_TABLES = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "GLIBC_TUNABLES": ":".join(
        f"glibc.malloc.{name}"
        for name in (
            "hugetlb=1",
            f"mmap_threshold={256 << 20}",
            f"trim_threshold={256 << 20}",
            f"top_pad={64 << 20}",
        )
    ),
}
# Ray starts its dashboard, and waits for it, though none is asked for (Ray Train asks it for the
# state of actors and waits where it is absent), an autoscaler that has nothing to scale here and
# takes a second to end, and what carries output. Nothing public leaves them out; Ray is pinned
_NOT_FOR_TABLES = ("start_api_server", "start_monitor", "start_log_monitor")


def prepare_local_ray(*, tables_only: bool = False) -> None:
    """Set what is not set yet, for a `ray.init` that follows and starts Ray here."""
    for name, value in (_SETTINGS | _OF_TABLES if tables_only else _SETTINGS).items():
        os.environ.setdefault(name, value)


def init_local_ray(*, tables_only: bool = False) -> None:
    """Start a Ray that ends with this process.

    Args:
        tables_only: tasks do nothing but make tables of tables. They print nothing, so nothing
            carries what they print here, and at the end nobody waits for more of it.
    """
    prepare_local_ray(tables_only=tables_only)
    with _without(_NOT_FOR_TABLES if tables_only else ()):
        ray.init(address="local", include_dashboard=False, log_to_driver=not tables_only)
    if tables_only:
        atexit.register(ray.shutdown)  # before Ray's own, which sleeps first


@contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    """In the block, nodes that are started leave these parts out."""
    methods = {name: getattr(Node, name) for name in names}
    for name in names:
        setattr(Node, name, _nothing)
    try:
        yield
    finally:
        for name, method in methods.items():
            setattr(Node, name, method)


def _nothing(*_: object, **__: object) -> None:
    pass
