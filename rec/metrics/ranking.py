"""Ranking metrics over all candidates, with every doubt settled against the model.

The rules, which hold for every metric here:

- Ties count against the model: among equal scores, irrelevant candidates come first.
- NaN counts against the model: an irrelevant candidate scored NaN outranks everything, a
  relevant one is never retrieved. So a NaN scorer scores 0.
- A query whose candidates all have the same score retrieves nothing: a constant scorer scores
  0, whatever k is.
- Candidates are left out by an explicit mask only; a score of -inf is the lowest score.
- Relevant items that are not candidates stay in the denominator.

Metrics take the ranks of relevant items and return one value a query, so that intervals and
paired comparisons (`rec.metrics.bootstrap`) can be made from them. Nothing is sampled.

>>> scores = np.array([[0.9, 0.8, 0.1, 0.3], [0.5, 0.5, 0.2, 0.1]])
>>> relevant = np.array([[True, False, False, True], [True, False, False, False]])
>>> ranks = rank_targets(scores, relevant)
>>> recall(ranks, 1)
array([0.5, 0. ])
>>> mrr(ranks, 10)
array([1. , 0.5])
>>> average_precision(ranks).round(3)
array([0.833, 0.5  ])
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Floats = NDArray[np.floating]
Mask = NDArray[np.bool_]
_CHUNK_SCORES = 1 << 24  # scores held at a time; a float32 copy of them is 64 MiB


@dataclass(frozen=True)
class TargetRanks:
    """Where Q queries found their relevant items: all that the metrics need."""

    query_index: NDArray[np.int64]  # (M,) ascending
    rank: Floats  # (M,) from 1, ascending within a query; inf where never retrieved
    num_relevant: NDArray[np.int64]  # (Q,) at least 1; counts items that were no candidates

    def __len__(self) -> int:
        return len(self.num_relevant)

    def _per_query(self, values: Floats) -> Floats:
        sums = np.bincount(self.query_index, weights=values, minlength=len(self))
        return sums.astype(float)  # bincount of nothing is of integers

    def _position(self) -> Floats:
        """(M,) 1 for a query's best ranked relevant item, 2 for the next, and so on."""
        first = np.searchsorted(self.query_index, self.query_index, side="left")
        return np.arange(len(self.query_index)) - first + 1.0


def rank_targets(
    scores: Floats,
    relevant_mask: Mask,
    candidate_mask: Mask | None = None,
    num_relevant: NDArray[np.integer] | None = None,
) -> TargetRanks:
    """Worst-case ranks of the relevant candidates of B queries.

    Args:
        scores: (B, N), higher is better.
        relevant_mask: (B, N), True where the candidate is what the query should find.
        candidate_mask: (B, N) or (N,), False where it is left out (seen items, the query itself).
        num_relevant: (B,) how many relevant items there are, with those outside the N columns;
            by default the row sums of `relevant_mask`, before `candidate_mask` is applied.

    Raises:
        ValueError: shapes differ, or a query has no relevant item (leave it out and say so).
    """
    if scores.ndim != 2 or scores.shape != relevant_mask.shape:
        raise ValueError(f"scores {scores.shape} and relevant_mask {relevant_mask.shape} differ")
    found = relevant_mask.sum(axis=1, dtype=np.int64)
    total = found if num_relevant is None else np.asarray(num_relevant, dtype=np.int64)
    if (total < np.maximum(found, 1)).any():
        row = int(np.argmax(total < np.maximum(found, 1)))
        raise ValueError(f"query {row}: num_relevant {total[row]}, relevant columns {found[row]}")
    keep = np.ones(scores.shape, bool) if candidate_mask is None else candidate_mask
    keep = np.broadcast_to(keep, scores.shape)

    values = scores.astype(np.result_type(scores.dtype, np.float32))
    np.copyto(values, np.finfo(values.dtype).min, where=values == -np.inf)
    # -inf is now free to stand for "no candidate", and sorts first
    others = np.where(keep & ~relevant_mask, np.where(np.isnan(values), np.inf, values), -np.inf)
    others.sort(axis=1)
    spread = np.where(keep, values, -np.inf).max(axis=1, initial=-np.inf) > np.where(
        keep, values, np.inf
    ).min(axis=1, initial=np.inf)
    spread |= np.isnan(np.where(keep, values, 0)).any(axis=1)

    queries, ranks = [np.empty(0, np.int64)], [np.empty(0)]
    for row in np.flatnonzero((relevant_mask & keep).any(axis=1)):
        own = np.sort(values[row, relevant_mask[row] & keep[row]])  # NaN sorts last
        own = np.concatenate([own[~np.isnan(own)][::-1], own[np.isnan(own)]])
        above = values.shape[1] - np.searchsorted(others[row], own, side="left")
        rank = above + np.arange(1.0, len(own) + 1)
        rank[np.isnan(own) | ~spread[row]] = np.inf
        queries.append(np.full(len(own), row))
        ranks.append(rank)
    return TargetRanks(np.concatenate(queries), np.concatenate(ranks), total)


