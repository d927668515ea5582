"""What Ray is told where a process starts one of its own, on this machine."""

from __future__ import annotations

import os

_SETTINGS = {
    # Ray ends a worker that has been idle for a second, and a job's next phase imports everything
    # anew: a small ingest took 66 s of processor time instead of 26, and twice as long
    "RAY_idle_worker_killing_time_threshold_ms": "60000",
    # a process of Ray Train's that asks whether this machine is about to be taken away
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}


def prepare_local_ray() -> None:
    """Set what is not set yet, for a `ray.init` that follows and starts Ray here."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
