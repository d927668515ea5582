"""MMR and DPP against plain loops; what they are for; what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import clustered

from rec.retrieval.diversity import dpp, mmr
from rec.retrieval.errors import QueryError

Choose = Callable[..., np.ndarray]


def plain_mmr(scores: np.ndarray, vectors: np.ndarray, k: int, trade_off: float) -> list[int]:
    taken: list[int] = []
    while len(taken) < min(k, len(scores)):
        best, best_value = -1, -np.inf
        for i in range(len(scores)):
            if i in taken:
                continue
            value = scores[i]
            if taken:
                closest = max(float(vectors[i] @ vectors[j]) for j in taken)
                value = trade_off * scores[i] - (1 - trade_off) * closest
            if value > best_value + 1e-12:
                best, best_value = i, value
        taken.append(best)
    return taken


def plain_dpp(scores: np.ndarray, vectors: np.ndarray, k: int, trade_off: float) -> list[int]:
    """Greedy over determinants of the kernel itself."""
    quality = np.exp(trade_off / (2 * (1 - trade_off)) * scores)
    kernel = quality[:, None] * (1 + vectors @ vectors.T) / 2 * quality
    taken: list[int] = []
    while len(taken) < min(k, len(scores)):
        values = {
            i: np.linalg.slogdet(kernel[np.ix_([*taken, i], [*taken, i])])[1]
            for i in range(len(scores))
            if i not in taken
        }
        taken.append(max(values, key=lambda i: values[i]))
    return taken


def candidates(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(seed).random(num), clustered(num, seed=seed).astype(float)


@given(
    st.integers(1, 30), st.integers(1, 12), st.sampled_from([0, 0.3, 0.7, 1]), st.integers(0, 99)
)
def test_mmr_against_a_plain_loop(num: int, k: int, trade_off: float, seed: int) -> None:
    scores, vectors = candidates(num, seed)
    assert mmr(scores, vectors, k, trade_off).tolist() == plain_mmr(scores, vectors, k, trade_off)


@given(st.integers(1, 30), st.integers(1, 12), st.sampled_from([0, 0.3, 0.7]), st.integers(0, 99))
def test_dpp_against_determinants(num: int, k: int, trade_off: float, seed: int) -> None:
    scores, vectors = candidates(num, seed)
    if trade_off == 0:  # the first is a tie among all
        scores[0] = 1
        trade_off = 0.01
    found = dpp(scores, vectors, k, trade_off)
    assert found.tolist() == plain_dpp(scores, vectors, k, trade_off)


def test_dpp_greedy_is_near_the_best_of_all_sets() -> None:
    """Greedy maximisation of log det is at least as good as most sets: compare with every one."""
    scores, vectors = candidates(10, 3)
    kernel = np.exp(scores)[:, None] ** 0.5 * (1 + vectors @ vectors.T) / 2 * np.exp(scores) ** 0.5
    values = [
        np.linalg.slogdet(kernel[np.ix_(chosen, chosen)])[1]
        for chosen in combinations(range(10), 4)
    ]
    greedy = dpp(scores, vectors, 4, 0.5)
    value = np.linalg.slogdet(kernel[np.ix_(greedy, greedy)])[1]
    assert value >= np.quantile(values, 0.95)


@pytest.mark.parametrize("choose", [mmr, dpp])
def test_repeats_are_passed_over_then_taken_by_score(choose: Choose) -> None:
    vectors = np.eye(4)[[0, 0, 0, 1, 2]]
    scores = np.array([0.9, 0.89, 0.88, 0.5, 0.4])
    assert choose(scores, vectors, 3, 0.5).tolist() == [0, 3, 4]
    assert choose(scores, vectors, 5, 0.5).tolist() == [0, 3, 4, 1, 2]
    assert choose(scores, vectors, 99, 0.5).tolist() == [0, 3, 4, 1, 2]


@pytest.mark.parametrize("choose", [mmr, dpp])
def test_more_difference_costs_score_and_lowers_likeness(choose: Choose) -> None:
    scores, vectors = candidates(200, 1)
    likeness, kept = [], []
    for trade_off in (0.05, 0.5, 0.95):
        chosen = choose(scores, vectors, 20, trade_off)
        assert len(set(chosen.tolist())) == 20
        between = vectors[chosen] @ vectors[chosen].T
        likeness.append((between.sum() - 20) / (20 * 19))
        kept.append(scores[chosen].mean())
    assert likeness == sorted(likeness)
    assert kept == sorted(kept)


@pytest.mark.parametrize("choose", [mmr, dpp])
def test_large_scores_do_not_overflow(choose: Choose) -> None:
    scores, vectors = candidates(30, 2)
    assert len(set(choose(scores * 1e5, vectors, 10, 0.9).tolist())) == 10


@pytest.mark.parametrize("choose", [mmr, dpp])
@pytest.mark.parametrize(
    ("scores", "k", "trade_off", "message"),
    [
        (np.ones(4), 2, 0.5, "expected"),
        (np.ones(3), 0, 0.5, "k is 0"),
        (np.ones(3), 2, 1.5, "trade_off is 1.5"),
        (np.array([1, np.nan, 1]), 2, 0.5, "NaN"),
    ],
)
def test_what_is_refused(
    choose: Choose, scores: np.ndarray, k: int, trade_off: float, message: str
) -> None:
    with pytest.raises(QueryError, match=message):
        choose(scores, np.eye(3), k, trade_off)


@pytest.mark.parametrize("sign", [-1, 1])
def test_scores_that_overflow_are_refused(sign: int) -> None:
    scores, vectors = sign * np.full(5, 1e308), clustered(5)
    assert len(set(mmr(scores, vectors, 3).tolist())) == 3
    with pytest.raises(QueryError, match=r"scores up to 1e\+308 overflow with trade_off 0\.7"):
        dpp(scores, vectors, 3)
    assert len(set(dpp(scores, vectors, 3, 0.5).tolist())) == 3


def test_nothing_to_choose_from() -> None:
    for choose in (mmr, dpp):
        with pytest.raises(QueryError, match=r"k is 2\.5, expected a whole number"):
            choose(np.ones(3), np.eye(3), 2.5)  # type: ignore[arg-type]
        assert choose(np.zeros(0), np.zeros((0, 4)), 3).tolist() == []
    with pytest.raises(QueryError, match="below 1"):
        dpp(np.ones(3), np.eye(3), 2, 1)
