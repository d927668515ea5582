"""Text against picture, and items liked together, for any item vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from rec.metrics.ranks import TargetRanks, rank_in_chunks
from rec.metrics.vectors import Floats, Index, similarity


def cross_modal_ranks(queries: Floats, targets: Floats) -> TargetRanks:
    """Ranks of each query's own target among all targets: row i of one belongs to row i of
    the other. Targets that equal another item's count as lost, by the tie rule."""
    return rank_in_chunks(
        lambda a, b: similarity(queries[a:b], targets), sparse.eye_array(len(queries), format="csr")
    )


@dataclass(frozen=True)
class CoLiked:
    """For each query item, the items that the same users like: truth, never an input."""

    query_rows: Index  # (Q,) rows of the query items
    relevant: sparse.csr_array  # (Q, N) non-zero where relevant, over all items


def co_liked(
    likes: sparse.csr_array,
    query_rows: Index,
    *,
    num_relevant: int = 20,
    min_likes: int = 10,
    min_common: int = 3,
) -> CoLiked:
    """The `num_relevant` items with the highest cosine of co-occurrence with each query item.

    cosine(i, j) = users who like both / sqrt(users who like i * users who like j). A query has
    at least `min_likes` users; a relevant item has too, and at least `min_common` of them like
    both. Queries for whom nothing qualifies are left out of `query_rows`. Of equal cosines the
    item in the lower row is taken.

    Args:
        likes: (U, N) 1 where user u likes item n.
        query_rows: which items ask.
        num_relevant: at most so many relevant items a query.
        min_likes: support below which cosines are noise.
        min_common: users in common below which they are, too.
    """
    counts = np.asarray(likes.sum(axis=0)).ravel()
    queries = query_rows[counts[query_rows] >= min_likes]
    by_item = sparse.csr_array(likes.T)
    kept: list[int] = []
    columns: list[Index] = []
    for row in queries:
        users = by_item[[row]].indices
        common = np.asarray(likes[users].sum(axis=0)).ravel()
        common[row] = 0
        fits = np.flatnonzero((common >= min_common) & (counts >= min_likes))
        cosine = common[fits] / np.sqrt(counts[fits] * counts[row])
        if len(fits):
            kept.append(int(row))
            columns.append(np.sort(fits[np.argsort(-cosine, kind="stable")[:num_relevant]]))
    indptr = np.cumsum([0] + [len(c) for c in columns])
    indices = np.concatenate(columns) if columns else np.empty(0, np.int64)
    shape = (len(kept), likes.shape[1])
    relevant = sparse.csr_array((np.ones(len(indices)), indices, indptr), shape=shape)
    return CoLiked(np.array(kept, dtype=np.int64), relevant)


def item_to_item_ranks(score_rows: Callable[[int, int], Floats], truth: CoLiked) -> TargetRanks:
    """Ranks of each query's relevant items among all items but the query itself.

    Args:
        score_rows: scores (stop - start, N) of queries start to stop, against all items.
        truth: from `co_liked`.
    """
    num_queries = len(truth.query_rows)
    cells = (np.ones(num_queries), (np.arange(num_queries), truth.query_rows))
    itself = sparse.csr_array(cells, shape=truth.relevant.shape)
    return rank_in_chunks(score_rows, truth.relevant, excluded=itself)
