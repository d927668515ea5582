"""Spherical k-means over data in parts, and recall from the clusters of what a user liked.

Lloyd's algorithm where only sums and counts travel: each part assigns its vectors to the nearest
centre by cosine (Dhillon & Modha 2001) and returns what `Sums` holds, whatever its size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rec.retrieval.errors import QueryError
from rec.retrieval.exact import ExactTop
from rec.retrieval.interests import quotas
from rec.retrieval.queries import as_floats, texts, unfit, whole


class Sums(NamedTuple):
    """What one pass over some vectors adds up to."""

    totals: np.ndarray  # (C, D) float64, of the vectors of each cluster
    counts: np.ndarray  # (C,) int64
    similarity: float  # of all vectors to their centres

    def __add__(self, other: object) -> Sums:
        assert isinstance(other, Sums)
        return Sums(
            self.totals + other.totals,
            self.counts + other.counts,
            self.similarity + other.similarity,
        )


def nearest(vectors: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n,) cluster of each vector and (n,) inner product with its centre.

    Args:
        vectors: (n, D) float32.
        centres: (C, D) float32 unit vectors.

    Raises:
        QueryError: they are not finite, or of different dimensions.
    """
    vectors, centres = _checked("vector", vectors), _checked("centre", centres)
    if not len(centres) or vectors.shape[1] != centres.shape[1]:
        raise QueryError(
            f"centres have shape {centres.shape}, vectors {vectors.shape}: expected (C, D), (n, D)"
        )
    top = ExactTop(vectors, 1)
    top.add(centres)
    clusters, similarity = top.finish()
    return clusters[:, 0], similarity[:, 0]


def add_up(batches: Iterable[np.ndarray], centres: np.ndarray) -> Sums:
    """One part's share of a round: batches of (n, D) vectors."""
    total = Sums(np.zeros(centres.shape), np.zeros(len(centres), np.int64), 0.0)
    for vectors in batches:
        clusters, similarity = nearest(vectors, centres)
        totals = np.zeros(centres.shape)
        order = np.argsort(clusters, kind="stable")
        filled, first = np.unique(clusters[order], return_index=True)
        totals[filled] = np.add.reduceat(vectors[order], first, axis=0, dtype=np.float64)
        counts = np.bincount(clusters, minlength=len(centres))
        total = total + Sums(totals, counts, float(similarity.sum(dtype=np.float64)))
    return total


def first_centres(sample: np.ndarray, num_clusters: int, seed: int) -> np.ndarray:
    """(C, D) starting centres out of a sample, far apart by k-means++ (Arthur & Vassilvitskii).

    Raises:
        QueryError: the sample has fewer vectors than there are clusters to be, or is not finite, or
            the seed is no number from 0 on.
    """
    num_clusters = whole(num_clusters, "num_clusters", 1)
    sample = _checked("vector", sample)
    if len(sample) < num_clusters:
        raise QueryError(f"{num_clusters} clusters from a sample of {len(sample)} vectors")
    rng = np.random.default_rng(whole(seed, "seed", 0))
    unit = _unit(sample)
    chosen = [int(rng.integers(len(unit)))]
    distance = np.full(len(unit), np.inf)
    while len(chosen) < num_clusters:
        distance = np.minimum(distance, np.maximum(0, 1 - unit @ unit[chosen[-1]]))
        distance[chosen] = 0
        weight = distance.sum()
        odds = distance / weight if weight else None
        if odds is None:  # only repeats are left: any that is not chosen yet
            rest = np.setdiff1d(np.arange(len(unit)), chosen)
            chosen.append(int(rng.choice(rest)))
        else:
            chosen.append(int(rng.choice(len(unit), p=odds)))
    return unit[chosen]


def update(centres: np.ndarray, sums: Sums, seed: int) -> np.ndarray:
    """(C, D) centres of the next round; a cluster that is empty takes half of the largest.

    The half is taken as FAISS does: both centres are moved apart by a small amount.
    """
    rng = np.random.default_rng(seed)
    moved = centres.astype(np.float64).copy()
    filled = sums.counts > 0
    moved[filled] = sums.totals[filled]
    moved = _unit(moved)
    counts = sums.counts.copy()
    for empty in np.flatnonzero(~filled):
        largest = int(counts.argmax())
        shift = 1e-3 * rng.standard_normal(centres.shape[1])
        moved[empty], moved[largest] = moved[largest] + shift, moved[largest] - shift
        counts[empty] = counts[largest] // 2
        counts[largest] -= counts[empty]
    return _unit(moved).astype(np.float32)


@dataclass(frozen=True)
class Round:
    """What a worker needs for its part of a round."""

    part: Any
    centres: np.ndarray


