"""The content service in this process: a backend without Ray, and a server of an ASGI app."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import uvicorn

from rec.retrieval.filters import Filter
from serve_apps.backend import Content, Packed, Queries, Searched
from serve_apps.embed import Embedder
from serve_apps.errors import ApiError
from serve_apps.knn import Searcher
from serve_apps.versions import match


class LocalBackend:
    """Embedder and searcher in this process; `broken` makes its canary fail."""

    def __init__(self, served: Any) -> None:
        version = match(served.encoder_uri, served.index_uri)
        self.embedder = Embedder(
            served.encoder_uri, version.model_version, max_batch=4, max_wait_s=0.001
        )
        self.searcher = Searcher(served.index_uri, version.index_version)
        self.broken = False

    async def encode(self, inputs: Sequence[Content]) -> np.ndarray:
        return await self.embedder.encode(inputs)

    async def search(
        self, queries: Queries, k: int, exclude_self: bool, where: Filter | None = None
    ) -> Searched:
        return await self.searcher.search(queries, k, exclude_self, where)

    async def search_packed(self, rows: np.ndarray, k: int) -> Packed:
        return await self.searcher.search_packed(rows, k)

    async def canary(self) -> None:
        if self.broken:
            raise ApiError(503, "unavailable", "a replica is being replaced")
        await self.searcher.canary()
        await self.embedder.canary()


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """The URL of a real server of `app` on a port of this machine, in a thread."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 60
        while not server.started:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(60)
