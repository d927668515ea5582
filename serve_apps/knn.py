"""Vectors and item ids to their nearest items. Knows nothing of Ray or HTTP."""

from __future__ import annotations

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from rec import wire
from rec.artifacts import ArtifactError, Manifest
from rec.retrieval.errors import FilterError, UnknownIdError
from rec.retrieval.filters import Filter
from rec.retrieval.index import Index
from serve_apps.backend import Found, ItemQuery, Packed, Queries, Searched
from serve_apps.errors import ApiError, invalid
from serve_apps.versions import same

_INLINE_S = 100e-6  # what handing over to a thread and back costs, on a busy machine


class Searcher:
    """One index in memory, searched in threads; on the event loop only what takes less time there
    than handing it to a thread.

    Args:
        uri: of an "index" artifact.
        version: the version that was deployed; another one, published since, is refused.
        manifest: of that version, with which it is found though another was published since.

    Raises:
        ArtifactError: it cannot be read, or does not find what it holds.
    """

    def __init__(self, uri: str, version: str, manifest: Manifest | None = None) -> None:
        self._index = Index.open(uri, manifest=manifest)
        same(uri, self._index.version, version)
        self.encoder_version = self._index.encoder_version
        # each search runs on one OpenMP thread, and FAISS releases the GIL
        self._threads = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="search")
        self._canary = np.full((1, self._index.dim), self._index.dim**-0.5, np.float32)
        self._row_s = min(self._seconds() for _ in range(3))
        self._expected = self._index.search(self._canary, 1)
        if not np.isfinite(self._expected.scores[self._expected.rows >= 0]).all():
            raise ArtifactError(f"{uri}: a search gives scores that are no numbers; build it again")

    async def search(
        self, queries: Queries, k: int, exclude_self: bool, where: Filter | None = None
    ) -> Searched:
        """Neighbours of each query, best first; fewer than k where the index holds fewer.

        Args:
            queries: float32 unit vectors, and items of the index.
            k: 1 to 10,000.
            exclude_self: leave an item out of its own neighbours.
            where: only items that fit; None: all.

        Raises:
            ApiError: 404, an item is not in the index; 422, the filter is of attributes that the
                index does not hold.
        """
        loop = asyncio.get_running_loop()
        search = partial(self._search, queries, k, exclude_self, where)
        try:
            found = await loop.run_in_executor(self._threads, search)
        except FilterError as error:
            raise invalid(f"where: {error}") from error
        return Searched(found, self._index.version)

    async def search_packed(self, rows: np.ndarray, k: int) -> Packed:
        """Neighbours of (B, D) float32 unit vectors, for the wire."""
        if len(rows) * self._row_s <= _INLINE_S:
            return self._pack(rows, k)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._pack, rows, k)

    def _pack(self, rows: np.ndarray, k: int) -> Packed:
        hits = self._index.search(rows, k)
        there = hits.rows >= 0
        counts = there.sum(axis=1)
        flat = hits.rows[there], hits.scores[there]
        body = wire.pack_hits(counts, flat[1], *self._index.id_bytes(flat[0]))
        return Packed(body, self._index.version)

    def _search(
        self, queries: Queries, k: int, exclude_self: bool, where: Filter | None
    ) -> list[Found]:
        own: list[list[str]] | None = None
        if isinstance(queries, np.ndarray):
            vectors = queries
        else:
            vectors = np.stack(
                [self._vector(q) if isinstance(q, ItemQuery) else q for q in queries]
            )
            own = [[q.item_id] if isinstance(q, ItemQuery) else [] for q in queries]
        own = own if exclude_self else None
        hits = self._index.search(vectors, k, where=where, exclude=own)
        num_found = (hits.rows >= 0).sum(axis=1)
        return [
            Found(hits.ids[row, :n].tolist(), hits.scores[row, :n].tolist())
            for row, n in enumerate(num_found)
        ]

    def _seconds(self) -> float:
        """That a search takes for one vector."""
        since = time.perf_counter()
        self._index.search(self._canary, 10)
        return time.perf_counter() - since

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