def kmeans(
    parts: Sequence[Any],
    share: Callable[[Round], Sums],
    centres: np.ndarray,
    *,
    rounds: int = 20,
    tolerance: float = 1e-4,
    seed: int = 0,
    run: Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]] = map,
) -> tuple[np.ndarray, list[float]]:
    """Centres after at most `rounds` rounds over all parts.

    Args:
        parts: what `share` makes vectors of: names of files, say.
        share: one part's sums, by `add_up`.
        centres: (C, D) to begin with; see `first_centres`.
        tolerance: stop once a round adds less than this to the mean similarity.
        run: applies a function to tasks, in this process or elsewhere.

    Returns:
        (C, D) unit centres, and the mean similarity to them before each round.

    Raises:
        QueryError: the parts have no vectors.
    """
    history: list[float] = []
    for number in range(rounds):
        total = None
        for sums in run(share, [Round(part, centres) for part in parts]):
            total = sums if total is None else total + sums
        if total is None or not total.counts.sum():
            raise QueryError("there are no vectors to cluster")
        history.append(total.similarity / float(total.counts.sum()))
        if number and history[-1] - history[-2] < tolerance and (total.counts > 0).all():
            break
        centres = update(centres, total, seed + number)
    return centres, history


class ClusterRecall:
    """Items from the clusters that a user's history falls into.

    Args:
        ids: (N,) of the items.
        clusters: (N,) the cluster of each.
        scores: (N,) what to order a cluster's items by: popularity, freshness, quality.

    Raises:
        QueryError: they are not equally many, an id is there twice, a cluster is no number from 0
            on, or a score is not finite.
    """

    def __init__(self, ids: Sequence[str], clusters: np.ndarray, scores: np.ndarray) -> None:
        ids, clusters, scores = texts(ids), np.asarray(clusters), np.asarray(scores)
        if not clusters.shape == scores.shape == (len(ids),):
            raise QueryError(
                f"{len(ids)} ids, clusters of shape {clusters.shape}, scores of {scores.shape}"
            )
        if len(ids) and (clusters.dtype.kind not in "iu" or clusters.min() < 0):
            raise QueryError("clusters are not whole numbers from 0 on")
        if scores.dtype.kind not in "iuf" or not np.isfinite(scores).all():
            raise QueryError("scores have NaN or infinity, or are no numbers")
        if len(set(ids)) < len(ids):
            raise QueryError(f"{len(ids) - len(set(ids))} ids are there more than once")
        # as few numbers as there are clusters, however large those given
        filled, clusters = np.unique(clusters, return_inverse=True)
        self._ids = np.asarray(ids, object)
        self._cluster_of = dict(zip(ids, clusters.tolist(), strict=True))
        self._rows = np.lexsort((-scores.astype(np.float64), clusters))
        self._starts = np.searchsorted(clusters[self._rows], np.arange(len(filled) + 1))

    def recall(self, history: Sequence[str], budget: int) -> np.ndarray:
        """(n,) ids, n at most `budget`: of each cluster its best, in proportion to how much of
        the history lies in it; nothing of the history itself.

        Ids that are not among the items count for nothing. Places that a small cluster cannot
        fill go to the other clusters of the history, the heaviest first.
        """
        budget, history = whole(budget, "budget", 1), texts(history)
        seen = set(history)
        known = [self._cluster_of[i] for i in history if i in self._cluster_of]
        clusters, counts = np.unique(np.array(known, int), return_counts=True)
        shares = quotas(counts, budget) if len(counts) else counts
        first, rest = [], []
        for place in np.argsort(-counts, kind="stable"):
            cluster = clusters[place]
            rows = self._rows[self._starts[cluster] : self._starts[cluster + 1]]
            # the budget and the history bound how many can be wanted
            items = [i for i in self._ids[rows[: budget + len(seen)]] if i not in seen]
            first += items[: shares[place]]
            rest += items[shares[place] :]
        return np.array([*first, *rest[: budget - len(first)]], object)


def _checked(name: str, vectors: np.ndarray) -> np.ndarray:
    """As (n, D) float32, contiguous. Raises QueryError."""
    try:
        vectors = np.ascontiguousarray(as_floats(vectors))
    except (TypeError, ValueError) as error:
        raise QueryError(f"{name}s are not numbers: {error}") from error
    if vectors.ndim != 2:
        raise QueryError(f"{name}s have shape {vectors.shape}, expected (n, D)")
    if (found := unfit(vectors)) is not None:
        raise QueryError(f"{name} {found[0]} has {found[1]}")
    return vectors


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)
