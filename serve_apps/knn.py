"""Vectors and item ids to their nearest items. Knows nothing of Ray or HTTP."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from rec.retrieval.errors import UnknownIdError
from rec.retrieval.index import Index
from serve_apps.backend import Found, ItemQuery, Queries, Searched
from serve_apps.errors import ApiError
from serve_apps.versions import same


class Searcher:
    """One index in memory, searched in threads, never on the event loop.

    Args:
        uri: of an "index" artifact.
        version: the version that was deployed; another one, published since, is refused.
    """

    def __init__(self, uri: str, version: str) -> None:
        self._index = Index.open(uri)
        same(uri, self._index.version, version)
        self.encoder_version = self._index.encoder_version
        # each search runs on one OpenMP thread, and FAISS releases the GIL
        self._threads = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="search")
        self._canary = np.full((1, self._index.dim), self._index.dim**-0.5, np.float32)
        self._expected = self._index.search(self._canary, 1)

    async def search(self, queries: Queries, k: int, exclude_self: bool) -> Searched:
        """Neighbours of each query, best first; fewer than k where the index holds fewer.

        Args:
            queries: float32 unit vectors, and items of the index.
            k: 1 to 10,000.
            exclude_self: leave an item out of its own neighbours.

        Raises:
            ApiError: 404, an item is not in the index.
        """
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._threads, self._search, queries, k, exclude_self)
        return Searched(found, self._index.version)

    def _search(self, queries: Queries, k: int, exclude_self: bool) -> list[Found]:
        own: list[list[str]] | None = None
        if isinstance(queries, np.ndarray):
            vectors = queries
        else:
            vectors = np.stack(
                [self._vector(q) if isinstance(q, ItemQuery) else q for q in queries]
            )
            own = [[q.item_id] if isinstance(q, ItemQuery) else [] for q in queries]
        hits = self._index.search(vectors, k, exclude=own if exclude_self else None)
        num_found = (hits.rows >= 0).sum(axis=1)
        return [
            Found(hits.ids[row, :n].tolist(), hits.scores[row, :n].tolist())
            for row, n in enumerate(num_found)
        ]

    def _vector(self, query: ItemQuery) -> np.ndarray:
        try:
            return self._index.vector(query.item_id)
        except UnknownIdError as error:
            raise ApiError(404, "unknown_item", f"{query.place}.item_id: {error}") from error

    async def canary(self) -> None:
        """Raises ApiError unless a search gives what it gave when the index was loaded."""
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._threads, self._index.search, self._canary, 1)
        if not (found.rows == self._expected.rows).all() or not np.allclose(
            found.scores, self._expected.scores
        ):
            raise ApiError(
                503,
                "unhealthy",
                f"the index's canary search gives {found.ids.tolist()} at {found.scores.tolist()}, "
                f"expected {self._expected.ids.tolist()} at {self._expected.scores.tolist()}",
            )

    def close(self) -> None:
        self._threads.shutdown(wait=False)
