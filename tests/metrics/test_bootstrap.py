"""Intervals: they cover what they should, pair what is paired, and refuse what is not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rec.metrics.bootstrap import (
    bootstrap_interval,
    bootstrap_means,
    over_seeds,
    paired_difference,
)


def test_the_bootstrap_covers_the_true_mean_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        values = generator.exponential(1.0, size=80)
        interval = bootstrap_interval(values, num_resamples=300, seed=trial)
        covered += interval.low <= 1.0 <= interval.high
    assert 0.88 <= covered / 200 <= 0.98


def test_chunks_of_resamples_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).random(50)
    whole = bootstrap_interval(values, num_resamples=100)
    monkeypatch.setattr("rec.metrics.bootstrap._CHUNK", 70)
    assert bootstrap_interval(values, num_resamples=100) == whole


@pytest.mark.parametrize("chunk", [70, 1 << 22])
def test_columns_together_are_as_each_alone(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rec.metrics.bootstrap._CHUNK", chunk)
    values = np.random.default_rng(3).random((50, 3))
    together = bootstrap_means(values, num_resamples=100, seed=4)
    for column, found in enumerate(together):
        alone = bootstrap_interval(values[:, column], num_resamples=100, seed=4)
        assert found == pytest.approx(alone)
    with pytest.raises(ValueError, match="no queries"):
        bootstrap_means(values[:0])


def test_pairing_sees_a_small_steady_gain_that_separate_intervals_hide() -> None:
    theirs = np.random.default_rng(2).random(100)
    ours = theirs + 0.01
    a, b = bootstrap_interval(ours), bootstrap_interval(theirs)
    assert a.low < b.high
    gain = paired_difference(ours, theirs)
    assert gain.low > 0
    assert gain.value == pytest.approx(0.01)
    with pytest.raises(ValueError, match="not paired"):
        paired_difference(ours, theirs[:50])


def test_a_median_of_infinite_ranks_has_an_interval() -> None:
    ranks = np.array([1.0, 2.0, 3.0, math.inf, math.inf])
    interval = bootstrap_interval(ranks, statistic="median")
    assert interval.value == 3
    assert interval.low >= 1
    assert interval.high == math.inf


def test_over_seeds_is_the_t_interval_of_the_textbook() -> None:
    interval = over_seeds([1.0, 2.0, 3.0])  # t(.975, 2) = 4.3027, standard error 1 / sqrt(3)
    assert interval.value == 2
    assert interval.high - 2 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert math.isnan(over_seeds([0.5]).low)
