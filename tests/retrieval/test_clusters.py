"""k-means over parts equals k-means over all; recall from clusters against a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
from tables import DIM, clustered

from rec.retrieval.clusters import (
    ClusterRecall,
    Round,
    Sums,
    add_up,
    first_centres,
    kmeans,
    nearest,
    update,
)
from rec.retrieval.errors import QueryError
from rec.retrieval.interests import quotas


def share(work: Round) -> Sums:
    return add_up(np.array_split(work.part, 3), work.centres)


def plain_kmeans(vectors: np.ndarray, centres: np.ndarray, rounds: int) -> np.ndarray:
    for _ in range(rounds):
        members: list[list[np.ndarray]] = [[] for _ in centres]
        for vector in vectors:
            members[max(range(len(centres)), key=lambda c: float(vector @ centres[c]))].append(
                vector
            )
        assert all(members)
        means = np.array([np.sum(own, axis=0) for own in members])
        centres = means / np.linalg.norm(means, axis=1, keepdims=True)
    return centres


def test_parts_give_what_a_plain_loop_over_all_gives() -> None:
    vectors = clustered(500)
    start = first_centres(vectors, 8, seed=0)
    expected = plain_kmeans(vectors, start, 4)
    for num_parts in (1, 5):
        parts = np.array_split(vectors, num_parts)
        centres, history = kmeans(parts, share, start, rounds=4, tolerance=0)
        np.testing.assert_allclose(centres, expected, atol=1e-5)
        assert len(history) == 4
        assert (np.diff(history) > 0).all()


def test_finds_planted_clusters_and_stops() -> None:
    rng = np.random.default_rng(0)
    planted = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0][:6]
    labels = rng.integers(0, 6, 900)
    vectors = planted[labels] + 0.05 * rng.standard_normal((900, DIM))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype("f4")
    centres, history = kmeans([vectors], share, first_centres(vectors, 6, seed=1), rounds=50)
    assert len(history) < 10
    clusters, similarity = nearest(vectors, centres)
    assert all(len(set(clusters[labels == label])) == 1 for label in range(6))
    assert len(set(clusters)) == 6
    assert similarity.min() > 0.9


def test_empty_clusters_are_filled_from_the_largest() -> None:
    vectors = clustered(400)
    centres = np.repeat(vectors[:1], 5, axis=0)  # all vectors go to the first
    assert (add_up([vectors], centres).counts > 0).sum() == 1
    found, _ = kmeans([vectors], share, centres, rounds=30, tolerance=0)
    assert (add_up([vectors], found).counts > 0).all()
    sums = add_up([vectors], centres)
    np.testing.assert_array_equal(update(centres, sums, 3), update(centres, sums, 3))


def test_starting_centres() -> None:
    same = np.repeat(clustered(2), 10, axis=0)
    assert first_centres(same, 5, seed=0).shape == (5, DIM)
    assert len(np.unique(first_centres(same, 2, seed=0), axis=0)) == 2
    with pytest.raises(ValueError, match="5 clusters from a sample of 4 vectors"):
        first_centres(clustered(4), 5, seed=0)
    with pytest.raises(ValueError, match="no vectors"):
        kmeans([clustered(0)], share, clustered(3))


def test_recall_from_clusters_against_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    ids = [f"i{n}" for n in range(80)]
    clusters, scores = rng.integers(0, 6, 80), rng.permutation(80)
    recall = ClusterRecall(ids, clusters, scores)
    for _ in range(50):
        history = [f"i{n}" for n in rng.integers(0, 90, rng.integers(1, 12))]  # some unknown
        budget = int(rng.integers(1, 40))
        counts = [
            sum(1 for i in history if i in ids and clusters[ids.index(i)] == c) for c in range(6)
        ]
        shares = quotas(np.array(counts), budget)
        first, rest = [], []
        for c in sorted(range(6), key=lambda c: -counts[c]):
            if not counts[c]:
                continue
            members = [i for i in ids if clusters[ids.index(i)] == c and i not in history]
            members.sort(key=lambda i: -scores[ids.index(i)])
            first += members[: shares[c]]
            rest += members[shares[c] :]
        expected = first + rest[: budget - len(first)]
        assert recall.recall(history, budget).tolist() == expected


def test_recall_of_nobody_and_what_is_refused() -> None:
    recall = ClusterRecall(["a", "b"], np.array([0, 1]), np.zeros(2))
    assert recall.recall([], 3).tolist() == []
    assert recall.recall(["unknown"], 3).tolist() == []
    assert recall.recall(["a"], 3).tolist() == []  # its cluster holds nothing else
    with pytest.raises(QueryError, match="budget is 0"):
        recall.recall(["a"], 0)
    with pytest.raises(ValueError, match=r"2 ids, clusters of shape \(1,\)"):
        ClusterRecall(["a", "b"], np.array([0]), np.zeros(2))
    with pytest.raises(ValueError, match="NaN"):
        ClusterRecall(["a"], np.array([0]), np.array([np.nan]))
    with pytest.raises(ValueError, match="1 ids are there more than once"):
        ClusterRecall(["a", "b", "a"], np.array([0, 1, 1]), np.zeros(3))
