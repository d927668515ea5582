"""Search a published index: by vector or by item id, with every input checked first."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rec import artifacts
from rec.retrieval.ann import Ann, omp_threads
from rec.retrieval.build import (
    IDS_FILE,
    INDEX_FILE,
    KIND,
    IndexBuildError,
    IndexConfig,
    build_index,
)

__all__ = [
    "MAX_K",
    "Index",
    "IndexBuildError",
    "IndexConfig",
    "QueryError",
    "UnknownIdError",
    "build_index",
]

MAX_K = 1000


class QueryError(ValueError):
    """A query that cannot be answered: wrong dimension, NaN, k out of range. Says which."""


class UnknownIdError(QueryError):
    """No item of this id is in the index."""


class Index:
    """An index artifact in memory. Searching is safe from many threads at once.

    Use one thread pool as wide as the cores and one OpenMP thread a search (the default):
    FAISS's own threads fight each other as soon as two searches run (5.6x lost on two cores).
    """

    def __init__(self, ann: Ann, ids: pa.Table, manifest: artifacts.Manifest) -> None:
        self.manifest = manifest
        self._ann = ann
        self._ids: pa.LargeStringArray = ids["id"].combine_chunks()
        self._by_id = ids["by_id"].to_numpy()
        ann.enable_reconstruct()

    @classmethod
    def open(cls, uri: str) -> Index:
        """Load the index at `uri`, local or s3://, after checking every file's sha256.

        Raises:
            ArtifactError: there is no index, a file is missing or altered, or the files do not
                belong together.
        """
        manifest, folder = artifacts.open_artifact(uri, KIND)
        ann = Ann.read(str(folder / INDEX_FILE))
        ids = pq.read_table(folder / IDS_FILE)
        found = {"dimension": ann.dim, "num_items": ann.size}
        stated = {name: manifest.config.get(name) for name in found}
        if found != stated or ids.num_rows != ann.size:
            raise artifacts.ArtifactError(
                f"{uri}: the manifest states {stated}, the index has {found} and {ids.num_rows} "
                f"ids; build the index again"
            )
        return cls(ann, ids, manifest)

    def __len__(self) -> int:
        return self._ann.size

    @property
    def dim(self) -> int:
        return self._ann.dim

    @property
    def version(self) -> str:
        return self.manifest.version

    @property
    def encoder_version(self) -> str | None:
        """Of the encoder whose vectors these are; queries must come from the same."""
        return self.manifest.lineage.get("encoder")

    def search(
        self,
        vectors: np.ndarray,
        k: int,
        *,
        exclude: Sequence[Sequence[str]] | None = None,
        num_threads: int = 1,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k items nearest to each query by inner product.

        Args:
            vectors: (B, D), finite.
            k: 1 to 1000.
            exclude: for each query the ids to leave out, at most 1000; ids that are not in the
                index do no harm.
            num_threads: OpenMP threads of this search; more than 1 only where nothing else runs.

        Returns:
            (B, k) ids (object array of str) and (B, k) float32 scores, best first. Where fewer
            than k items were found the rest is None and -inf.

        Raises:
            QueryError: a shape, a value or k is out of range.
        """
        queries = self._checked(vectors, k)
        dropped = self._excluded(exclude, len(queries))
        with omp_threads(num_threads):
            rows, scores = self._ann.search(queries, k + dropped.shape[1])
        if dropped.size:
            rows, scores = _leave_out(rows, scores, dropped, k)
        scores = np.where(rows < 0, np.float32(-np.inf), scores)
        taken = self._ids.take(pa.array(rows.ravel(), mask=(rows < 0).ravel()))
        return taken.to_numpy(zero_copy_only=False).reshape(rows.shape), scores

    def search_ids(self, item_ids: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k items nearest to each given item, itself left out; see `search`.

        Raises:
            UnknownIdError: an id is not in the index.
        """
        return self.search(self.vectors(item_ids), k, exclude=[[i] for i in item_ids])

    def vector(self, item_id: str) -> np.ndarray:
        """(D,) vector of an item; approximate where the index quantises."""
        return self.vectors([item_id])[0]

    def vectors(self, item_ids: Sequence[str]) -> np.ndarray:
        """(n, D) vectors of items.

        Raises:
            UnknownIdError: an id is not in the index.
        """
        rows = [self._row(item_id) for item_id in item_ids]
        for row, item_id in zip(rows, item_ids, strict=True):
            if row < 0:
                raise UnknownIdError(f"no item {item_id!r} in index {self.version}")
        return self._ann.reconstruct(np.array(rows)) if rows else np.zeros((0, self.dim), "f4")

    def __contains__(self, item_id: str) -> bool:
        return self._row(item_id) >= 0

    def _row(self, item_id: str) -> int:
        """Row of an id by binary search (no dictionary: ids stay in Arrow memory), or -1."""
        place = bisect_left(self._by_id, item_id, key=lambda row: self._ids[int(row)].as_py())
        if place < len(self._by_id):
            row = int(self._by_id[place])
            if self._ids[row].as_py() == item_id:
                return row
        return -1

    def _checked(self, vectors: np.ndarray, k: int) -> np.ndarray:
        if not 1 <= k <= MAX_K:
            raise QueryError(f"k is {k}, expected 1 to {MAX_K}")
        try:
            queries = np.ascontiguousarray(vectors, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise QueryError(f"query vectors are not numbers: {error}") from error
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise QueryError(
                f"query vectors have shape {queries.shape}, expected (B, {self.dim}): the index's "
                f"dimension is {self.dim}"
            )
        if not (finite := np.isfinite(queries).all(axis=1)).all():
            raise QueryError(f"query {(~finite).argmax()} has NaN or infinity")
        return queries

    def _excluded(self, exclude: Sequence[Sequence[str]] | None, num_queries: int) -> np.ndarray:
        """(B, widest) rows to leave out, -2 where a query has fewer."""
        if exclude is None:
            return np.full((num_queries, 0), -2)
        if len(exclude) != num_queries:
            raise QueryError(f"{len(exclude)} lists of excluded ids for {num_queries} queries")
        widest = max(map(len, exclude), default=0)
        if widest > MAX_K:
            raise QueryError(f"{widest} excluded ids for one query, expected at most {MAX_K}")
        dropped = np.full((num_queries, widest), -2)
        for place, item_ids in enumerate(exclude):
            known = [row for row in map(self._row, item_ids) if row >= 0]
            dropped[place, : len(known)] = known
        return dropped


def _leave_out(
    rows: np.ndarray, scores: np.ndarray, dropped: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first k hits of each query that are not among its dropped rows."""
    out = np.zeros(rows.shape, bool)
    for column in dropped.T:  # one at a time: all at once would take k x 1000 flags a query
        out |= rows == column[:, None]
    kept = np.argsort(out, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(rows, kept, axis=1), np.take_along_axis(scores, kept, axis=1)
