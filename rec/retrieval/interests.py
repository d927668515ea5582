"""Recall for users of several interest vectors, within one budget of items a user.

Two ways to share the budget, both from the literature: by score (an item counts by its best
interest, ComiRec, Cen et al. 2020) or by quota (each interest gets its share, in proportion to its
weight or equal; PinnerSage, Pal et al. 2020). A single vector is the case of one interest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from rec.retrieval.errors import QueryError
from rec.retrieval.filters import Filter
from rec.retrieval.index import Index
from rec.retrieval.queries import MAX_K, as_floats, unfit, whole


class UserInterests(NamedTuple):
    """A user's vectors; an interest of weight 0 is inactive."""

    vectors: np.ndarray  # (K, D)
    weights: np.ndarray  # (K,) not negative


class Recalled(NamedTuple):
    """A user's items, each once; at most the budget."""

    ids: np.ndarray  # (n,) object
    scores: np.ndarray  # (n,) of the interest that it was taken for
    interests: np.ndarray  # (n,) which of the user's interests


def quotas(weights: np.ndarray, budget: int) -> np.ndarray:
    """(K,) whole shares of the budget in proportion to the weights, by the largest remainder.

    They sum to the budget, or to 0 where every weight is 0; equal remainders go to the heavier,
    then to the first.

    Raises:
        QueryError: a weight is negative or not finite, or the budget is negative.
    """
    budget = whole(budget, "budget", 0)
    weights = _weights(weights)
    if not weights.any():
        return np.zeros(len(weights), int)
    weights = weights / weights.max()  # the sum of large ones would overflow
    exact = budget * (weights / weights.sum())
    shares = np.floor(exact).astype(int)
    order = np.lexsort((np.arange(len(weights)), -weights, -(exact - shares)))
    shares[order[: budget - shares.sum()]] += 1
    return shares


def recall_interests(
    index: Index,
    users: Sequence[UserInterests],
    budget: int,
    *,
    by: Literal["score", "quota", "equal"] = "quota",
    where: Filter | None = None,
    exclude: Sequence[Sequence[str]] | None = None,
) -> list[Recalled]:
    """Up to `budget` items for each user, whatever the number of interests.

    Args:
        users: B of them, of any number of interests each.
        budget: items a user, 1 to 10,000.
        by: "score" takes the items of highest score over all interests; "quota" gives each
            interest its share by weight, "equal" the same to each active one. An item that
            several interests found is taken for the one that scores it highest; places that an
            interest cannot fill go to the best of what is left.
        where, exclude: as for `Index.search`; one list of ids a user.

    Raises:
        QueryError: as `Index.search`, or weights that are negative or of another number.
    """
    budget = whole(budget, "budget", 1, MAX_K)
    if by not in ("score", "quota", "equal"):
        raise QueryError(f"by is {by!r}, expected score, quota or equal")
    if not np.iterable(users):
        raise QueryError(f"users are {users!r}, expected a list of UserInterests")
    users = list(users)
    if exclude is not None and len(exclude) != len(users):
        raise QueryError(f"{len(exclude)} lists of excluded ids for {len(users)} users")
    owners: list[tuple[int, int]] = []  # user and interest of each query
    queries: list[np.ndarray] = []
    users = [_checked(user, f"user {number}", index.dim) for number, user in enumerate(users)]
    for number, user in enumerate(users):
        active = np.flatnonzero(user.weights > 0)
        owners += [(number, int(interest)) for interest in active]
        queries.append(user.vectors[active])
    vectors = np.concatenate([np.zeros((0, index.dim), np.float32), *queries])
    out = None if exclude is None else [exclude[number] for number, _ in owners]
    hits = index.search(vectors, budget, where=where, exclude=out)
    lists: list[dict[int, tuple[np.ndarray, np.ndarray]]] = [{} for _ in users]
    for place, (number, interest) in enumerate(owners):
        there = hits.rows[place] >= 0
        lists[number][interest] = hits.ids[place][there], hits.scores[place][there]
    return [
        _shared(found, _shares(user, budget, by), budget)
        for found, user in zip(lists, users, strict=True)
    ]


def _checked(user: UserInterests, name: str, dim: int) -> UserInterests:
    """As float arrays. Raises QueryError where they are not what `recall_interests` takes."""
    if not isinstance(user, UserInterests):
        raise QueryError(f"{name} is of type {type(user).__name__}, expected UserInterests")
    try:
        vectors, weights = as_floats(user.vectors), _weights(user.weights)
    except (TypeError, ValueError) as error:
        raise QueryError(f"{name}: {error}") from error
    if not vectors.ndim:
        raise QueryError(f"{name}: vectors of shape (), expected (K, {dim})")
    if len(vectors) != len(weights):
        raise QueryError(f"{name}: {len(vectors)} vectors and {len(weights)} weights")
    if len(vectors) and (vectors.ndim != 2 or vectors.shape[1] != dim):
        raise QueryError(f"{name}: vectors of shape {vectors.shape}, expected (K, {dim})")
    vectors = vectors.reshape(len(vectors), dim)
    active = np.flatnonzero(weights > 0)
    if (found := unfit(vectors[active])) is not None:
        raise QueryError(f"{name}: vector {active[found[0]]} has {found[1]}")
    return UserInterests(vectors, weights)


def _weights(weights: np.ndarray) -> np.ndarray:
    weights = np.asarray(weights, np.float64)
    if weights.ndim != 1:
        raise QueryError(f"weights have shape {weights.shape}, expected (K,)")
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise QueryError(f"weights are {weights.tolist()}, expected finite and not negative")
    return weights


def _shares(user: UserInterests, budget: int, by: str) -> np.ndarray:
    if by == "score":
        return np.zeros(len(user.weights), int)  # all places go to the best of what is left
    weights = user.weights if by == "quota" else (user.weights > 0).astype(float)
    return quotas(weights, budget)


def _shared(
    found: dict[int, tuple[np.ndarray, np.ndarray]], shares: np.ndarray, budget: int
) -> Recalled:
    """Each item for its best interest, the quotas first, the rest by score; best score first."""
    best: dict[str, tuple[float, int]] = {}
    for interest, (ids, scores) in found.items():
        for item_id, score in zip(ids.tolist(), scores.tolist(), strict=True):
            if item_id not in best or score > best[item_id][0]:
                best[item_id] = score, interest
    ranked = sorted(best.items(), key=lambda entry: (-entry[1][0], entry[1][1], entry[0]))
    left = shares.copy()
    taken, rest = [], []
    for entry in ranked:
        interest = entry[1][1]
        (taken if left[interest] > 0 else rest).append(entry)
        left[interest] -= 1
    taken = sorted(
        taken + rest[: budget - len(taken)], key=lambda entry: (-entry[1][0], entry[1][1], entry[0])
    )
    return Recalled(
        np.array([item_id for item_id, _ in taken], object),
        np.array([score for _, (score, _) in taken], np.float32),
        np.array([interest for _, (_, interest) in taken], np.int64),
    )
