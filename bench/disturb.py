"""Jobs on several Ray nodes that are disturbed while they run: a worker killed, a node killed."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

import psutil
from ray._common.utils import reset_ray_address
from ray.cluster_utils import Cluster

from bench.harness import RESULTS
from bench.workload import cores
from rec.local_ray import KEEP_IDLE

Condition = Callable[[], bool]


class Nodes:
    """A Ray of several nodes on this machine that share the folder `place`.

    Args:
        place: holds all that the jobs write.
        cpus: of each node, the head's first.
    """

    def __init__(self, place: Path, cpus: Sequence[int]) -> None:
        self._place, self._cpus = place, cpus
        self.announced: int | None = None  # raylet of the node that is about to go
        self._raylets: dict[int, str] = {}  # of the nodes that may be lost -> their ids

    def __enter__(self) -> Self:
        os.environ |= KEEP_IDLE  # as nodes of a cluster have it
        head = {"include_dashboard": False, "num_cpus": self._cpus[0]}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        for number in self._cpus[1:]:
            self.add(number)
        return self

    def __exit__(self, *error: object) -> None:
        self._cluster.shutdown()
        reset_ray_address()  # or Ray would look for this cluster later

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def add(self, num_cpus: int) -> None:
        """One more node."""
        node = self._cluster.add_node(num_cpus=num_cpus)
        self._raylets[node.all_processes["raylet"][0].process.pid] = node.node_id

    def run(self, command: list[str], *disturbances: Condition) -> None:
        """Run a job to its end; each disturbance is waited for, one after the other.

        Raises:
            RuntimeError: it failed, or ended before it could be disturbed; with what it said.
        """
        away = {"CUDA_VISIBLE_DEVICES"}
        environment = {name: value for name, value in os.environ.items() if name not in away}
        environment |= {
            "PYTHONPATH": str(RESULTS.parents[1]),
            "RAY_ADDRESS": self.address,
        }
        command = [*command, "--shared-mount", str(self._place)]
        log = self._place / "said.txt"
        with log.open("w") as said:
            job = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
        self._job = job
        for disturbed in disturbances:
            while not disturbed():
                if job.poll() is not None:
                    raise RuntimeError(f"the job ended before its fault:\n{_end_of(log)}")
                time.sleep(0.005)
        if job.wait():
            raise RuntimeError(f"the job failed:\n{_end_of(log)}")

    def stop_job(self) -> bool:
        """Ask the job under way to stop by itself; always true: a condition that ends a run."""
        self._job.terminate()
        return True

    def kill_worker(self, at: Path) -> Condition:
        """Ends one worker, of either node, that has a file below `at` open; true once it did."""

        def attempt() -> bool:
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself meanwhile
                if (victim := next(_workers(os.getpid(), at), None)) is not None:
                    victim.kill()
                    return True
            return False

        return attempt

    def kill_node(self, at: Path | None = None, *, name: str = "", again: int = 0) -> Condition:
        """Ends all processes of a node but the head at once, as a power cut does, while a worker of
        it, called so, has a file below `at` open; true once it did.

        Args:
            at: None: open files do not matter.
            name: what the worker's own begins with, after "ray::".
            again: cores of a node that comes in its place; 0: none does.
        """

        def attempt() -> bool:
            raylet = self._with_worker(at, name)
            if raylet is None:
                return False
            self.lose(raylet)
            if again:
                self.add(again)
            return True

        return attempt

    def announce(self, name: str) -> Condition:
        """Tells Ray, once a worker called so runs on a node, that this node will go in a minute."""

        def attempt() -> bool:
            self.announced = self._with_worker(None, name)
            if self.announced is None:
                return False
            command = [str(Path(sys.executable).with_name("ray")), "drain-node"]
            command += ["--address", self.address, "--node-id", self._raylets[self.announced]]
            command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "chaos"]
            subprocess.run([*command, "--deadline-remaining-seconds", "60"], check=True)
            return True

        return attempt

    def lose_announced(self) -> bool:
        """End the node that was announced to go; always true: a condition."""
        assert self.announced is not None
        self.lose(self.announced)
        return True

    def _with_worker(self, at: Path | None, name: str) -> int | None:
        """The raylet of a node that has such a worker."""
        found = (one for one in self._raylets if next(_workers(one, at, name), None) is not None)
        return next(found, None)

    def lose(self, raylet: int) -> None:
        """End the node of this raylet."""
        del self._raylets[raylet]
        node = psutil.Process(raylet)
        for process in [node, *node.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    @property
    def raylets(self) -> tuple[int, ...]:
        """Process ids of the nodes beside the head."""
        return tuple(self._raylets)


class TwoNodes(Nodes):
    """A Ray of two nodes that share the machine's cores."""

    def __init__(self, place: Path) -> None:
        half = max(1, cores() // 2)
        super().__init__(place, [half, half])


def _end_of(log: Path) -> str:
    return log.read_text()[-4000:]


def _workers(root: int, at: Path | None, name: str = "") -> Iterator[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(root).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if not process.name().startswith(f"ray::{name}"):
                    continue
                if at is None or any(f.path.startswith(f"{at}/") for f in process.open_files()):
                    yield process
