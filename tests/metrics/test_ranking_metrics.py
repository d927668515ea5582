"""Ranking metrics against plain loops, and the rules that settle doubts against the model."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import rec.metrics.bootstrap
import rec.metrics.ranking
import rec.metrics.ranks
from rec.metrics.ranking import average_precision, first_rank, hit_rate, mrr, ndcg, recall
from rec.metrics.ranks import joined, only_columns, rank_in_chunks, rank_lists, rank_targets

K = 3


def plain_order(scores: list[float], relevant: list[bool], keep: list[bool]) -> list[bool]:
    """Relevance of the candidates in the worst order that the scores allow, NaN hits left out."""
    rows = [(s, r) for s, r, k in zip(scores, relevant, keep, strict=True) if k]
    if not rows or (len({s for s, _ in rows}) == 1 and not math.isnan(rows[0][0])):
        return [False] * len(rows)
    wrong_nan = [False for s, r in rows if math.isnan(s) and not r]
    numbers = [(s, r) for s, r in rows if not math.isnan(s)]
    return wrong_nan + [r for _, r in sorted(numbers, key=lambda row: (-row[0], row[1]))]


def plain_metrics(order: list[bool], num_relevant: int) -> dict[str, float]:
    hits = [i + 1 for i, r in enumerate(order) if r]
    ideal = sum(1 / math.log2(1 + i) for i in range(1, min(K, num_relevant) + 1))
    return {
        "hit": float(any(h <= K for h in hits)),
        "recall": sum(h <= K for h in hits) / num_relevant,
        "ndcg": sum(1 / math.log2(1 + h) for h in hits if h <= K) / ideal,
        "mrr": 1 / hits[0] if hits and hits[0] <= K else 0.0,
        "ap": sum((j + 1) / h for j, h in enumerate(hits)) / num_relevant,
        "first": float(hits[0]) if hits else math.inf,
    }


def all_metrics(ranks: rec.metrics.ranks.TargetRanks) -> dict[str, np.ndarray]:
    return {
        "hit": hit_rate(ranks, K),
        "recall": recall(ranks, K),
        "ndcg": ndcg(ranks, K),
        "mrr": mrr(ranks, K),
        "ap": average_precision(ranks),
        "first": first_rank(ranks),
    }


@st.composite
def problems(draw: st.DrawFn):
    num_queries, num_items = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    cells = num_queries * num_items
    values = st.sampled_from([math.nan, -math.inf, math.inf, 0.0, 0.25, 0.5, 1.0, 2.0])
    shape = (num_queries, num_items)
    scores = np.array(draw(st.lists(values, min_size=cells, max_size=cells))).reshape(shape)
    bits = st.lists(st.booleans(), min_size=cells, max_size=cells)
    relevant, keep = (np.array(draw(bits)).reshape(shape) for _ in range(2))
    absent = np.array(draw(st.lists(st.integers(0, 2), min_size=num_queries, max_size=num_queries)))
    return scores, relevant, keep, np.maximum(relevant.sum(1) + absent, 1)


@pytest.mark.parametrize("max_counted", [0, 32])  # by sorting each query's scores, and without
@settings(max_examples=200)
@given(problem=problems())
def test_every_metric_equals_its_plain_loop(max_counted: int, problem) -> None:
    scores, relevant, keep, total = problem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rec.metrics.ranks, "_MAX_COUNTED", max_counted)
        found = all_metrics(rank_targets(scores, relevant, keep, total))
    for q in range(len(scores)):
        order = plain_order(scores[q].tolist(), relevant[q].tolist(), keep[q].tolist())
        for name, expected in plain_metrics(order, int(total[q])).items():
            assert found[name][q] == pytest.approx(expected), name


@settings(max_examples=100, deadline=None)
@given(problems(), st.randoms(use_true_random=False))
def test_the_order_of_candidates_does_not_matter(problem, random) -> None:
    scores, relevant, keep, total = problem
    columns = list(range(scores.shape[1]))
    random.shuffle(columns)
    one = all_metrics(rank_targets(scores, relevant, keep, total))
    two = all_metrics(
        rank_targets(scores[:, columns], relevant[:, columns], keep[:, columns], total)
    )
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])


@settings(max_examples=100, deadline=None)
@given(problems(), st.integers(1, 20))
def test_chunks_change_nothing(problem, chunk_scores: int) -> None:
    scores, relevant, keep, total = problem
    whole = all_metrics(rank_targets(scores, relevant, keep, total))
    ranks = rank_in_chunks(
        lambda start, stop: scores[start:stop],
        sparse.csr_array(relevant),
        excluded=sparse.csr_array(~keep),
        num_relevant=total,
        chunk_scores=chunk_scores,
    )
    for name, values in all_metrics(ranks).items():
        np.testing.assert_array_equal(values, whole[name])
    halves = [
        rank_targets(scores[part], relevant[part], keep[part], total[part])
        for part in (slice(0, 1), slice(1, None))
    ]
    for name, values in all_metrics(joined(halves)).items():
        np.testing.assert_array_equal(values, whole[name])


@settings(max_examples=100)
@given(problems())
def test_masks_of_columns_and_of_cells_are_one(problem) -> None:
    scores, relevant, keep, total = problem
    never = np.arange(scores.shape[1]) % 2 == 0
    one = rank_targets(scores, relevant, keep & ~never, total)
    two = rank_in_chunks(
        lambda start, stop: scores[start:stop],
        sparse.csr_array(relevant),
        excluded=sparse.csr_array(~keep),
        candidate_mask=~never,
        num_relevant=total,
    )
    np.testing.assert_array_equal(one.rank, two.rank)
    np.testing.assert_array_equal(one.column_index, two.column_index)


@settings(max_examples=100)
@given(problems())
def test_a_slice_keeps_the_places_of_its_items(problem) -> None:
    scores, relevant, keep, _ = problem
    relevant[:, 0] |= ~relevant.any(axis=1)
    ranks = rank_targets(scores, relevant, keep)
    odd = np.arange(scores.shape[1]) % 2 == 1
    queries, part = only_columns(ranks, sparse.csr_array(relevant), odd)
    assert queries.tolist() == [q for q in range(len(scores)) if relevant[q, odd].any()]
    expected = {
        (int(q), int(c)): r
        for q, c, r in zip(ranks.query_index, ranks.column_index, ranks.rank, strict=True)
        if odd[c]
    }
    found = zip(queries[part.query_index], part.column_index, part.rank, strict=True)
    assert {(int(q), int(c)): r for q, c, r in found} == expected
    assert part.num_relevant.tolist() == [int(relevant[q, odd].sum()) for q in queries]


def test_ready_lists_rank_by_place_and_lose_ties() -> None:
    relevant = sparse.csr_array(np.array([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0], [1, 1, 0, 0]]))
    lists = np.array([[3, 2, 0], [0, 2, -1], [2, 1, -1], [0, 3, 1]])
    scores = np.array([[4.0, 3.0, 2.0], [5.0, 4.0, 9.0], [1.0, 0.0, 9.0], [2.0, 2.0, 1.0]])
    ranks = rank_lists(lists, scores, relevant)
    assert ranks.query_index.tolist() == [0, 0, 2, 3, 3]
    assert ranks.column_index.tolist() == [3, 0, 2, 0, 1]
    assert ranks.rank.tolist() == [1, 3, 1, 2, 3]
    assert hit_rate(ranks, 10).tolist() == [1, 0, 1, 1]
    exact = rank_targets(np.array([[2.0, 1.0, 3.0, 4.0]]), np.array([[True, False, False, True]]))
    assert recall(rank_lists(lists[:1], scores[:1], relevant[:1]), 2) == recall(exact, 2)


@settings(max_examples=200)
@given(problems(), st.integers(1, 9), st.integers(0, 9))
def test_a_list_ranks_as_if_its_items_were_all(problem, width: int, left: int) -> None:
    scores, relevant, _, _ = problem
    order = np.argsort(-scores, axis=1, kind="stable")[:, :width]
    lists = np.where(np.arange(order.shape[1]) < left, order, -1)
    relevant[:, 0] |= ~relevant.any(axis=1)
    listed = np.zeros_like(relevant)
    np.put_along_axis(listed, order[:, :left], True, axis=1)
    own = np.take_along_axis(scores, order, axis=1)
    found = all_metrics(rank_lists(lists, own, sparse.csr_array(relevant)))
    whole = all_metrics(rank_targets(scores, relevant, listed))
    for name, values in found.items():
        np.testing.assert_array_equal(values, whole[name])


@pytest.mark.parametrize("value", [0.0, 1.0, math.nan, math.inf, -math.inf])
def test_constant_and_nan_scorers_score_zero(value: float) -> None:
    scores = np.full((5, 4), value)  # fewer candidates than k: any order would be a hit
    ranks = rank_targets(scores, np.eye(5, 4, dtype=bool), num_relevant=np.ones(5, int))
    for name in ("hit", "recall", "ndcg", "mrr", "ap"):
        assert all_metrics(ranks)[name].max() == 0, name
    assert hit_rate(ranks, 100).max() == 0


def test_a_tie_is_lost_and_a_nan_beside_the_target_outranks_it() -> None:
    relevant = np.array([[True, False, False]])
    assert first_rank(rank_targets(np.array([[1.0, 1.0, 0.0]]), relevant)) == 2
    assert first_rank(rank_targets(np.array([[1.0, math.nan, 0.0]]), relevant)) == 2
    assert first_rank(rank_targets(np.array([[math.nan, 1.0, 0.0]]), relevant)) == math.inf


def test_absent_targets_stay_in_the_denominator() -> None:
    scores, relevant = np.array([[2.0, 1.0, 0.0]]), np.array([[True, True, False]])
    assert recall(rank_targets(scores, relevant, num_relevant=np.array([4])), 10) == 0.5
    masked = rank_targets(scores, relevant, np.array([True, False, True]))
    assert recall(masked, 10) == 0.5
    assert average_precision(masked) == 0.5


def test_a_query_without_relevant_items_is_refused_by_its_number() -> None:
    with pytest.raises(ValueError, match="query 1: num_relevant 0"):
        rank_targets(np.zeros((2, 2)), np.array([[True, False], [False, False]]))


def test_the_examples_in_the_docstrings_run() -> None:
    for module in (rec.metrics.ranking, rec.metrics.bootstrap):
        result = doctest.testmod(module)
        assert result.attempted > 0
        assert result.failed == 0
