"""Brute force over vectors that arrive in batches."""

from __future__ import annotations

import faiss
import numpy as np


def mark_absent(rows: np.ndarray, scores: np.ndarray) -> None:
    """FAISS's score of no hit is a large number; here it is -inf."""
    scores[rows < 0] = -np.inf


class ExactTop:
    """The k best rows of each query over vectors that arrive in batches (brute force)."""

    def __init__(self, queries: np.ndarray, k: int) -> None:
        self._queries, self._k, self._rows = queries, k, 0
        self._heap = faiss.ResultHeap(len(queries), k, keep_max=True)

    def add(self, vectors: np.ndarray, rows: np.ndarray | None = None) -> None:
        """Take (n, D) vectors in; `rows` (n,) their numbers, None = those after the last."""
        if len(vectors) and len(self._queries):
            k = min(self._k, len(vectors))
            scores, found = faiss.knn(self._queries, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)
            numbers = found + self._rows if rows is None else rows[found]
            self._heap.add_result(scores, numbers.astype(np.int64, copy=False))
        self._rows += len(vectors)

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """(Q, k) rows, best first, -1 where they are fewer than k; and scores, there -inf."""
        self._heap.finalize()
        mark_absent(self._heap.I, self._heap.D)
        return self._heap.I, self._heap.D
