"""Content figures against plain loops and on data whose answers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from rec.metrics.content import co_liked, cross_modal_ranks, item_to_item_ranks
from rec.metrics.labels import (
    LabelTransfer,
    evaluate_labels,
    label_map,
    label_problem,
    label_recall,
    transfer_labels,
)
from rec.metrics.ranking import first_rank, recall
from rec.metrics.vectors import nearest, similarity, unit_rows


def random_rows(seed: int, rows: int, dim: int) -> np.ndarray:
    return unit_rows(np.random.default_rng(seed).normal(size=(rows, dim)))


def clusters(num_items: int, seed: int = 0) -> tuple[np.ndarray, list[list[str]]]:
    """Vectors near one of four centres, and labels that name the centre."""
    generator = np.random.default_rng(seed)
    centre = generator.integers(4, size=num_items)
    vectors = np.eye(4, 8)[centre] + 0.2 * generator.normal(size=(num_items, 8))
    return unit_rows(vectors), [[f"topic{c}", "all"] for c in centre]


def test_nearest_is_the_sorted_row_in_chunks_dense_and_sparse(monkeypatch) -> None:
    queries, items = random_rows(0, 7, 5), random_rows(1, 30, 5)
    expected = np.argsort(-queries @ items.T, axis=1)[:, :4]
    monkeypatch.setattr("rec.metrics.vectors._CHUNK_SCORES", 65)
    for kind in (np.asarray, sparse.csr_array):
        found = nearest(kind(queries), kind(items), 4)
        np.testing.assert_array_equal(found.rows, expected)
        np.testing.assert_allclose(
            found.similarity, np.take_along_axis(queries @ items.T, expected, 1), rtol=1e-5
        )
    assert nearest(queries, items, 99).rows.shape == (7, 30)


def test_unit_rows_keep_zeros_and_agree_dense_and_sparse() -> None:
    rows = np.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(unit_rows(rows), [[0.6, 0.8], [0, 0]])
    np.testing.assert_allclose(unit_rows(sparse.csr_array(rows)).toarray(), [[0.6, 0.8], [0, 0]])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 6), st.sampled_from([0.0, 3.0, 20.0]))
def test_votes_equal_the_plain_loop(seed: int, k: int, sharpness: float) -> None:
    queries, items = random_rows(seed, 4, 3), random_rows(seed + 1, 9, 3)
    labels = (np.random.default_rng(seed).random((9, 5)) < 0.4).astype(float)
    near = nearest(queries, items, 6)
    votes = transfer_labels(near, sparse.csr_array(labels), LabelTransfer(k, sharpness))
    for q in range(4):
        cosines = [float(queries[q] @ items[i]) for i in range(9)]
        best = sorted(range(9), key=lambda i: -cosines[i])[:k]
        total = sum(math.exp(sharpness * cosines[i]) for i in best)
        for label in range(5):
            share = sum(math.exp(sharpness * cosines[i]) * labels[i, label] for i in best) / total
            assert votes.toarray()[q, label] == pytest.approx(share, abs=1e-6)


def test_label_figures_by_hand() -> None:
    train = [["a", "b"], ["a"], ["b"], ["c"]]
    queries = [["a"], ["a", "new"], ["c"], [], ["b"]]
    problem = label_problem(train + queries, num_train=4)
    assert problem.query_rows.tolist() == [4, 5, 6, 8]  # the item without labels asks nothing
    #                      a    b    c   new
    votes = np.array([[0.9, 0.1, 0.0, 0.0], [0.2, 0.8, 0.0, 0.0], [0.5, 0, 0, 0], [0.1, 0, 0, 0]])
    matrix = sparse.csr_array(votes)
    # only "a" has two positives, at ranks 1 and 3 of (.9, .5, .2, .1)
    assert label_map(matrix, problem, min_positives=2).tolist() == [(1 / 1 + 2 / 3) / 2]
    # best label: a (right), b (wrong), a (wrong: c), a (wrong: b); "new" stays in the denominator
    assert label_recall(matrix, problem, k=1).tolist() == [1, 0, 0, 0]
    assert label_recall(matrix, problem, k=10).tolist() == [1, 0.5, 1, 1]


def test_the_label_prior_has_no_map_but_recalls_the_commonest() -> None:
    problem = label_problem([["a"], ["a"], ["b"], ["c"], ["a"], ["a", "b"]], num_train=4)
    nothing = sparse.csr_array(problem.query_labels.shape)
    assert label_map(nothing, problem, min_positives=1).max() == 0
    assert label_recall(nothing, problem, k=1).tolist() == [1, 0.5]


def test_structure_is_found_noise_is_not_and_tuning_picks_the_better_variant() -> None:
    vectors, labels = clusters(400)
    problem = label_problem(labels, num_train=300)
    noise = random_rows(3, 400, 8)
    good, tuned = evaluate_labels([noise, vectors], problem)
    bad, _ = evaluate_labels([noise], problem)
    assert tuned.variant == 1
    assert good["mAP"].mean() > 0.75
    assert bad["mAP"].mean() < 0.5
    # "all" is on every item, so every item gets the same votes for it: nothing was ranked
    assert good["mAP"].min() == 0


def test_tuning_never_reads_the_queries() -> None:
    vectors, labels = clusters(300)
    problem = label_problem(labels, num_train=200)
    _, tuned = evaluate_labels([vectors], problem)
    shuffled = vectors.copy()
    shuffled[200:] = random_rows(9, 100, 8)
    _, again = evaluate_labels([shuffled], problem)
    assert tuned == again
    inner = problem.validation()
    assert inner.train_rows.max() < inner.query_rows.min()
    assert inner.query_rows.max() < 200


def test_a_problem_without_labels_on_one_side_is_refused() -> None:
    with pytest.raises(ValueError, match="0 queries have labels"):
        label_problem([["a"], ["b"], []], num_train=2)


def test_cross_modal_finds_its_own_and_loses_duplicates() -> None:
    rows = random_rows(0, 6, 4)
    np.testing.assert_array_equal(first_rank(cross_modal_ranks(rows, rows)), np.ones(6))
    twins = rows.copy()
    twins[1] = twins[0]
    assert first_rank(cross_modal_ranks(twins, twins))[:2].tolist() == [2, 2]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
def test_co_liked_equals_the_plain_loop(seed: int, top: int, least: int, common: int) -> None:
    likes = np.random.default_rng(seed).random((12, 7)) < 0.4
    users = [set(np.flatnonzero(likes[:, i])) for i in range(7)]
    queries = np.arange(3, 7)
    truth = co_liked(
        sparse.csr_array(likes.astype(float)),
        queries,
        num_relevant=top,
        min_likes=least,
        min_common=common,
    )
    expected: dict[int, set[int]] = {}
    for q in queries:
        both = {
            i: len(users[q] & users[i]) / math.sqrt(len(users[q]) * len(users[i]))
            for i in range(7)
            if i != q and len(users[i]) >= least and len(users[q] & users[i]) >= common
        }
        if len(users[q]) >= least and both:
            expected[int(q)] = set(sorted(both, key=lambda i: (-both[i], i))[:top])
    found = {
        int(q): set(np.flatnonzero(truth.relevant[[i]].toarray().ravel()).tolist())
        for i, q in enumerate(truth.query_rows)
    }
    assert found == expected


def test_an_item_is_never_its_own_neighbour() -> None:
    likes = sparse.csr_array(np.ones((12, 3)))
    truth = co_liked(likes, np.array([2]), num_relevant=1)
    vectors = np.array([[1.0, 0.0], [0.8, 0.6], [1.0, 0.0]])
    ranks = item_to_item_ranks(
        lambda a, b: similarity(vectors[truth.query_rows[a:b]], vectors), truth
    )
    assert recall(ranks, 1).tolist() == [1.0]
