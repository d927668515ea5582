"""A client of the HTTP services, blocking and for asyncio.

    with Client("http://127.0.0.1:8000", key="...") as client:
        found = client.knn_content(["a crew lost in space"], k=5)
        print(found.results[0].ids)

Every call is tried again once where nothing answered or the service said that it is busy; all of
them only read, so that asking twice does no harm. What changes something (below /admin/) is asked
once. Where nobody listens at all, or a proxy of Serve that has just been started knows of no service
yet, calls are tried again for `patience_s`. What else is refused is a RequestError at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, TypeVar

import httpx2
import numpy as np

from rec import client_calls as calls
from rec.client_calls import (
    AnyContent,
    Call,
    Content,
    Found,
    Neighbours,
    Recommended,
    RequestError,
    Vectors,
)

__all__ = [
    "AnyContent",
    "AsyncClient",
    "Client",
    "Content",
    "Found",
    "Neighbours",
    "Recommended",
    "RequestError",
    "Vectors",
]

R = TypeVar("R")


def _options(url: str, key: str | None, timeout_s: float) -> dict[str, Any]:
    return {
        "base_url": url,
        "headers": {} if key is None else {"Authorization": f"Bearer {key}"},
        "timeout": httpx2.Timeout(timeout_s, connect=min(timeout_s, 5.0)),
    }


class Client:
    """Blocking. May be shared by threads; keeps connections open until closed.

    Args:
        url: of the services, without a path.
        key: an API key.
        timeout_s: how long a try may wait for an answer.
        patience_s: how long to go on trying where no connection is taken, or no service is known.
        transport: in place of the network.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        key: str | None = None,
        timeout_s: float = 60.0,
        patience_s: float = 0.0,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        options = _options(url, key, timeout_s)
        self._patience_s = patience_s
        self._http = httpx2.Client(**options, transport=transport)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def call(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """GET `path`, or POST `body` to it; the answer's JSON. Raises RequestError, as all do."""
        return self._send(calls.plain(path, body))

    def embed(self, contents: Sequence[AnyContent], model: str | None = None) -> Vectors:
        """Vectors of texts and pictures; a `model` is the version that must answer."""
        return self._send(calls.embed(contents, model))

    def knn(
        self, vectors: np.ndarray, k: int = 10, model: str | None = None, index: str | None = None
    ) -> Found:
        """The nearest items of (B, D) vectors; `model` and `index` are versions that must
        answer."""
        return self._send(calls.knn(vectors, k, model, index))

    def knn_content(
        self,
        contents: Sequence[AnyContent],
        k: int = 10,
        model: str | None = None,
        index: str | None = None,
    ) -> Found:
        """The nearest items of texts and pictures."""
        return self._send(calls.knn_content(contents, k, model, index))

    def knn_items(
        self,
        item_ids: Sequence[str],
        k: int = 10,
        *,
        exclude_self: bool = True,
        model: str | None = None,
        index: str | None = None,
    ) -> Found:
        """The nearest items of items."""
        return self._send(calls.knn_items(item_ids, k, exclude_self, model, index))

    def recommend(
        self, history: Sequence[str] | None = None, *, user: str | None = None, **more: Any
    ) -> Recommended:
        """Items for a user, by the ids of what they chose, the newest last, or by who they are.

        Args:
            history, user: one of them.
            more: k, exclude, exclude_seen, domain, model_version, as /v1/recommend/docs says.
        """
        return self._send(calls.recommend(history, user, more))

    def _send(self, call: Call[R]) -> R:
        request = call.request(self._http)
        tries = calls.Tries(call.again, self._patience_s)
        while True:
            try:
                return call.answer(self._http.send(request))
            except (httpx2.TransportError, RequestError) as error:
                failure = calls.failure_of(error, request)
            wait_s = tries.wait_of(failure)
            if wait_s is None:
                raise failure
            time.sleep(wait_s)


class AsyncClient:
    """As Client, for asyncio: the methods are coroutines, and it is an asynchronous context."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        key: str | None = None,
        timeout_s: float = 60.0,
        patience_s: float = 0.0,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        options = _options(url, key, timeout_s)
        self._patience_s = patience_s
        self._http = httpx2.AsyncClient(**options, transport=transport)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def call(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return await self._send(calls.plain(path, body))

    async def embed(self, contents: Sequence[AnyContent], model: str | None = None) -> Vectors:
        return await self._send(calls.embed(contents, model))

    async def knn(
        self, vectors: np.ndarray, k: int = 10, model: str | None = None, index: str | None = None
    ) -> Found:
        return await self._send(calls.knn(vectors, k, model, index))

    async def knn_content(
        self,
        contents: Sequence[AnyContent],
        k: int = 10,
        model: str | None = None,
        index: str | None = None,
    ) -> Found:
        return await self._send(calls.knn_content(contents, k, model, index))

    async def knn_items(
        self,
        item_ids: Sequence[str],
        k: int = 10,
        *,
        exclude_self: bool = True,
        model: str | None = None,
        index: str | None = None,
    ) -> Found:
        return await self._send(calls.knn_items(item_ids, k, exclude_self, model, index))

    async def recommend(
        self, history: Sequence[str] | None = None, *, user: str | None = None, **more: Any
    ) -> Recommended:
        return await self._send(calls.recommend(history, user, more))

    async def _send(self, call: Call[R]) -> R:
        request = call.request(self._http)
        tries = calls.Tries(call.again, self._patience_s)
        while True:
            try:
                return call.answer(await self._http.send(request))
            except (httpx2.TransportError, RequestError) as error:
                failure = calls.failure_of(error, request)
            wait_s = tries.wait_of(failure)
            if wait_s is None:
                raise failure
            await asyncio.sleep(wait_s)
