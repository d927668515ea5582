"""The tuner: least effort that reaches the recall asked, on queries that are a sample."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rec.retrieval.effort import Effort
from rec.retrieval.fill import Filled
from rec.retrieval.measure import exchange_ties
from rec.retrieval.tune import Tuner, hits

_TARGET, _LISTS = 0.95, 512


def _tuned(seed: int, num_queries: int) -> float:
    """True recall of the effort chosen where a true row lies in a list whose rank, by the
    query, is geometric: easy queries and hard ones, so that a query's hits are not independent."""
    rng = np.random.default_rng(seed)
    means = rng.gamma(2.0, 10.0, num_queries)[:, None]
    ranks = rng.geometric(1 / (1 + means), (num_queries, 10))
    truth = np.arange(num_queries * 10).reshape(-1, 10)
    tuner = Tuner(lambda effort: np.where(ranks <= effort.nprobe, truth, -1), truth, _TARGET)
    return _recall(tuner.lists(_LISTS, refines=False))


def _recall(effort: Effort) -> float:
    means = np.random.default_rng(0).gamma(2.0, 10.0, 200_000)
    return float(1 - np.mean((1 - 1 / (1 + means)) ** effort.nprobe))


def test_recall_asked_is_reached_on_queries_that_were_not_tuned_with() -> None:
    reached = [_tuned(seed, 500) for seed in range(200)]
    assert np.mean(np.asarray(reached) >= _TARGET) >= 0.95
    # and not by far more effort than it takes
    assert np.median(reached) < _TARGET + 0.02


def test_curve_rises_and_the_chosen_point_is_the_least_that_reaches() -> None:
    ranks = np.tile(np.arange(1, 11), (50, 1))  # the n-th true row lies in the n-th list
    truth = np.arange(500).reshape(50, 10)
    tuner = Tuner(lambda effort: np.where(ranks <= effort.nprobe, truth, -1), truth, 0.75)
    assert tuner.lists(64, refines=False).nprobe == 8
    assert {point["nprobe"]: point["recall@10"] for point in tuner.curve}[8] == pytest.approx(0.8)


def test_more_hits_take_more_lists() -> None:
    """The n-th of a hundred true rows lies in list n // 5: four in five of ten take two lists."""
    ranks = np.tile(np.arange(100) // 5 + 1, (50, 1))
    truth = np.arange(5000).reshape(50, 100)

    def tuner(k: int) -> Tuner:
        found = truth[:, :k], ranks[:, :k]
        return Tuner(lambda e: np.where(found[1] <= e.nprobe, found[0], -1), found[0], 0.75, k)

    effort = tuner(10).lists(64, refines=False)
    wider = tuner(100)
    effort = effort._replace(nprobe_100=wider.more_lists(64, effort))
    assert (effort.nprobe, effort.nprobe_100) == (2, 15)
    assert {point["nprobe"]: point["recall@100"] for point in wider.curve}[15] == 0.75
    assert [effort.at(k).nprobe for k in (1, 10, 16, 100)] == [2, 2, 2, 15]
    grown = [effort.at(k).nprobe for k in range(17, 10_000, 7)]
    assert grown == sorted(grown)
    assert grown[0] > 2
    assert effort._replace(nprobe_100=0).at(1000).nprobe == 2  # of versions of before


def test_where_no_number_of_lists_reaches_it_as_many_as_help_are_taken() -> None:
    truth = np.arange(5000).reshape(50, 100)
    ranks = np.where(np.arange(100) < 50, np.arange(100) + 1, 1000)  # codes too coarse for half
    tuner = Tuner(lambda e: np.where(ranks <= e.nprobe, truth, -1), truth, 0.75, 100)
    assert tuner.more_lists(512, Effort(nprobe=4)) == 64


def test_what_older_versions_kept_by_another_measure_counts_for_nothing() -> None:
    text = '{"nprobe": 3, "k_factor": 2, "ef": 64, "margin": 0.2}'
    assert Effort.from_json(text) == Effort(nprobe=3, k_factor=2, ef=64, rise=0.0)


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 2**32 - 1))
def test_any_of_equal_items_counts_as_a_hit(seed: int) -> None:
    """Against a loop: a hit is a row of the true ones, or one that scores as the last of them, as
    long as one of those is missing."""
    rng = np.random.default_rng(seed)
    k, num_rows = int(rng.integers(1, 6)), 12
    scores = rng.integers(0, 4, (3, num_rows)).astype(np.float32)
    order = np.argsort(-scores + rng.random(scores.shape) * 0.1, axis=1)[:, :k]
    true = Filled(order.copy(), np.take_along_axis(scores, order, axis=1))
    rows = np.stack([rng.permutation(num_rows)[:k] for _ in range(3)])
    found = Filled(rows, np.take_along_axis(scores, rows, axis=1))
    if k > 1:  # one thing less to find, one less found
        true.rows[0, -1] = found.rows[1, 0] = -1
    expected = []
    for query in range(3):
        wanted = [row for row in true.rows[query] if row >= 0]
        last = min(scores[query, wanted])
        mine = [row for row in found.rows[query] if row >= 0]
        missing = [r for r in wanted if r not in mine and scores[query, r] == last]
        spare = [r for r in mine if r not in wanted and scores[query, r] == last]
        num_hits = sum(r in wanted for r in mine) + min(len(missing), len(spare))
        expected.append(num_hits / len(wanted))
    assert hits(exchange_ties(found, true), true.rows).tolist() == pytest.approx(expected)
