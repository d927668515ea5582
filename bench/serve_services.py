"""The services that bench.serve measures, each in processes of its own: who they are, what they
cost, how much they hold."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from rec.client import Client, RequestError
from serve_apps.keys import new_key

_START_S = 300.0
_STOP_S = 90.0  # HAProxy takes its time
_ROOT = Path(__file__).parents[1]


def free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(number)]
        for one in probes:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in probes]


class Service:
    """A server that was started, with all its descendants.

    Attributes:
        port: of 127.0.0.1.
        headers: lines that every request to it needs.
    """

    def __init__(self, process: subprocess.Popen[str], port: int, headers: Sequence[str]) -> None:
        self.port, self.headers = port, tuple(headers)
        self._root = psutil.Process(process.pid)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def tree(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return [self._root, *self._root.children(recursive=True)]
        return []

    def cpu_s(self) -> dict[str, float]:
        """Processor seconds of the living processes so far, by what they are."""
        used: defaultdict[str, float] = defaultdict(float)
        for one in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = one.cpu_times()
                used[_role(one)] += times.user + times.system
        return used

    def memory(self) -> int:
        """Proportional set size of all processes, in bytes."""
        total = 0
        for one in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                total += one.memory_full_info().pss
        return total


def _role(process: psutil.Process) -> str:
    line = " ".join(process.cmdline())
    if found := re.match(r"ray::ServeReplica:\w+:(\w+)", line):
        return found[1]
    if "haproxy" in Path(process.exe()).name:
        return "HAProxy"
    if "ray::" in line:
        return "Serve's own actors"
    return "Ray's daemons" if "ray/" in line else "server"


def spent(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """Seconds by what they went into, the most first."""
    used = {role: after[role] - before.get(role, 0.0) for role in after}
    return dict(sorted(used.items(), key=lambda one: -one[1]))


@contextmanager
def ours(
    folder: Path,
    *arguments: str,
    haproxy: bool = True,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Service]:
    """`python -m serve_apps` with a key that may ask a million times a second."""
    key, line = new_key("bench", rate_per_s=1e6)
    (folder / "keys.txt").write_text(line)
    port, *others = free_ports(3)
    own = {  # so that several may run on one machine
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(others[0]),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(others[1]),
    }
    command = [sys.executable, "-m", "serve_apps", "--port", str(port), "--address", "local"]
    command += ["--keys", str(folder / "keys.txt"), *(["--haproxy"] if haproxy else []), *arguments]
    header = f"Authorization: Bearer {key}"
    with _started(command, port, [header], own | dict(environment or {})) as service:
        yield service


@contextmanager
def peer(*arguments: str) -> Iterator[Service]:
    """`python -m bench.serve_peers PORT ...`: the same index behind FastAPI and uvicorn."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "bench.serve_peers", str(port), *arguments]
    with _started(command, port, [], {}) as service:
        yield service


@contextmanager
def _started(
    command: Sequence[str], port: int, headers: Sequence[str], own: Mapping[str, str]
) -> Iterator[Service]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1", **own}
    process = subprocess.Popen(
        command, env=environment, cwd=_ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    )  # fmt: skip
    said: list[str] = []
    threading.Thread(target=_read, args=(process, said), daemon=True).start()
    service = Service(process, port, headers)
    children: list[psutil.Process] = []
    try:
        _await(service, process, said)
        yield service
    finally:
        children = service.tree()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
        for one in psutil.wait_procs(children, timeout=10)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


def _read(process: subprocess.Popen[str], said: list[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        said.append(line)


def _await(service: Service, process: subprocess.Popen[str], said: list[str]) -> None:
    deadline = time.monotonic() + _START_S
    while not any(line.startswith("serving at") for line in said):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{' '.join(process.args)}: did not start:\n{''.join(said)[-3000:]}")  # pyright: ignore[reportCallIssue, reportArgumentType]
        time.sleep(0.1)
    with Client(service.url, timeout_s=10) as client:
        while True:
            try:
                client.call("/healthz")
                return
            except RequestError as error:
                # the service of users alone has none here
                if error.status == 404:
                    return
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
