"""Intervals: bootstrap over queries, paired where two methods answered the same queries, and
Student's t over seeds.

>>> hits = np.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0])
>>> interval = bootstrap_interval(hits)
>>> interval.value, interval.low < 0.625 < interval.high
(0.625, True)
>>> over_seeds([0.30, 0.32, 0.31]).value
0.31
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.floating]
_CHUNK = 1 << 22  # resampled values held at a time


class Interval(NamedTuple):
    """A figure with the ends of its interval; the ends are NaN where none can be given."""

    value: float
    low: float
    high: float


def bootstrap_interval(
    values: Floats,
    *,
    statistic: Literal["mean", "median"] = "mean",
    num_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap (Efron, 1979) over queries.

    Args:
        values: (Q,) one value a query. The same seed draws the same queries for every method.
        statistic: what is taken of the values and of each resample.

    Raises:
        ValueError: no values.
    """
    if len(values) == 0:
        raise ValueError("no queries: nothing to take an interval of")
    take = np.mean if statistic == "mean" else np.median
    generator = np.random.default_rng(seed)
    step = max(1, _CHUNK // len(values))
    means: list[Floats] = []
    for start in range(0, num_resamples, step):
        size = (min(step, num_resamples - start), len(values))
        means.append(take(values[generator.integers(len(values), size=size)], axis=1))
    # "inverted_cdf" takes values that occurred: infinite ranks would make interpolation NaN
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail], method="inverted_cdf")
    return Interval(float(take(values)), float(low), float(high))


def bootstrap_means(
    values: Floats, *, num_resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> list[Interval]:
    """`bootstrap_interval` of the mean of each column, from one set of resamples for all: what a
    resample gives is a product of counts and values.

    Args:
        values: (Q, M), one row a query.

    Raises:
        ValueError: no queries.
    """
    if len(values) == 0:
        raise ValueError("no queries: nothing to take an interval of")
    num_queries = len(values)
    generator = np.random.default_rng(seed)
    step = max(1, _CHUNK // num_queries)
    means: list[Floats] = []
    for start in range(0, num_resamples, step):
        size = (min(step, num_resamples - start), num_queries)
        drawn = generator.integers(num_queries, size=size)
        counts = np.stack([np.bincount(row, minlength=num_queries) for row in drawn])
        means.append(counts.astype(values.dtype) @ values / num_queries)
    tail = (1 - level) / 2
    ends = np.quantile(np.concatenate(means), [tail, 1 - tail], axis=0, method="inverted_cdf")
    return [
        Interval(float(mean), float(low), float(high))
        for mean, low, high in zip(values.mean(axis=0), *ends, strict=True)
    ]


def paired_difference(
    ours: Floats, theirs: Floats, *, num_resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Interval of mean(ours - theirs) over queries that both answered, in the same order.

    An interval that leaves out 0 says that the difference is not an accident of the queries;
    it says nothing of other seeds.
    """
    if ours.shape != theirs.shape:
        raise ValueError(f"not paired: {ours.shape} and {theirs.shape} values")
    return bootstrap_interval(ours - theirs, num_resamples=num_resamples, level=level, seed=seed)


def over_seeds(values: Sequence[float], *, level: float = 0.95) -> Interval:
    """Mean over runs that differ in their seed only, with Student's t interval.

    With one run there is no interval: its ends are NaN.
    """
    if not values:
        raise ValueError("no runs: nothing to take a mean of")
    mean = float(np.mean(values))
    if len(values) == 1:
        return Interval(mean, float("nan"), float("nan"))
    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1) * stats.sem(values))
    return Interval(mean, mean - half, mean + half)
