"""The only use of FAISS: building, searching and storing one inner-product index.

FAISS itself is silent where it should not be (NaN is accepted, k is unbounded, a wrong dimension
is a bare AssertionError); `rec.retrieval.index` checks before it calls this.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import faiss
import numpy as np


class Ann:
    """A FAISS index over rows 0, 1, 2, ... in the order they are added; inner product."""

    def __init__(self, index: faiss.Index) -> None:
        self._index = index
        self._ivf = faiss.try_extract_index_ivf(index)

    @classmethod
    def make(cls, factory: str, dim: int) -> Ann:
        """An empty index by FAISS factory string. Raises ValueError where FAISS cannot read it."""
        try:
            return cls(faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT))
        except RuntimeError as error:
            reason = str(error).split(":")[-1].strip()
            raise ValueError(f"FAISS factory {factory!r} of dimension {dim}: {reason}") from error

    @classmethod
    def read(cls, path: str) -> Ann:
        """Load into memory. A memory-mapped index would fault when its file is overwritten."""
        return cls(faiss.read_index(path))

    def write(self, path: str) -> None:
        faiss.write_index(self._index, path)

    @property
    def dim(self) -> int:
        return self._index.d

    @property
    def size(self) -> int:
        return self._index.ntotal

    @property
    def is_trained(self) -> bool:
        return self._index.is_trained

    @property
    def num_lists(self) -> int:
        """Inverted lists; 0 where the index has none and nprobe means nothing."""
        return self._ivf.nlist if self._ivf is not None else 0

    @property
    def nprobe(self) -> int:
        return self._ivf.nprobe if self._ivf is not None else 0

    @nprobe.setter
    def nprobe(self, value: int) -> None:
        faiss.ParameterSpace().set_index_parameter(self._index, "nprobe", value)

    def train(self, vectors: np.ndarray) -> None:
        self._index.train(vectors)

    def add(self, vectors: np.ndarray) -> None:
        self._index.add(vectors)

    def search(self, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(B, k) rows, -1 where fewer were found, and (B, k) scores, best first."""
        scores, rows = self._index.search(vectors, k)
        return rows, scores

    def enable_reconstruct(self) -> None:
        """Inverted lists need a row -> place map (8 bytes a row) before `reconstruct`."""
        if self._ivf is not None:
            self._ivf.make_direct_map()

    def reconstruct(self, rows: np.ndarray) -> np.ndarray:
        """(n, D) vectors as the index stores them: approximate where it quantises."""
        return np.stack([self._index.reconstruct(int(row)) for row in rows])


class ExactTop:
    """The k best rows of each query over vectors that arrive in batches (brute force)."""

    def __init__(self, queries: np.ndarray, k: int) -> None:
        self._queries, self._k, self._rows = queries, k, 0
        self._heap = faiss.ResultHeap(len(queries), k, keep_max=True)

    def add(self, vectors: np.ndarray) -> None:
        k = min(self._k, len(vectors))
        scores, rows = faiss.knn(self._queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)
        self._heap.add_result(scores, rows + self._rows)
        self._rows += len(vectors)

    def finish(self) -> np.ndarray:
        """(Q, k) rows, best first; -1 where there are fewer than k."""
        self._heap.finalize()
        return self._heap.I


@contextmanager
def omp_threads(num_threads: int | None) -> Iterator[None]:
    """OpenMP threads of FAISS calls by this thread meanwhile; None = all that the process may use.

    Put back afterwards: torch reads the same OpenMP runtime, so a search would slow it down.
    """
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(num_threads or len(os.sched_getaffinity(0)))
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