def rank_in_chunks(
    score_rows: Callable[[int, int], Floats],
    relevant: sparse.csr_array,
    *,
    candidate_mask: Mask | None = None,
    excluded: sparse.csr_array | None = None,
    num_relevant: NDArray[np.integer] | None = None,
    chunk_scores: int = _CHUNK_SCORES,
) -> TargetRanks:
    """`rank_targets` for score matrices that are too large to hold (100k x 100k is 40 GB).

    Args:
        score_rows: gives the scores (stop - start, N) of queries start to stop.
        relevant: (Q, N), non-zero where relevant.
        candidate_mask: (N,), False for columns that are no candidates for anybody.
        excluded: (Q, N), non-zero where the column is no candidate for this query.
        num_relevant: (Q,), as in `rank_targets`.
        chunk_scores: how many scores to hold at a time.
    """
    num_queries, num_columns = relevant.shape
    step = max(1, chunk_scores // max(1, num_columns))
    parts: list[TargetRanks] = []
    for start in range(0, num_queries, step):
        stop = min(start + step, num_queries)
        keep = np.ones((stop - start, num_columns), bool)
        if candidate_mask is not None:
            keep &= candidate_mask
        if excluded is not None:
            keep &= excluded[start:stop].toarray() == 0
        part = rank_targets(
            score_rows(start, stop),
            relevant[start:stop].toarray() != 0,
            keep,
            None if num_relevant is None else num_relevant[start:stop],
        )
        shifted = part.query_index + start
        parts.append(TargetRanks(shifted, part.rank, part.num_relevant))
    if not parts:
        return TargetRanks(np.empty(0, np.int64), np.empty(0), np.empty(0, np.int64))
    return TargetRanks(
        np.concatenate([p.query_index for p in parts]),
        np.concatenate([p.rank for p in parts]),
        np.concatenate([p.num_relevant for p in parts]),
    )


def hit_rate(ranks: TargetRanks, k: int) -> Floats:
    """(Q,) 1 where at least one relevant item is among the first k."""
    return (ranks._per_query((ranks.rank <= k).astype(float)) > 0).astype(float)


def recall(ranks: TargetRanks, k: int) -> Floats:
    """(Q,) share of a query's relevant items among the first k; not capped at k / relevant."""
    return ranks._per_query((ranks.rank <= k).astype(float)) / ranks.num_relevant


def ndcg(ranks: TargetRanks, k: int) -> Floats:
    """(Q,) NDCG with binary gains: sum of 1 / log2(1 + rank) over the best possible sum.

    The best possible sum has min(k, num_relevant) terms (Jarvelin and Kekalainen, 2002).
    """
    gains = np.where(ranks.rank <= k, 1 / np.log2(1 + ranks.rank), 0.0)
    ideal = np.cumsum(1 / np.log2(np.arange(2, k + 2)))
    return ranks._per_query(gains) / ideal[np.minimum(ranks.num_relevant, k) - 1]


def first_rank(ranks: TargetRanks) -> Floats:
    """(Q,) rank of the best ranked relevant item; inf where none was retrieved."""
    first = np.full(len(ranks), np.inf)
    np.minimum.at(first, ranks.query_index, ranks.rank)
    return first


def mrr(ranks: TargetRanks, k: int) -> Floats:
    """(Q,) 1 / rank of the first relevant item, 0 beyond k."""
    first = first_rank(ranks)
    return np.where(first <= k, 1 / first, 0.0)


def average_precision(ranks: TargetRanks) -> Floats:
    """(Q,) mean over relevant items of the precision at their ranks; its mean is mAP."""
    return ranks._per_query(ranks._position() / ranks.rank) / ranks.num_relevant
