"""Why an item is recommended: for which of a user's interests, near to which of their items.

It tells what lies near in the model's own vectors; it does not tell what the model would have
recommended without those items.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rec.retrieval.interests import Recalled, UserInterests


class Interest(NamedTuple):
    weight: float  # above 0
    item_ids: list[str]  # of the history, those that score highest for it, the best first
    scores: list[float]


class Reason(NamedTuple):
    interest: int  # which of `Reasons.interests` the item was found for
    item_ids: list[str]  # of the history, the nearest first
    similarities: list[float]  # cosine of the two items' vectors


class Reasons(NamedTuple):
    interests: list[Interest]
    items: list[Reason]  # one a recommended item


def explain(
    user: UserInterests,
    found: Recalled,
    found_vectors: np.ndarray,
    history: list[str],
    history_vectors: np.ndarray,
    most: int,
) -> Reasons:
    """Reasons for what was recalled.

    Args:
        user: (K, D) and (K,); an interest of weight 0 is none.
        found: n items.
        found_vectors: (n, D) theirs.
        history: ids of h items, each once.
        history_vectors: (h, D) theirs.
        most: items of the history told with each interest and each item, at least 1.
    """
    active = np.flatnonzero(np.asarray(user.weights) > 0)
    scores = user.vectors[active] @ history_vectors.T
    near = unit_rows(found_vectors) @ unit_rows(history_vectors).T
    place = {int(interest): number for number, interest in enumerate(active)}
    interests = [
        Interest(float(user.weights[interest]), *_best(history, row, most))
        for interest, row in zip(active, scores, strict=True)
    ]
    items = [
        Reason(place[int(interest)], *_best(history, row, most))
        for interest, row in zip(found.interests, near, strict=True)
    ]
    return Reasons(interests, items)


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1; one of zeros, of which nothing is known, stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def _best(ids: list[str], scores: np.ndarray, most: int) -> tuple[list[str], list[float]]:
    order = np.argsort(-scores, kind="stable")[:most]
    return [ids[i] for i in order], scores[order].tolist()
