"""Item vectors, dense or sparse: their cosines and nearest neighbours, exact and in chunks.

Vectors are dense (N, D) arrays or sparse `csr_array`s; a row of zeros (an item with nothing to
see) is at similarity 0 from all.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Floats = NDArray[np.floating]
Index = NDArray[np.int64]
Vectors = Floats | sparse.csr_array
V = TypeVar("V", NDArray[np.floating], sparse.csr_array)
_CHUNK_SCORES = 1 << 24  # scores held at a time


def unit_rows(vectors: V) -> V:
    """Rows scaled to length 1; rows of zeros stay zeros."""
    if isinstance(vectors, sparse.csr_array):
        norms = np.sqrt(np.asarray(vectors.multiply(vectors).sum(axis=1)).ravel())
        return sparse.csr_array(sparse.diags_array(1 / np.where(norms > 0, norms, 1)) @ vectors)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)


def similarity(queries: Vectors, items: Vectors) -> Floats:
    """(Q, N) inner products, dense; cosines if the rows are unit rows."""
    if isinstance(queries, sparse.csr_array):
        product = queries @ items.T
        return product.toarray() if isinstance(items, sparse.csr_array) else product
    return np.asarray(queries @ items.T)


class Neighbours(NamedTuple):
    rows: Index  # (Q, k) rows of the items, nearest first
    similarity: Floats  # (Q, k) cosines

    def first(self, k: int) -> Neighbours:
        return Neighbours(self.rows[:, :k], self.similarity[:, :k])


def nearest(queries: Vectors, items: Vectors, k: int) -> Neighbours:
    """The k most similar items (all, where there are fewer) of each query, exact, in chunks.

    Both arguments are unit rows. Equal similarities are ordered by row number.
    """
    num_queries, num_items = queries.shape[0], items.shape[0]
    k = min(k, num_items)
    rows = np.empty((num_queries, k), np.int64)
    values = np.empty((num_queries, k), np.float32)
    step = max(1, _CHUNK_SCORES // max(1, num_items))
    for start in range(0, num_queries, step):
        scores = similarity(queries[start : start + step], items)
        top = np.sort(np.argpartition(-scores, k - 1, axis=1)[:, :k], axis=1)
        found = np.take_along_axis(scores, top, axis=1)
        order = np.argsort(-found, axis=1, kind="stable")
        rows[start : start + step] = np.take_along_axis(top, order, axis=1)
        values[start : start + step] = np.take_along_axis(found, order, axis=1)
    return Neighbours(rows, values)
