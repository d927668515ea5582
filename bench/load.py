"""A load generator: a process of its own that asks an HTTP server and writes down what came back.

    python -m bench.load SPEC.json

Plain asyncio on sockets, since a client that costs as much as the server would measure itself. The
specification is a `Load`; `run` writes it, starts the process and reads what it found.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

_GRACE_S = 30.0  # after the last request was sent; what is not answered then hangs
_SPEC, _REQUESTS, _FOUND = "load.json", "requests.bin", "found.npz"


@dataclass(frozen=True)
class Load:
    """What is asked, and how fast.

    Closed, each connection asks again when it has its answer; open, requests come as a Poisson
    process of this rate, however many are still on their way.
    """

    host: str
    port: int
    seconds: float  # measured; before them a warm-up
    warm_s: float = 1.0
    connections: int = 16  # of a closed loop; the most of an open one
    rate: float | None = None  # requests a second of an open loop; None: closed
    seed: int = 0


class Answer(NamedTuple):
    status: int
    retry_after: bool
    timings: str  # the header Server-Timing
    body: bytes


class Result(NamedTuple):
    """Of the requests after the warm-up, in the order in which they were due."""

    due_s: np.ndarray  # when each was due, from the start of the measured time
    latency_s: np.ndarray  # from when it was due to its answer
    status: np.ndarray  # 0 where the connection was lost, -1 where nothing came back
    retry_after: np.ndarray  # bool: the answer had that header
    timings: list[str]
    seconds: float  # measured
    cpu_s: float  # the generator's own in that time
    start: float  # of the measured time, by time.time()

    @property
    def ok(self) -> np.ndarray:
        return self.status == 200

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return float(self.ok.sum()) / self.seconds

    def quantile_ms(self, q: float) -> float:
        """Of the latency of good answers."""
        return float(np.quantile(self.latency_s[self.ok], q)) * 1000


def request(
    method: str, path: str, body: bytes = b"", kind: str = "", headers: Sequence[str] = ()
) -> bytes:
    """The bytes of an HTTP request that keeps its connection."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *headers]
    if kind:
        lines += [f"Content-Type: {kind}", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Connection(asyncio.Protocol):
    """One kept connection; opened again where the server has closed it."""

    def __init__(self, host: str, port: int) -> None:
        self._place = host, port
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._waiter: asyncio.Future[Answer] | None = None

    async def ask(self, data: bytes) -> Answer:
        """Raises OSError where the connection is refused or lost."""
        loop = asyncio.get_running_loop()
        if self._transport is None or self._transport.is_closing():
            self._buffer.clear()
            await loop.create_connection(lambda: self, *self._place)
        assert self._transport is not None
        self._waiter = loop.create_future()
        self._transport.write(data)
        return await self._waiter

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # pyright: ignore[reportAttributeAccessIssue]

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._waiter is not None and not self._waiter.done():
            answer = _parse(self._buffer, closed=True)
            if answer is None:
                self._waiter.set_exception(exc or ConnectionResetError("closed by the server"))
            else:
                self._waiter.set_result(answer)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        answer = _parse(self._buffer, closed=False)
        if answer is not None and self._waiter is not None and not self._waiter.done():
            self._buffer.clear()
            self._waiter.set_result(answer)


def _parse(buffer: bytearray, *, closed: bool) -> Answer | None:
    """The one answer in the buffer; None while it is not whole."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = bytes(buffer[:end])
    fields = head.lower()
    size = _header(fields, fields, b"content-length")
    if size is None:
        if not closed:  # it ends with the connection
            return None
        body = bytes(buffer[end + 4 :])
    else:
        stop = end + 4 + int(size)
        if len(buffer) < stop:
            return None
        body = bytes(buffer[end + 4 : stop])
    timings = _header(head, fields, b"server-timing")
    retry = b"\r\nretry-after:" in fields
    return Answer(int(head[9:12]), retry, (timings or b"").decode(), body)


def _header(head: bytes, lower: bytes, name: bytes) -> bytes | None:
    start = lower.find(b"\r\n" + name + b":")
    if start < 0:
        return None
    start += len(name) + 3
    stop = lower.find(b"\r\n", start)
    return head[start : stop if stop >= 0 else len(head)].strip()


class _Generator:
    """Asks and notes (due, latency, status, had Retry-After, timings)."""

    def __init__(self, load: Load, requests: Sequence[bytes]) -> None:
        self._load, self._requests = load, requests
        self.rows: list[tuple[float, float, int, bool, str]] = []
        self.begin = 0.0

    async def _one(self, connection: Connection, number: int, due: float) -> None:
        data = self._requests[number % len(self._requests)]
        try:
            answer = await connection.ask(data)
        except OSError:
            answer = Answer(0, False, "", b"")
        took = time.perf_counter() - due
        self.rows.append((due, took, answer.status, answer.retry_after, answer.timings))

    async def _again_and_again(self, number: int, until: float) -> None:
        connection = Connection(self._load.host, self._load.port)
        while (due := time.perf_counter()) < until:
            await self._one(connection, number, due)
            number += self._load.connections

    async def _arrivals(self, until: float) -> None:
        load, rng = self._load, np.random.default_rng(self._load.seed)
        assert load.rate is not None
        free = [Connection(load.host, load.port) for _ in range(load.connections)]
        under_way: set[asyncio.Task[None]] = set()

        async def one(number: int, due: float) -> None:
            connection = free.pop()
            try:
                await self._one(connection, number, due)
            finally:
                free.append(connection)

        number, due = 0, time.perf_counter()
        while (due := due + rng.exponential(1 / load.rate)) < until:
            wait = due - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            if not free:
                raise RuntimeError(f"{load.connections} connections are too few for this load")
            task = asyncio.create_task(one(number, due))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            number += 1
        if under_way:
            await asyncio.wait(under_way)

    async def run(self) -> tuple[float, float, int]:
        """CPU seconds and seconds of the measured time, and how many requests hang."""
        load, now = self._load, time.perf_counter()
        self.begin, until = now + load.warm_s, now + load.warm_s + load.seconds
        if load.rate is None:
            work = [self._again_and_again(i, until) for i in range(load.connections)]
        else:
            work = [self._arrivals(until)]
        tasks = [asyncio.create_task(one) for one in work]
        await asyncio.sleep(self.begin - time.perf_counter())
        cpu = time.process_time()
        await asyncio.sleep(until - time.perf_counter())
        cpu = time.process_time() - cpu
        done, hanging = await asyncio.wait(tasks, timeout=_GRACE_S)
        for one in done:
            one.result()
        return cpu, load.seconds, len(hanging)


def run(load: Load, requests: Sequence[bytes]) -> Result:
    """Ask in a process of its own; raises CalledProcessError."""
    with tempfile.TemporaryDirectory(prefix="raycall-load-") as name:
        folder = Path(name)
        (folder / _REQUESTS).write_bytes(b"".join(requests))
        spec = asdict(load) | {"lengths": [len(one) for one in requests]}
        (folder / _SPEC).write_text(json.dumps(spec))
        command = [sys.executable, "-m", "bench.load", str(folder)]
        subprocess.run(command, check=True, cwd=Path(__file__).parents[1])
        with np.load(folder / _FOUND) as found:
            told = json.loads(str(found["told"]))
            columns = [found[name] for name in ("due", "latency", "status", "retry")]
    hung = told["hung"]
    columns[2] = np.concatenate([columns[2], np.full(hung, -1)])
    for i, fill in ((0, 0.0), (1, np.inf), (3, False)):
        columns[i] = np.concatenate([columns[i], np.full(hung, fill)])
    columns[3] = columns[3].astype(bool)
    due, latency, status, retry = columns
    more = (told["timings"], told["seconds"], told["cpu_s"], told["start"])
    return Result(due, latency, status, retry, *more)


def main(folder: Path) -> None:
    """The process."""
    spec = json.loads((folder / _SPEC).read_text())
    lengths, data = spec.pop("lengths"), (folder / _REQUESTS).read_bytes()
    ends = np.cumsum(lengths).tolist()
    requests = [data[end - size : end] for end, size in zip(ends, lengths, strict=True)]
    generator = _Generator(Load(**spec), requests)
    offset = time.time() - time.perf_counter()
    if os.environ.get("RAYCALL_LOAD_UVLOOP", "1") == "1":
        import uvloop

        cpu_s, seconds, hung = uvloop.run(generator.run())
    else:
        cpu_s, seconds, hung = asyncio.run(generator.run())
    rows = sorted(row for row in generator.rows if row[0] >= generator.begin)
    told = {"cpu_s": cpu_s, "seconds": seconds, "hung": hung, "timings": [row[4] for row in rows]}
    told["start"] = offset + generator.begin
    np.savez(
        folder / _FOUND,
        due=np.array([row[0] - generator.begin for row in rows]),
        latency=np.array([row[1] for row in rows]),
        status=np.array([row[2] for row in rows], np.int64),
        retry=np.array([row[3] for row in rows], bool),
        told=json.dumps(told),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
