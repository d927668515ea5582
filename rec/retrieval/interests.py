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
from rec.retrieval.queries import MAX_K


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
    """
    weights = np.asarray(weights, np.float64)
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise QueryError(f"weights are {weights.tolist()}, expected finite and not negative")
    if not weights.sum():
        return np.zeros(len(weights), int)
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
    if not 1 <= budget <= MAX_K:
        raise QueryError(f"budget is {budget}, expected 1 to {MAX_K}")
    if exclude is not None and len(exclude) != len(users):
        raise QueryError(f"{len(exclude)} lists of excluded ids for {len(users)} users")
    owners: list[tuple[int, int]] = []  # user and interest of each query
    queries: list[np.ndarray] = []
    for number, user in enumerate(users):
        if len(user.vectors) != len(user.weights):
            raise QueryError(
                f"user {number}: {len(user.vectors)} vectors and {len(user.weights)} weights"
            )
        for interest in np.flatnonzero(np.asarray(user.weights) > 0):
            owners.append((number, int(interest)))
            queries.append(user.vectors[interest])
    vectors = np.stack(queries) if queries else np.zeros((0, index.dim), np.float32)
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


def _shares(user: UserInterests, budget: int, by: str) -> np.ndarray:
    weights = np.asarray(user.weights, np.float64)
    whole = quotas(weights, budget)  # checks the weights in any case
    if by == "score":
        return np.zeros(len(weights), int)  # all places go to the best of what is left
    return whole if by == "quota" else quotas((weights > 0).astype(float), budget)


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
