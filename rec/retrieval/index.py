"""Search a published index: by vector or by item id, with every input checked first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np

from rec import artifacts
from rec.retrieval import filters, settings
from rec.retrieval.errors import QueryError, UnknownIdError
from rec.retrieval.filters import Filter
from rec.retrieval.loading import load
from rec.retrieval.merge import Answers, Part, in_time, merge, pick
from rec.retrieval.queries import MAX_EXCLUDED, checked, due_at, whole
from rec.retrieval.rows import Rows
from rec.retrieval.shards import Shard
from rec.retrieval.spec import MAX_THREADS
from rec.retrieval.threads import omp_get_max_threads, omp_threads


class Hits:
    """What was found, best first; where there are fewer than k the rest is row -1, score -inf.

    Args:
        rows: (B, k) int64; of `index` only, another version counts differently.
        scores: (B, k) float32.
        missing_shards: did not answer, or not in full, by the deadline.
    """

    # no dataclass: every search would take half a microsecond more
    __slots__ = ("__dict__", "index", "missing_shards", "rows", "scores")

    def __init__(
        self,
        rows: np.ndarray,
        scores: np.ndarray,
        index: Index,
        missing_shards: tuple[int, ...] = (),
    ) -> None:
        self.rows, self.scores, self.index = rows, scores, index
        self.missing_shards = missing_shards

    @property
    def partial(self) -> bool:
        return bool(self.missing_shards)

    @cached_property
    def ids(self) -> np.ndarray:
        """(B, k) object array of str, None where there is no hit."""
        return self.index.ids_at(self.rows)

    @cached_property
    def interests(self) -> np.ndarray:
        """(B, k) which of the item's vectors was hit (a region, say); -1 where there is no hit."""
        return self.index.interests(self.rows)


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
        dropped = self._excluded(exclude, len(queries))
        if not (dropped.size or self._num_dead or self.many):
            return Hits(*self._pooled(queries, k, where, exact, due, num_threads))
        # look wider until k are left of those that may be returned
        width = k + dropped.shape[1] + math.ceil(k * self._num_dead / max(1, self.num_rows))
        before: Answers = {}  # of a narrower look: a part that is late with the next keeps them
        while True:
            width = min(width, self.num_rows)
            hits = self._pooled(queries, width, where, exact, due, num_threads, before)
            rows, scores, num_kept = pick(hits[0], hits[1], self._out(hits[0], dropped), k)
            exhausted = width == self.num_rows or (hits[0][:, -1:] < 0).all()
            if (num_kept >= k).all() or exhausted or hits[3]:
                return Hits(rows, scores, self, hits[3])
            width *= 2

    def _pooled(
        self,
        queries: np.ndarray,
        k: int,
        where: Filter | None,
        exact: bool,
        due: float | None,
        num_threads: int,
        before: Answers | None = None,
    ) -> tuple[np.ndarray, np.ndarray, Index, tuple[int, ...]]:
        """The k best rows of all parts, and the parts that were late; `before` has what parts
        answered earlier, and takes what they answer now."""

        def one(part: Part) -> tuple[np.ndarray, np.ndarray]:
            with omp_threads(num_threads):
                return part.search(queries, k, where, exact)

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
            self._excluded(given, len(own))  # as it is given, for what it is refused for
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

    def _excluded(self, exclude: Sequence[Sequence[str]] | None, num_queries: int) -> np.ndarray:
        """(B, widest) rows to leave out, -2 where a query has fewer."""
        if exclude is None:
            return np.full((num_queries, 0), -2)
        if isinstance(exclude, str) or not hasattr(exclude, "__len__"):
            raise QueryError(f"exclude is {exclude!r}, expected a list of ids for each query")
        if len(exclude) != num_queries:
            raise QueryError(f"{len(exclude)} lists of excluded ids for {num_queries} queries")
        most = max((len(ids) for ids in exclude if hasattr(ids, "__len__")), default=0)
        if most > MAX_EXCLUDED:
            raise QueryError(f"{most} excluded ids for one query, expected at most {MAX_EXCLUDED}")
        found = [
            np.concatenate([np.zeros(0, np.int64), *self.locate(item_ids)]) for item_ids in exclude
        ]
        dropped = np.full((num_queries, max(map(len, found), default=0)), -2)
        for place, rows in enumerate(found):
            dropped[place, : len(rows)] = rows
        return dropped
