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

>>> from rec.metrics.ranks import rank_targets
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

import numpy as np

from rec.metrics.ranks import Floats, TargetRanks


def hit_rate(ranks: TargetRanks, k: int) -> Floats:
    """(Q,) 1 where at least one relevant item is among the first k."""
    return (ranks.per_query((ranks.rank <= k).astype(float)) > 0).astype(float)


def recall(ranks: TargetRanks, k: int) -> Floats:
    """(Q,) share of a query's relevant items among the first k; not capped at k / relevant."""
    return ranks.per_query((ranks.rank <= k).astype(float)) / ranks.num_relevant


def ndcg(ranks: TargetRanks, k: int) -> Floats:
    """(Q,) NDCG with binary gains: sum of 1 / log2(1 + rank) over the best possible sum.

    The best possible sum has min(k, num_relevant) terms (Jarvelin and Kekalainen, 2002).
    """
    gains = np.where(ranks.rank <= k, 1 / np.log2(1 + ranks.rank), 0.0)
    ideal = np.cumsum(1 / np.log2(np.arange(2, k + 2)))
    return ranks.per_query(gains) / ideal[np.minimum(ranks.num_relevant, k) - 1]


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
    return ranks.per_query(ranks.position() / ranks.rank) / ranks.num_relevant
