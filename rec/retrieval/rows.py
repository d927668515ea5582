"""What stands in the rows of an index: ids, interests, attributes, vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rec.retrieval import filters
from rec.retrieval.errors import QueryError
from rec.retrieval.merge import Part
from rec.retrieval.queries import as_rows, texts
from rec.retrieval.shards import Shard


class Rows:
    """The rows of several parts, which count on from one part to the next.

    Args:
        parts: all of one dimension, `dim`.
        dead: (rows,) bool over all parts, True = no longer there; None = all there.
    """

    def __init__(self, parts: Sequence[Part], dim: int, dead: np.ndarray | None) -> None:
        self.parts, self.dim, self.dead = tuple(parts), dim, dead
        self._starts = np.cumsum([0, *(part.size for part in self.parts)])

    @property
    def num_rows(self) -> int:
        """Rows of all parts, those that are no longer there included."""
        return int(self._starts[-1])

    def __contains__(self, item_id: str) -> bool:
        return len(self.locate([item_id])[0]) > 0

    def locate(self, item_ids: Sequence[str]) -> list[np.ndarray]:
        """The rows of each item, in the order of its interests; none where it is not there.

        Raises:
            QueryError: an id is no str.
        """
        item_ids = texts(item_ids)
        if len(self.parts) == 1 and self.dead is None:
            return self.parts[0].locate(item_ids)
        places = [
            [start + rows for rows in part.locate(item_ids)]
            for start, part in zip(self._starts, self.parts, strict=False)
        ]
        found = [np.concatenate(rows).astype(np.int64) for rows in zip(*places, strict=True)]
        if self.dead is not None:
            found = [rows[~self.dead[rows]] for rows in found]
        if len(self.parts) == 1:
            return found
        for place, rows in enumerate(found):
            if len(rows) > 1:  # each part has them in order, but they may be of several
                found[place] = rows[np.argsort(self.interests(rows), kind="stable")]
        return found

    def ids(self, rows: np.ndarray) -> np.ndarray:
        """Object array of str of the shape of `rows`; None where the row is -1.

        Raises:
            QueryError: a row is not the index's; so do all that take rows.
        """
        return self.ids_at(as_rows(rows, self.num_rows, -1))

    def ids_at(self, rows: np.ndarray) -> np.ndarray:
        """As `ids`, of rows that the index itself found."""
        return self._gather(rows, "ids", np.full(rows.size, None, object))

    def id_bytes(self, rows: np.ndarray) -> tuple[np.ndarray, bytes]:
        """(n,) lengths in UTF-8, and all of it one after the other, of the ids of (n,) rows, none
        of which is -1. Makes no string of any: a tenth of what `ids` costs."""
        rows, first = as_rows(rows, self.num_rows), self.parts[0]
        if len(self.parts) == 1 and isinstance(first, Shard):
            return first.id_bytes(rows)
        parts = [item_id.encode() for item_id in self.ids(rows)]
        return np.array([len(part) for part in parts], np.int64), b"".join(parts)

    def interests(self, rows: np.ndarray) -> np.ndarray:
        """int32 array of the shape of `rows`; -1 where the row is -1."""
        rows = as_rows(rows, self.num_rows, -1)
        return self._gather(rows, "interests", np.full(rows.size, -1, np.int32))

    def attributes(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """The attributes of each of (n,) rows, none of which is -1: boxes of regions, say."""
        found: list[dict[str, Any]] = []
        rows = as_rows(rows, self.num_rows)
        for row, part in zip(rows, self._part_of(rows), strict=True):
            table = self.parts[part].attributes.slice(int(row - self._starts[part]), 1)
            found += table.to_pylist()
        return found

    def fits(self, rows: np.ndarray, where: filters.Filter) -> np.ndarray:
        """(n,) bool: which of (n,) rows, none of which is -1, fit a filter.

        Raises:
            FilterError: it is no filter, or does not fit the attributes.
            QueryError: a row is not there, or `rows` are of another shape.
        """
        filters.check(where)
        rows = as_rows(rows, self.num_rows)
        if rows.ndim != 1:
            raise QueryError(f"rows are of shape {rows.shape}, expected (n,)")
        owner, found = self._part_of(rows), np.zeros(len(rows), bool)
        for number, part in enumerate(self.parts):
            mine = np.flatnonzero(owner == number)
            theirs = part.attributes.take(pa.array(rows[mine] - self._starts[number]))
            found[mine] = filters.mask(where, theirs)
        return found

    def reconstruct(self, rows: np.ndarray) -> np.ndarray:
        """(n, D) vectors of (n,) rows; approximate where the index quantises."""
        rows = as_rows(rows, self.num_rows)
        return self._gather(rows, "vectors", np.zeros((rows.size, self.dim), np.float32))

    def centroids(self) -> np.ndarray:
        """(lists, D) centres that all shards share; none where the index has no lists."""
        first = self.parts[0]
        return first.ann.centroids() if isinstance(first, Shard) else np.zeros((0, self.dim), "f4")

    def _part_of(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._starts, rows, side="right") - 1

    def _gather(self, rows: np.ndarray, name: str, into: np.ndarray) -> np.ndarray:
        flat = rows.ravel()
        if len(self.parts) == 1 and flat.size and flat.min() >= 0:
            return getattr(self.parts[0], name)(flat).reshape(rows.shape + into.shape[1:])
        owner = self._part_of(flat)
        for number, part in enumerate(self.parts):
            mine = np.flatnonzero((owner == number) & (flat >= 0))
            if len(mine):
                into[mine] = getattr(part, name)(flat[mine] - self._starts[number])
        return into.reshape(rows.shape + into.shape[1:])
