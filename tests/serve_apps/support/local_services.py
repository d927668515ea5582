"""The services' backends in this process, without Ray."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import uvicorn
from fastapi import FastAPI
from httpx2 import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from rec.retrieval.filters import Filter
from serve_apps.backend import Packed
from serve_apps.catalogue import Browsed, Card, Catalogue, Listing, Picture, TagCount
from serve_apps.embed import Embedder
from serve_apps.gateway import Content, ItemQuery, Searched
from serve_apps.item_tags import Suggested
from serve_apps.knn import Searcher
from serve_apps.recommend import Places, Recommender
from serve_apps.recommend_gateway import PATH
from serve_apps.versions import match, match_users


class LocalContent:
    def __init__(self, encoder_uri: str, index_uri: str) -> None:
        version = match(encoder_uri, index_uri)
        self.embedder = Embedder(encoder_uri, version.model_version, max_batch=4, max_wait_s=0.001)
        self.searcher = Searcher(index_uri, version.index_version)

    async def encode(self, inputs: Sequence[Content]) -> np.ndarray:
        return await self.embedder.encode(inputs)

    async def search(
        self,
        queries: Sequence[np.ndarray | ItemQuery],
        k: int,
        exclude_self: bool,
        where: Filter | None = None,
    ) -> Searched:
        return await self.searcher.search(queries, k, exclude_self, where)

    async def search_packed(self, rows: np.ndarray, k: int) -> Packed:
        return await self.searcher.search_packed(rows, k)

    async def canary(self) -> None:
        await self.searcher.canary()


class LocalItems:
    def __init__(self, uri: str) -> None:
        self.catalogue = Catalogue(uri)

    async def browse(self, asked: Listing) -> Browsed:
        return self.catalogue.browse(asked)

    async def lookup(self, item_ids: Sequence[str]) -> list[Card | None]:
        return self.catalogue.lookup(item_ids)

    async def tags(self, limit: int, prefix: str) -> list[TagCount]:
        return self.catalogue.tags(limit, prefix)

    async def suggest(
        self, neighbours: Sequence[str], similarities: Sequence[float], own: str | None, limit: int
    ) -> list[Suggested]:
        return self.catalogue.suggest(neighbours, similarities, own, limit)

    async def picture(self, item_id: str) -> Picture:
        return self.catalogue.picture(item_id)


def local_recommender(places: Places) -> Recommender:
    told = match_users(places.encoder, places.index, places.rows)
    deployed = Places(encoder=told.model_version, index=told.index_version, rows=told.rows_version)
    return Recommender(places, deployed, max_batch=8, max_wait_s=0.002)


def one_app(content: FastAPI, users: FastAPI) -> ASGIApp:
    """Both services in one place, as Serve puts them."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        below = scope["type"] == "http" and scope["path"].startswith(PATH)
        if below:
            scope = {**scope, "root_path": PATH}
        await (users if below else content)(scope, receive, send)

    return app


@contextmanager
def listening(app: ASGIApp) -> Iterator[str]:
    """Serves the application on a free port of this machine; yields its URL."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()  # who asks before the server runs waits for it
        config = uvicorn.Config(app, log_level="warning", lifespan="off", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{taken.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)


def refused(response: Response, status: int, kind: str, *parts: str) -> None:
    """Holds an answer to be this error, whose message has all parts."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["type"] == kind
    for part in parts:
        assert part in error["message"], error["message"]
