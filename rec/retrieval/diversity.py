"""Choose k of the items recalled so that they differ: MMR and DPP, both greedy.

Both take relevance scores on the scale of the similarities (0 to 1, say) and unit vectors.
"""

from __future__ import annotations

from numbers import Real

import numpy as np

from rec.retrieval.errors import QueryError
from rec.retrieval.queries import whole

_EXHAUSTED = 1e-6  # what is left of an item's own direction: less is rounding


def mmr(scores: np.ndarray, vectors: np.ndarray, k: int, trade_off: float = 0.7) -> np.ndarray:
    """Maximal marginal relevance (Carbonell & Goldstein 1998).

    Each step takes the item of largest trade_off * score - (1 - trade_off) * its greatest cosine
    with those taken; the first by score alone. Costs O(k N D).

    Args:
        scores: (N,) relevance.
        vectors: (N, D) unit vectors.
        k: how many; all, where there are fewer.
        trade_off: 0 (only difference) to 1 (only relevance).

    Returns:
        (min(k, N),) positions in the order taken; equal values take the first.

    Raises:
        QueryError: an argument is out of range or not finite.
    """
    scores, vectors, k = _checked(scores, vectors, k, trade_off)
    num_taken = min(k, len(scores))
    taken = np.zeros(num_taken, np.int64)
    value = trade_off * scores
    closest = np.full(len(scores), -np.inf)
    free = np.ones(len(scores), bool)
    for step in range(num_taken):
        gain = value - (1 - trade_off) * closest if step else scores
        taken[step] = np.where(free, gain, -np.inf).argmax()
        free[taken[step]] = False
        closest = np.maximum(closest, vectors @ vectors[taken[step]])
    return taken


def dpp(scores: np.ndarray, vectors: np.ndarray, k: int, trade_off: float = 0.7) -> np.ndarray:
    """Greedy maximum of a determinantal point process, fast (Chen, Zhang & Zhou 2018).

    The kernel is q_i S_ij q_j with q = exp(a score), a = trade_off / (2 (1 - trade_off)) (their
    equation 14), and S = (1 + cosine) / 2, whose entries lie in [0, 1] as they need. Each step
    takes the item that raises log det most; the Cholesky rows are extended, so that k steps cost
    O(k^2 N) beside the cosines. Where nothing independent is left (repeats, or k beyond the rank)
    the rest is taken by score.

    Args:
        scores: (N,) relevance.
        vectors: (N, D) unit vectors.
        k: how many; all, where there are fewer.
        trade_off: 0 (only difference) up to below 1 (relevance).

    Returns:
        (min(k, N),) positions in the order taken; equal values take the first.

    Raises:
        QueryError: an argument is out of range or not finite.
    """
    scores, vectors, k = _checked(scores, vectors, k, trade_off)
    if trade_off >= 1:
        raise QueryError("trade_off is 1, expected below 1: that is the order of the scores")
    num_taken = min(k, len(scores))
    with np.errstate(over="ignore"):
        log_quality = trade_off / (1 - trade_off) * scores  # 2 log q: exp would overflow sooner
    if not np.isfinite(log_quality).all():
        raise QueryError(
            f"scores up to {np.abs(scores).max():.3g} overflow with trade_off {trade_off}; scale "
            f"them to that of the similarities"
        )
    rows = np.zeros((num_taken, len(scores)))  # of the Cholesky factor of S, item by column
    left = np.ones(len(scores))  # squared: of each item what those taken do not explain
    taken: list[int] = []
    free = np.ones(len(scores), bool)
    while len(taken) < num_taken:
        open_ = free & (left > _EXHAUSTED)
        if not open_.any():
            rest = np.flatnonzero(free)
            order = rest[np.argsort(-scores[rest], kind="stable")]
            return np.array([*taken, *order[: num_taken - len(taken)]], np.int64)
        gain = log_quality + np.log(np.where(open_, left, 1))
        best = int(np.where(open_, gain, -np.inf).argmax())
        step = len(taken)
        similarity = (1 + vectors @ vectors[best]) / 2
        row = (similarity - rows[:step, best] @ rows[:step]) / np.sqrt(left[best])
        rows[step] = row
        left = left - row**2
        free[best] = False
        taken.append(best)
    return np.array(taken, np.int64)


def _checked(
    scores: np.ndarray, vectors: np.ndarray, k: int, trade_off: float
) -> tuple[np.ndarray, np.ndarray, int]:
    k = whole(k, least=1)
    try:
        scores, vectors = np.asarray(scores, np.float64), np.asarray(vectors, np.float64)
    except (TypeError, ValueError) as error:
        raise QueryError(f"scores or vectors are not numbers: {error}") from error
    if vectors.ndim != 2 or scores.shape != vectors.shape[:1]:
        raise QueryError(
            f"scores {scores.shape} and vectors {vectors.shape}: expected (N,), (N, D)"
        )
    if not isinstance(trade_off, Real) or not 0 <= trade_off <= 1:
        raise QueryError(f"trade_off is {trade_off!r}, expected 0 to 1")
    if not (np.isfinite(scores).all() and np.isfinite(vectors).all()):
        raise QueryError("scores or vectors have NaN or infinity")
    return scores, vectors, k
