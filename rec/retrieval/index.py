"""Search a published index: by vector or by item id, with every input checked first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any

import numpy as np

from rec import artifacts
from rec.retrieval import filters, settings
from rec.retrieval.errors import QueryError, UnknownIdError
from rec.retrieval.filters import Filter
from rec.retrieval.hits import Hits
from rec.retrieval.loading import load
from rec.retrieval.merge import Answers, Part, Without, in_time, merge, pick
from rec.retrieval.queries import checked, due_at, excluded, whole
from rec.retrieval.rows import Rows
from rec.retrieval.shards import Shard
from rec.retrieval.spec import MAX_THREADS
from rec.retrieval.threads import omp_get_max_threads, omp_threads

_FEW_EXCLUDED = 4  # of a query: are left out of what a wider look finds


class Index(Rows):
    """Shards searched as one. Never changes; searching is safe from many threads at once.

    Use one thread pool as wide as the cores and one OpenMP thread a search (the default):
    FAISS's own threads fight each other as soon as two searches run (5.6x lost on two cores).

    Args:
        parts: all of one dimension.
        manifest: of the version.
        dead: (rows,) bool over all parts, True = no longer there; None = all there.
        pool: searches the parts at once and keeps deadlines; None = one part after the other.
        many: items may have several vectors; None = as the manifest says.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        manifest: artifacts.Manifest,
        dead: np.ndarray | None = None,
        pool: ThreadPoolExecutor | None = None,
        many: bool | None = None,
    ) -> None:
        super().__init__(parts, manifest.config["dimension"], dead)
        self.manifest, self.pool = manifest, pool
        self._num_dead = 0 if dead is None else int(np.count_nonzero(dead))
        self.many: bool = manifest.config["max_vectors_per_item"] > 1 if many is None else many
        first = self.parts[0]
        plain = len(self.parts) == 1 and not self.many and not self._num_dead
        self._plain = first.ann if plain and isinstance(first, Shard) else None
        self._in_lists = isinstance(first, Shard) and first.searches_lists

    @classmethod
    def open(
        cls,
        uri: str,
        *,
        mmap: bool = False,
        pool: ThreadPoolExecutor | None = None,
        model: str | None = None,
        manifest: artifacts.Manifest | None = None,
    ) -> Index:
        """Load the index at `uri`, local or s3://, after checking the sha256 of every file that it
        reads. Vectors as they were given, which stand beside codes of them, are not read: a
        compaction does, and checks them then.

        Args:
            mmap: map the files instead of reading them, for an index larger than memory.
            pool: for several shards at once and for deadlines; the caller's to shut down. Never
                the one that runs the searches: each would wait there for its own parts.
            model: version of the encoder that the queries come from; None = not checked.
            manifest: of the version to open; None = the one in use.

        Raises:
            SettingError: `mmap`, `pool` or `manifest` is not as it should be.
            ArtifactError: there is no index, a file is missing or altered, the files do not
                belong together, or the index holds another model's vectors.
        """
        settings.check_opened(mmap, pool, manifest)
        shards, manifest = load(uri, mmap, model, manifest)
        return cls(shards, manifest, pool=pool)

    def __len__(self) -> int:
        """Vectors that can be found; several may belong to one item."""
        return int(self._starts[-1]) - self._num_dead

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
        where: Filter | None = None,
        exclude: Sequence[Sequence[str]] | None = None,
        exact: bool = False,
        deadline_s: float | None = None,
        num_threads: int = 1,
    ) -> Hits:
        """The k items nearest to each query by inner product; an item counts by its best vector.
        Equal scores come in no particular order.

        Args:
            vectors: (B, D), finite.
            k: 1 to 10,000.
            where: only items that fit; see `rec.retrieval.filters`.
            exclude: for each query the ids to leave out, at most 10,000; ids that are not in the
                index do no harm.
            exact: compare every vector, as the index stores them.
            deadline_s: answer by then with the shards that are done, and say which are not; while
                one hangs every answer takes as long as that. Needs a pool.
            num_threads: OpenMP threads of this search; more than 1 only where nothing else runs.

        Raises:
            QueryError: an argument is not as it should be.
        """
        if type(k) is not int:  # FAISS takes no other
            k = whole(k)
        queries = checked(vectors, k, self.dim)
        ann = self._plain
        is_plain = where is exclude is deadline_s is None and not exact
        # the shortest way: nothing to add, nothing to take away
        if is_plain and ann is not None and k <= ann.enough_for:
            if omp_get_max_threads() == num_threads:
                rows, scores = ann.search(queries, k)
            else:
                with omp_threads(whole(num_threads, "num_threads", 1, MAX_THREADS)):
                    rows, scores = ann.search(queries, k)
            least = rows.item(-1) if len(rows) == 1 else rows[:, -1].min(initial=0)
            if least >= 0:  # else it must look on
                return Hits(rows, scores, self)
        num_threads = whole(num_threads, "num_threads", 1, MAX_THREADS)
        if not isinstance(exact, bool | np.bool_):
            raise QueryError(f"exact is {exact!r}, expected True or False")
        if where is not None:
            filters.check(where)
        due = due_at(deadline_s, self.pool is not None)
        dropped = excluded(exclude, len(queries), self.locate)
        search = partial(self._pooled, where=where, exact=exact, due=due, num_threads=num_threads)
        if not (dropped.size or self._num_dead or self.many):
            return Hits(*search(queries, k))
        return self._left(queries, k, dropped, search, self._in_lists and not exact)

    def _left(
        self, queries: np.ndarray, k: int, dropped: np.ndarray, search: Any, in_lists: bool
    ) -> Hits:
        """The k best that are left of what may be returned.

        A few are taken from what a wider look finds. Many, or where too few hits are left so, and
        rows stand in lists, are told to the parts, which then look where others are.
        """
        rows = np.full((len(queries), k), -1, np.int64)
        scores = np.full(rows.shape, -np.inf, np.float32)
        told = in_lists and dropped.shape[1] > _FEW_EXCLUDED
        width = k + (0 if told else dropped.shape[1])
        width += math.ceil(k * self._num_dead / max(1, self.num_rows))
        before: Answers = {}  # of a narrower look: a part that is late with the next keeps them
        short = np.arange(len(queries))  # queries that have too few hits
        while True:
            width, out = min(width, self.num_rows), dropped[short]
            without = self._without(out) if told else {}
            hits = search(queries[short], width, before=before, without=without)
            picked = pick(hits[0], hits[1], self._out(hits[0], out), k)
            rows[short], scores[short], num_kept = picked
            exhausted = width == self.num_rows or (hits[0][:, -1] < 0).all()
            again = num_kept < k
            if not again.any() or exhausted or hits[3]:
                return Hits(rows, scores, self, hits[3])
            before = {part: (found[again], by[again]) for part, (found, by) in before.items()}
            short, told = short[again], in_lists
            width = width if told and not without and not self.many else 2 * width

    def _without(self, dropped: np.ndarray) -> dict[Part, Without]:
        """What each part is told to leave out: what is dead, and what is dropped of each query."""
        told: dict[Part, Without] = {}
        for start, part, dead in zip(self._starts, self.parts, self._dead_of_parts, strict=False):
            own = [rows[(rows >= start) & (rows < start + part.size)] - start for rows in dropped]
            told[part] = Without(dead, own if any(map(len, own)) else None)
        return told

    @cached_property
    def _dead_of_parts(self) -> list[np.ndarray]:
        dead = np.zeros(self.num_rows, bool) if self.dead is None else self.dead
        return [np.flatnonzero(rows) for rows in np.split(dead, self._starts[1:-1])]

    def _pooled(
        self,
        queries: np.ndarray,
        k: int,
        where: Filter | None,
        exact: bool,
        due: float | None,
        num_threads: int,
        before: Answers | None = None,
        without: Mapping[Part, Without] = MappingProxyType({}),
    ) -> tuple[np.ndarray, np.ndarray, Index, tuple[int, ...]]:
        """The k best rows of all parts, and the parts that were late; `before` has what parts
        answered earlier, and takes what they answer now; `without` as told to each."""

        def one(part: Part) -> tuple[np.ndarray, np.ndarray]:
            with omp_threads(num_threads):
                return part.search(queries, k, where, exact, without.get(part))

        if len(self.parts) == 1 and due is None:
            return *one(self.parts[0]), self, ()
        late: tuple[int, ...] = ()
        if self.pool is None:
            answers = {number: one(part) for number, part in enumerate(self.parts)}
        else:
            answers, late = in_time(self.pool, one, self.parts, due)
        if before is not None:
            before |= answers
            answers = before
        rows, scores = merge(answers, self._starts, len(queries), k)
        return rows, scores, self, late

    def _out(self, rows: np.ndarray, dropped: np.ndarray) -> np.ndarray:
        """(B, k) True where a hit may not be returned: dead, excluded, or its item again."""
        out = rows < 0
        if self.dead is not None:
            out |= self.dead[rows]
        if dropped.size:
            for query in range(len(rows)):
                out[query] |= np.isin(rows[query], dropped[query])
        if self.many:
            ids = self.ids_at(np.where(out, -1, rows))
            for query in range(len(rows)):
                seen: set[str] = set()
                for place in np.flatnonzero(~out[query]):
                    out[query, place] = ids[query, place] in seen
                    seen.add(ids[query, place])
        return out

    def search_ids(self, item_ids: Sequence[str], k: int, **how: Any) -> Hits:
        """The k items nearest to each given item, itself left out beside what `exclude` says; see
        `search`.

        Raises:
            UnknownIdError: an id is not in the index.
        """
        vectors, given = self.vectors(item_ids), how.pop("exclude", None)
        own = [[item_id] for item_id in item_ids]
        if given is not None:
            excluded(given, len(own), self.locate)  # as it is given, for what it is refused for
            own = [[*mine, *others] for mine, others in zip(own, given, strict=True)]
        return self.search(vectors, k, exclude=own, **how)

    def vector(self, item_id: str) -> np.ndarray:
        """(D,) vector of an item, its first; approximate where the index quantises."""
        return self.vectors([item_id])[0]

    def vectors(self, item_ids: Sequence[str]) -> np.ndarray:
        """(n, D) vectors of items, of each its first.

        Raises:
            UnknownIdError: an id is not in the index.
        """
        rows = self.locate(item_ids)
        for found, item_id in zip(rows, item_ids, strict=True):
            if not len(found):
                raise UnknownIdError(
                    f"no item {item_id!r} in index {self.version}; index it first, or search by "
                    f"its vector"
                )
        return self.reconstruct(np.array([found[0] for found in rows], np.int64))
