"""Jobs on two Ray nodes that are disturbed while they run: a worker killed, a node killed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
from ray._common.utils import reset_ray_address
from ray.cluster_utils import Cluster

from bench.harness import RESULTS
from bench.workload import cores

Condition = Callable[[], bool]


class TwoNodes:
    """A Ray of two nodes on this machine that share its cores and the folder `place`."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def __enter__(self) -> TwoNodes:
        half = max(1, cores() // 2)
        head = {"include_dashboard": False, "num_cpus": half}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        second = self._cluster.add_node(num_cpus=half)
        self._raylet: int = second.all_processes["raylet"][0].process.pid
        return self

    def __exit__(self, *error: object) -> None:
        self._cluster.shutdown()
        reset_ray_address()  # or Ray would look for this cluster later

    def run(self, command: list[str], *disturbances: Condition) -> None:
        """Run a job to its end; each disturbance is waited for, one after the other.

        Raises:
            RuntimeError: it failed, or ended before it could be disturbed; with what it said.
        """
        away = {"CUDA_VISIBLE_DEVICES"}
        environment = {name: value for name, value in os.environ.items() if name not in away}
        environment |= {
            "PYTHONPATH": str(RESULTS.parents[1]),
            "RAY_ADDRESS": str(self._cluster.address),
        }
        command = [*command, "--shared-mount", str(self._place)]
        log = self._place / "said.txt"
        with log.open("w") as said:
            job = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
        for disturbed in disturbances:
            while not disturbed():
                if job.poll() is not None:
                    raise RuntimeError(f"the job ended before its fault:\n{_end_of(log)}")
                time.sleep(0.005)
        if job.wait():
            raise RuntimeError(f"the job failed:\n{_end_of(log)}")

    def kill_worker(self, at: Path) -> Condition:
        """Ends one worker, of either node, that has a file below `at` open; true once it did."""

        def attempt() -> bool:
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself meanwhile
                if (victim := next(_workers(os.getpid(), at), None)) is not None:
                    victim.kill()
                    return True
            return False

        return attempt

    def kill_node(self, at: Path) -> Condition:
        """Ends all processes of the second node at once, as a power cut does, while a worker of it
        has a file below `at` open; true once it did."""

        def attempt() -> bool:
            if next(_workers(self._raylet, at), None) is None:
                return False
            node = psutil.Process(self._raylet)
            for process in [node, *node.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            return True

        return attempt


def _end_of(log: Path) -> str:
    return log.read_text()[-4000:]


def _workers(root: int, at: Path) -> Iterator[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(root).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                of_ray = process.name().startswith("ray::")
                if of_ray and any(f.path.startswith(f"{at}/") for f in process.open_files()):
                    yield process
