"""How many rows better than those found the lists not looked into are expected to hold."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr, ndtri

from rec.retrieval.ann import Ann
from rec.retrieval.effort import Effort

_SAMPLED, _SAMPLED_VALUES = 32_768, 1 << 22  # rows; numbers of them
_BLUR_QUERIES = 32
_MOST = 1.0  # deviations: of those as good as the worst five in six, nearly all that are better
_AS_ALL = 4  # rows of a list count as much as all others do in how far its own lie


class Spread:
    """How far rows lie from the centres of their inverted lists along any direction.

    What a row scores above its list's centre is the inner product of the query and the rest of the
    row. For a query that is far from the list it is as good as normal, of mean 0: its deviation is
    that of the rests along the query. All lists share its shape (a covariance), each has its size.
    Near the query it is not: rows there lean towards it; `rec.retrieval.lists.rise` is for them.

    Args:
        lists: (size,) the list of each row.
    """

    def __init__(self, ann: Ann, lists: np.ndarray) -> None:
        rows, own = _sampled(ann, lists)
        rests = (rows - ann.centroids()[own]).astype(np.float64)
        squares = np.einsum("ij,ij->i", rests, rests)
        count = np.bincount(own, minlength=ann.num_lists)
        mean = squares.mean() if len(squares) else 0.0
        sums = np.bincount(own, squares, ann.num_lists) + _AS_ALL * mean
        sizes = np.sqrt(sums / (count + _AS_ALL))
        self._sizes = np.maximum(sizes, np.finfo(np.float32).tiny)  # (lists,)
        rests /= self._sizes[own, None]
        values, axes = np.linalg.eigh(rests.T @ rests / max(1, len(rests)))
        # (D, D) of a list of size 1; times its transpose it is the covariance
        self._root = axes * np.sqrt(np.maximum(values, 0))
        self._largest = self._sizes.max()
        self._blur = self._measured_blur(ann, lists) if ann.refines else 0.0

    def _measured_blur(self, ann: Ann, lists: np.ndarray) -> float:
        """How wrong scores before re-ranking are, as a share of the deviation along the query."""
        places = np.linspace(0, ann.size - 1, _BLUR_QUERIES).astype(np.int64)
        queries = ann.reconstruct(places)
        rows, scores = ann.first_look(queries, 64, Effort(8))
        query, hit = np.nonzero(rows >= 0)
        rows = rows[query, hit]
        wrong = scores[query, hit] - np.einsum("ij,ij->i", queries[query], ann.reconstruct(rows))
        # rows near the query all score too low: that puts none of them before another
        count = np.maximum(np.bincount(query, minlength=len(queries)), 1)
        wrong -= (np.bincount(query, wrong, len(queries)) / count)[query]
        deviation = self.along(ann.turned(queries))[query] * self._sizes[lists[rows]]
        there = deviation > 0
        return (
            float(np.sqrt(np.mean((wrong[there] / deviation[there]) ** 2))) if any(there) else 0.0
        )

    def along(self, turned: np.ndarray) -> np.ndarray:
        """(B,) deviation along each query in a list of size 1.

        Args:
            turned: (B, D) queries as the lists' centres take them.
        """
        return np.linalg.norm(turned @ self._root, axis=1)

    def reach(self, missed: float, rows: int) -> float:
        """How far below the worst hit a centre scores at least, by `along`, where of so many rows
        at most `missed` are expected to score above it."""
        return float(-ndtri(min(missed / max(rows, 1), 0.5)) * self._largest)

    def expected(
        self,
        along: np.ndarray,
        centres: np.ndarray,
        worst: np.ndarray,
        per_list: np.ndarray,
        blurred: bool = False,
    ) -> np.ndarray:
        """(B, lists) rows of each list that are expected to score above the worst hit; `blurred`,
        before re-ranking, above what most that are as good do.

        Args:
            centres: (B, lists) scores of the lists' centres.
            worst: (B,) score of the last hit.
            per_list: (lists,) rows that may be found in each.
        """
        above, deviation = worst[:, None] - centres, along[:, None] * self._sizes
        if blurred:
            above = above - _MOST * self._blur * deviation
            deviation = deviation * np.hypot(1, self._blur)
        return per_list * _tail(above, deviation)


def _sampled(ann: Ann, lists: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, D) stored rows by chance, turned, and (n,) their lists."""
    num = min(_SAMPLED, ann.size, _SAMPLED_VALUES // ann.dim + 1)
    drawn = np.unique(np.random.default_rng(0).integers(0, ann.size, num))
    if ann.refines:
        return ann.turned(ann.reconstruct(drawn)), lists[drawn]
    counts = np.bincount(lists, minlength=ann.num_lists)
    ends = counts.cumsum()
    own = np.searchsorted(ends, drawn, side="right")
    return ann.stored(own, drawn - (ends - counts)[own]), own


def _tail(above: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """How likely a normal number of that deviation is to be greater."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(deviation > 0, ndtr(-above / deviation), above < 0)
