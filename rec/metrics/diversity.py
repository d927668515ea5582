"""How different the items of one list are: by their vectors, and over categories.

Lists are (Q, k) positions of items, best first, -1 where a list is shorter. One value a query;
NaN where a list cannot be judged, so that the caller says how many were.

>>> vectors = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
>>> intra_list_diversity(np.array([[0, 1], [0, 2], [0, -1]]), vectors).tolist()
[1.0, 0.0, nan]
>>> shares = category_shares([[0], [1], [0, 1]], 2)
>>> category_entropy(np.array([[0, 1], [0, 0], [2, -1]]), shares).tolist()
[1.0, 0.0, 1.0]
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Floats = NDArray[np.floating]
Lists = NDArray[np.integer]


def intra_list_diversity(
    lists: Lists, vectors: Floats, mask: NDArray[np.bool_] | None = None
) -> Floats:
    """(Q,) mean over pairs of a list's items of 1 - their cosine (Ziegler et al. 2005).

    NaN for a list with fewer than two items that have a vector. Costs O(Q k D): the sum over
    pairs follows from the length of the vectors' sum.

    Args:
        vectors: (N, D) unit rows.
        mask: (N,) False where an item has no vector; it is left out of its lists. None: all have.
    """
    there = lists >= 0
    if mask is not None:
        there &= mask[lists]
    sizes = there.sum(axis=1)
    indptr = np.concatenate([[0], np.cumsum(sizes)])
    ones = np.ones(int(indptr[-1]), vectors.dtype)
    listed = sparse.csr_array((ones, lists[there], indptr), shape=(len(lists), len(vectors)))
    total = np.asarray(listed @ vectors, dtype=float)
    pairs = sizes * (sizes - 1)
    cosines = np.einsum("qd,qd->q", total, total) - sizes  # each with itself: 1
    return np.where(pairs > 0, 1 - cosines / np.maximum(pairs, 1), np.nan)


def category_shares(categories: Sequence[Sequence[int]], num_categories: int) -> sparse.csr_array:
    """(N, C) one for each item, shared equally among its categories; a row of 0 without any."""
    sizes = np.array([len(row) for row in categories], np.int64)
    columns = np.array([c for row in categories for c in row], np.int64)
    weights = np.repeat(1 / np.maximum(sizes, 1), sizes)
    indptr = np.concatenate([[0], np.cumsum(sizes)])
    return sparse.csr_array((weights, columns, indptr), shape=(len(sizes), num_categories))


def category_entropy(lists: Lists, shares: sparse.csr_array) -> Floats:
    """(Q,) Shannon entropy, in bits, of the categories of a list's items.

    Items without a category are left out; NaN where none has one. 0: all of one category.

    Args:
        shares: (N, C) from `category_shares`.
    """
    there = lists >= 0
    sizes = there.sum(axis=1)
    indptr = np.concatenate([[0], np.cumsum(sizes)])
    shape = (len(lists), shares.shape[0])
    listed = sparse.csr_array((np.ones(int(indptr[-1])), lists[there], indptr), shape=shape)
    mass = sparse.csr_array(listed @ shares)
    total = np.asarray(mass.sum(axis=1)).ravel()
    query = np.repeat(np.arange(len(lists)), np.diff(mass.indptr))
    share = mass.data / total[query]
    bits = np.zeros(len(share))
    np.log2(share, out=bits, where=share > 0)
    entropy = np.bincount(query, weights=-share * bits, minlength=len(lists))
    return np.where(total > 0, np.abs(entropy), np.nan)
