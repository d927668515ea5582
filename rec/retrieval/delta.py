"""What changed since an index was built: a flat part that grows beside it, and rows that are dead.

Nothing of this changes what an earlier view sees: rows are appended behind it, or copied to a
larger buffer; the mask of dead rows is copied for every change.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from rec.retrieval import filters
from rec.retrieval.changes import Change, Put, table
from rec.retrieval.exact import ExactTop
from rec.retrieval.index import Index
from rec.retrieval.merge import Without, pick

_FIRST_CAPACITY = 256
_MAX_CHUNKS = 64


class DeltaPart:
    """The first `size` rows of a delta, as an index part; see `rec.retrieval.merge.Part`."""

    def __init__(self, delta: Delta, attributes: pa.Table) -> None:
        self.size = len(delta.item_ids)
        self._vectors = delta.vectors[: self.size]
        self._item_ids, self._interests = delta.item_ids, delta.interests
        self._rows_of = delta.rows_of
        self.attributes = attributes

    def search(
        self,
        queries: np.ndarray,
        k: int,
        where: filters.Filter | None = None,
        exact: bool = False,  # noqa: ARG002  it always is
        without: Without | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        fits = None if where is None else filters.mask(where, self.attributes)
        if without is None:
            return self._best(queries, k, fits)
        fits = np.ones(self.size, bool) if fits is None else fits
        fits[without.dead] = False
        if without.dropped is None:
            return self._best(queries, k, fits)
        width = k + max(map(len, without.dropped), default=0)
        rows, scores = self._best(queries, min(width, self.size), fits)
        out = rows < 0
        for query, dropped in enumerate(without.dropped):
            out[query] |= np.isin(rows[query], dropped)
        return pick(rows, scores, out, k)[:2]

    def _best(
        self, queries: np.ndarray, k: int, fits: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        top = ExactTop(queries, k)
        if fits is None:
            top.add(self._vectors)
        else:
            rows = np.flatnonzero(fits)
            top.add(self._vectors[rows], rows)
        return top.finish()

    def locate(self, item_ids: Sequence[str]) -> list[np.ndarray]:
        found = (self._rows_of.get(item_id, ()) for item_id in item_ids)
        # rows that came after this view are not in it
        return [np.array([r for r in rows if r < self.size], np.int64) for rows in found]

    def ids(self, rows: np.ndarray) -> np.ndarray:
        return np.array([self._item_ids[row] for row in rows], object)

    def interests(self, rows: np.ndarray) -> np.ndarray:
        return np.array([self._interests[row] for row in rows], np.int32)

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        return self._vectors[rows]


class Delta:
    """The growing rows; one writer, and any number of readers through views."""

    def __init__(self, dim: int, schema: pa.Schema) -> None:
        self.vectors = np.empty((_FIRST_CAPACITY, dim), np.float32)
        self.item_ids: list[str] = []
        self.interests: list[int] = []
        self.rows_of: dict[str, tuple[int, ...]] = {}
        self._schema = schema
        self._tables: list[pa.Table] = []

    def append(self, put: Put) -> None:
        start, count = len(self.item_ids), len(put.vectors)
        while start + count > len(self.vectors):
            grown = np.empty((2 * len(self.vectors), self.vectors.shape[1]), np.float32)
            grown[:start] = self.vectors[:start]
            self.vectors = grown
        self.vectors[start : start + count] = put.vectors
        self.interests += range(count) if put.interests is None else put.interests
        self.rows_of[put.item_id] = (
            *self.rows_of.get(put.item_id, ()),
            *range(start, start + count),
        )
        self._tables.append(table(put.attributes, count, self._schema, f"item {put.item_id!r}"))
        self.item_ids += [put.item_id] * count  # last: a view is as long as this

    def view(self) -> DeltaPart:
        if len(self._tables) > _MAX_CHUNKS:
            self._tables = [pa.concat_tables(self._tables).combine_chunks()]
        whole = pa.concat_tables(self._tables) if self._tables else self._schema.empty_table()
        if not self._schema.names:  # concatenated tables without columns have no rows
            whole = table({}, len(self.item_ids), self._schema, "")
        return DeltaPart(self, whole)


class Overlay:
    """A base index with changes on it; one writer. `index` is what to search, made anew by every
    `apply`."""

    def __init__(self, base: Index) -> None:
        self.base, self.index = base, base
        self._delta = Delta(base.dim, base.parts[0].attributes.schema)
        self._dead = np.zeros(base.num_rows, bool)
        self._gone: list[np.ndarray] = []  # rows that die at the next `show`
        self._many = base.many

    @property
    def num_changed(self) -> int:
        """Rows added or dead since the base was built."""
        return len(self._delta.item_ids) + int(np.count_nonzero(self._dead))

    def apply(self, changes: Sequence[Change]) -> None:
        """Make checked changes and show them all at once."""
        self.mark(changes)
        self.show()

    def mark(self, changes: Sequence[Change]) -> None:
        """Make checked changes that `show` will show."""
        of_base = self.base.locate([change.item_id for change in changes])
        for change, rows in zip(changes, of_base, strict=True):
            before = self._delta.rows_of.get(change.item_id, ())
            self._gone += [rows, self.base.num_rows + np.array(before, np.int64)]
            if isinstance(change, Put):
                self._delta.append(change)
                self._many = self._many or len(change.vectors) > 1

    def show(self) -> None:
        added = self.base.num_rows + len(self._delta.item_ids) - len(self._dead)
        self._dead = np.concatenate([self._dead, np.zeros(added, bool)])  # a copy in any case
        self._dead[np.concatenate([np.zeros(0, np.int64), *self._gone])] = True
        self._gone = []
        base, parts = self.base, list(self.base.parts)
        if self._delta.item_ids:
            parts.append(self._delta.view())
        self.index = Index(parts, base.manifest, self._dead, base.pool, many=self._many)
