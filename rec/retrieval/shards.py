"""One shard of an index: a FAISS index over its rows, their ids and their attributes."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from threading import Lock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rec.artifacts import ArtifactError
from rec.retrieval import filters
from rec.retrieval.ann import Ann
from rec.retrieval.costs import compares_all, effort_for, passes_all
from rec.retrieval.effort import Effort
from rec.retrieval.exact import ExactTop, mark_absent
from rec.retrieval.fits import Fit
from rec.retrieval.lists import search_fitting, walk
from rec.retrieval.merge import Without
from rec.retrieval.spread import Spread

EFFORT_FILE = "search.json"  # of all shards, beside their folders
TRAINED_FILE = "trained.faiss"  # the index without rows, for what continues this version
QUERIES_FILE = "queries.npy"  # that it was tuned with, where they are not rows of its own
INDEX_FILE, IDS_FILE, ATTRIBUTES_FILE = "index.faiss", "ids.parquet", "attributes.parquet"
FILES = INDEX_FILE, IDS_FILE, ATTRIBUTES_FILE
_CHUNK_VALUES = 1 << 22  # numbers of vectors that an exact search holds at a time
_BYTES_OF_FITS = 64 << 20  # of rows that fit the filters asked last, kept by a shard
_FEW_IDS = 32  # up to here one by one is faster than Arrow's machinery


def shard_name(number: int) -> str:
    return f"shard-{number:05d}"


class Shard:
    """A part that was built and published; it never changes.

    Args:
        ann: rows as built.
        keys: columns `id`, `interest`, and `by_id`: row numbers in the order of their ids.
        attributes: a row each; no columns where there are none.
    """

    def __init__(self, ann: Ann, keys: pa.Table, attributes: pa.Table) -> None:
        self.ann, self.size = ann, ann.size
        self._ids: pa.LargeStringArray = keys["id"].combine_chunks()
        _, ends, data = self._ids.buffers()
        self._id_ends = np.frombuffer(ends, np.int64, len(self._ids) + 1, 8 * self._ids.offset)
        self._id_data = memoryview(b"" if data is None else data)
        self._interests = keys["interest"].to_numpy()
        self._by_id = keys["by_id"].to_numpy()
        self.attributes = attributes
        self._fits: OrderedDict[str, Fit] = OrderedDict()
        self._held = 0  # bytes of them
        self._lock = Lock()

    @classmethod
    def read(cls, folder: Path, effort: Effort, mmap: bool) -> Shard:
        """Raises ArtifactError where the files do not belong together."""
        try:
            ann = Ann.read(str(folder / INDEX_FILE), mmap)
        except RuntimeError as error:
            raise ArtifactError(
                f"{folder / INDEX_FILE}: cannot be read: {error}; build the index again"
            ) from error
        ann.effort = effort
        keys = pq.read_table(folder / IDS_FILE, memory_map=mmap)
        attributes = pa.table({"_": pa.nulls(keys.num_rows)}).select([])
        if (folder / ATTRIBUTES_FILE).exists():
            attributes = pq.read_table(folder / ATTRIBUTES_FILE, memory_map=mmap)
        if not ann.size == keys.num_rows == attributes.num_rows:
            raise ArtifactError(
                f"{folder}: {ann.size} vectors, {keys.num_rows} ids and {attributes.num_rows} rows "
                f"of attributes; build the index again"
            )
        return cls(ann, keys, attributes)

    @staticmethod
    def write(folder: Path, ann: Ann, keys: pa.Table, attributes: pa.Table | None) -> None:
        """Write the files of a shard; `keys` has `id` and `interest`."""
        folder.mkdir(parents=True, exist_ok=True)
        ann.write(str(folder / INDEX_FILE))
        by_id = pc.sort_indices(keys, [("id", "ascending"), ("interest", "ascending")])
        pq.write_table(keys.append_column("by_id", by_id.cast(pa.int64())), folder / IDS_FILE)
        if attributes is not None and attributes.num_columns:
            pq.write_table(attributes, folder / ATTRIBUTES_FILE)

    @property
    def searches_lists(self) -> bool:
        """Rows stand in inverted lists that FAISS filters: it may be told what to leave out."""
        return self.ann.num_lists > 0 and self.ann.takes_bits

    @property
    def keys(self) -> pa.Table:
        """`id` and `interest` of every row."""
        return pa.table({"id": self._ids, "interest": self._interests})

    def search(
        self,
        queries: np.ndarray,
        k: int,
        where: filters.Filter | None = None,
        exact: bool = False,
        without: Without | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        if without is not None:
            return self._search_without(queries, k, where, exact, without)
        if where is None and (not exact or self.ann.is_flat):
            effort = None if k <= self.ann.enough_for else effort_for(self.ann, k, self.size)
            found = self.ann.search(queries, k, effort)
            return self._completed(queries, k, found, None)
        if where is None:
            return self._compared(queries, k, None)
        return self._fitting(queries, k, self._fit(where), exact)

    def _search_without(
        self,
        queries: np.ndarray,
        k: int,
        where: filters.Filter | None,
        exact: bool,
        without: Without,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows to leave out are rows that do not fit: among hits they would be the nearest ones,
        and in the lists that were looked into little but them."""
        fit = self._all if where is None else self._fit(where)
        fit = fit.less(without.dead, self._lists)
        if without.dropped is None:
            return self._fitting(queries, k, fit, exact)
        found = [
            self._fitting(queries[place : place + 1], k, fit.less(rows, self._lists), exact)
            for place, rows in enumerate(without.dropped)
        ]
        rows, scores = map(np.concatenate, zip(*found, strict=True))
        return rows, scores

    def _fitting(
        self, queries: np.ndarray, k: int, fit: Fit, exact: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        if exact or not self.ann.takes_bits or compares_all(fit.num_rows, self.ann, k):
            return self._compared(queries, k, fit)
        effort = effort_for(self.ann, k, fit.num_rows)
        if self.ann.num_lists:
            effort = effort or self.ann.effort

            def compare(some: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
                return self._compared(some, k, fit)

            found = search_fitting(
                self.ann, queries, k, effort, fit.per_list, fit.bits, compare, self._spread
            )
        else:
            found = self.ann.search(queries, k, effort, fit.bits)
        return self._completed(queries, k, found, fit)

    def _completed(
        self,
        queries: np.ndarray,
        k: int,
        found: tuple[np.ndarray, np.ndarray],
        fit: Fit | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """`found`, and again where a query has fewer hits than there are: with more effort, then by
        brute force. A scan of four-bit codes finds nothing where all sums of its table are equal
        or nearly: of a query of zeros, or of 1e-38, or among rows that are all the same."""
        there = self.size if fit is None else fit.num_rows
        rows, scores = found
        mark_absent(rows, scores)
        last = min(k, there) - 1
        if not (short := rows[:, last] < 0).any():
            return found
        if self.ann.num_lists and fit is None:
            per_list = self._all.per_list
            again = walk(self.ann, queries[short], k, self.ann.effort, per_list, None)
            rows[short], scores[short] = again[:2]
            short = rows[:, last] < 0
        if short.any():
            rows[short], scores[short] = self._compared(queries[short], k, fit)
        return rows, scores

    def _compared(
        self, queries: np.ndarray, k: int, fit: Fit | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Brute force over the rows that fit, None = all, as the index stores them."""
        num_rows, bits = (self.size, None) if fit is None else (fit.num_rows, fit.bits)
        if passes_all(self.ann, num_rows, len(queries)):
            found = self.ann.search(queries, k, Effort(self.ann.num_lists), bits)
            mark_absent(*found)
            return found
        rows = np.arange(self.size) if fit is None else self._rows(fit)
        top = ExactTop(queries, k)
        step = max(1, _CHUNK_VALUES // self.ann.dim)
        for start in range(0, len(rows), step):
            chunk = rows[start : start + step]
            top.add(self.ann.reconstruct(chunk), chunk)
        return top.finish()

    def _rows(self, fit: Fit) -> np.ndarray:
        return np.flatnonzero(np.unpackbits(fit.bits, count=self.size, bitorder="little"))

    def _fit(self, where: filters.Filter) -> Fit:
        """Rows that fit; kept for the filters asked last."""
        key = repr(where)  # as JSON, infinity, NaN and no bound are one
        with self._lock:
            if (found := self._fits.get(key)) is not None:
                self._fits.move_to_end(key)
                return found
        mask = filters.mask(where, self.attributes)
        lists = self._lists[mask] if self.ann.num_lists else np.zeros(0, np.int32)
        per_list = np.bincount(lists, minlength=self.ann.num_lists).astype(np.int32)
        bits = np.packbits(mask, bitorder="little")
        fit = Fit(bits, int(np.count_nonzero(mask)), per_list)
        with self._lock:
            if self._fits.pop(key, None) is None:
                self._held += fit.bytes_with(key)
            self._fits[key] = fit
            while self._held > _BYTES_OF_FITS and len(self._fits) > 1:
                oldest, fit_of_it = self._fits.popitem(last=False)
                self._held -= fit_of_it.bytes_with(oldest)
        return fit

    @cached_property
    def _lists(self) -> np.ndarray:
        """(size,) the inverted list of each row; made at the first filter, 4 bytes a row."""
        return self.ann.list_of_rows()  # made twice at worst

    @cached_property
    def _all(self) -> Fit:
        bits = np.packbits(np.ones(self.size, bool), bitorder="little")
        return Fit(bits, self.size, np.bincount(self._lists, minlength=self.ann.num_lists))

    @cached_property
    def _spread(self) -> Spread:
        return Spread(self.ann, self._lists)  # made twice at worst

    def locate(self, item_ids: Sequence[str]) -> list[np.ndarray]:
        first, ends = (found.tolist() for found in self._bounds(item_ids))
        return [self._by_id[start:end] for start, end in zip(first, ends, strict=True)]

    def _bounds(self, item_ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """First place in the order of ids that is not below each id, and the one behind its last.
        No dictionary: the ids stay in Arrow memory."""
        if len(item_ids) < 8:
            order = range(self.size)
            first = [bisect_left(order, i, key=self._id_at) for i in item_ids]
            ends = [bisect_right(order, i, key=self._id_at) for i in item_ids]
            return np.array(first, int), np.array(ends, int)
        wanted = pa.array(item_ids, pa.large_string())
        low = np.zeros(len(item_ids), np.int64)
        high = np.full(len(item_ids), self.size, np.int64)
        while (open_ := low < high).any():
            middle = (low + high) // 2
            rows = self._by_id[np.minimum(middle, self.size - 1)]
            below = np.asarray(pc.less(self._ids.take(pa.array(rows)), wanted))
            low = np.where(open_ & below, middle + 1, low)
            high = np.where(open_ & ~below, middle, high)
        ends, on = low.copy(), np.arange(len(low))
        while len(on := on[ends[on] < self.size]):
            held = self._ids.take(pa.array(self._by_id[ends[on]]))
            on = on[np.asarray(pc.equal(held, wanted.take(pa.array(on))))]
            ends[on] += 1
        return low, ends

    def _id_at(self, place: int) -> str:
        return self._ids[int(self._by_id[place])].as_py()

    def id_bytes(self, rows: np.ndarray) -> tuple[np.ndarray, bytes]:
        """See `Index.id_bytes`."""
        starts, ends = self._id_ends[rows], self._id_ends[rows + 1]
        lengths = ends - starts
        if len(rows) <= _FEW_IDS:
            pairs = zip(starts.tolist(), ends.tolist(), strict=True)
            return lengths, b"".join([self._id_data[start:end] for start, end in pairs])
        places = lengths.cumsum()  # where each one ends in the answer
        where = np.repeat(ends - places, lengths) + np.arange(places[-1])
        return lengths, np.frombuffer(self._id_data, np.uint8)[where].tobytes()

    def ids(self, rows: np.ndarray) -> np.ndarray:
        if len(rows) > _FEW_IDS:
            return self._ids.take(pa.array(rows)).to_numpy(zero_copy_only=False)
        found = np.empty(len(rows), object)
        found[:] = [self._ids[row].as_py() for row in rows.tolist()]
        return found

    def interests(self, rows: np.ndarray) -> np.ndarray:
        return self._interests[rows]

    def vectors(self, rows: np.ndarray) -> np.ndarray:
        return self.ann.reconstruct(rows)
