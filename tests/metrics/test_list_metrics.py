"""What lists show, against plain loops."""

from __future__ import annotations

import doctest
import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import rec.metrics.coverage
import rec.metrics.diversity
from rec.metrics.coverage import coverage, exposures, share_of, tail_mask, unique_items
from rec.metrics.diversity import category_entropy, category_shares, intra_list_diversity
from rec.metrics.lists import top_lists
from rec.metrics.vectors import unit_rows

NUM_ITEMS = 7


@st.composite
def lists_of_items(draw: st.DrawFn) -> np.ndarray:
    width = draw(st.integers(1, 5))
    items = st.permutations(range(NUM_ITEMS)).map(lambda order: order[:width])
    rows = draw(st.lists(st.tuples(items, st.integers(0, width)), min_size=1, max_size=4))
    lists = np.full((len(rows), width), -1)
    for row, (order, size) in enumerate(rows):
        lists[row, :size] = order[:size]
    return lists


masks = st.lists(st.booleans(), min_size=NUM_ITEMS, max_size=NUM_ITEMS).map(np.array)


@settings(max_examples=100)
@given(lists_of_items(), masks)
def test_coverage_and_shares_equal_a_count(lists: np.ndarray, marked: np.ndarray) -> None:
    seen = Counter(int(i) for row in lists for i in row if i >= 0)
    shown = exposures(lists, NUM_ITEMS)
    assert shown.tolist() == [seen[i] for i in range(NUM_ITEMS)]
    assert unique_items(shown) == len(seen)
    assert coverage(shown) == len(seen) / NUM_ITEMS
    halves = exposures(lists[:1], NUM_ITEMS) + exposures(lists[1:], NUM_ITEMS)
    np.testing.assert_array_equal(halves, shown)
    for row, found in zip(lists, share_of(lists, marked), strict=True):
        there = [i for i in row if i >= 0]
        assert found == pytest.approx(sum(marked[i] for i in there) / max(len(there), 1))


@settings(max_examples=100)
@given(lists_of_items(), masks, st.integers(0, 5))
def test_intra_list_diversity_equals_a_loop_over_pairs(
    lists: np.ndarray, mask: np.ndarray, seed: int
) -> None:
    vectors = unit_rows(np.random.default_rng(seed).normal(size=(NUM_ITEMS, 3)))
    found = intra_list_diversity(lists, vectors, mask)
    for row, value in zip(lists, found, strict=True):
        there = [i for i in row if i >= 0 and mask[i]]
        apart = [1 - vectors[a] @ vectors[b] for a, b in combinations(there, 2)]
        assert value == pytest.approx(np.mean(apart) if apart else math.nan, nan_ok=True)


@settings(max_examples=100)
@given(
    lists_of_items(),
    st.lists(
        st.lists(st.integers(0, 3), max_size=3, unique=True),
        min_size=NUM_ITEMS,
        max_size=NUM_ITEMS,
    ),
)
def test_category_entropy_equals_a_loop(lists: np.ndarray, categories: list[list[int]]) -> None:
    found = category_entropy(lists, category_shares(categories, 4))
    for row, value in zip(lists, found, strict=True):
        mass: Counter[int] = Counter()
        for item in row:
            for category in categories[item] if item >= 0 else []:
                mass[category] += 1 / len(categories[item])  # type: ignore[assignment]
        total = sum(mass.values())
        expected = -sum(m / total * math.log2(m / total) for m in mass.values())
        assert value == pytest.approx(expected if mass else math.nan, nan_ok=True, abs=1e-12)


@settings(max_examples=100)
@given(
    st.lists(
        st.lists(
            st.sampled_from([math.nan, -math.inf, math.inf, 0.0, 1.0, 2.0, 3.0]),
            min_size=NUM_ITEMS,
            max_size=NUM_ITEMS,
        ),
        min_size=1,
        max_size=3,
    ),
    st.integers(0, 2**NUM_ITEMS - 1),
    st.integers(1, 9),
)
def test_lists_hold_the_best_that_has_an_order(
    scores: list[list[float]], bits: int, k: int
) -> None:
    out = [bool(bits >> i & 1) for i in range(NUM_ITEMS)]
    given_scores = torch.tensor(scores)
    before = given_scores.clone()
    found = top_lists(given_scores, sparse.csr_array(np.array([out] * len(scores))), k)
    torch.testing.assert_close(given_scores, before, equal_nan=True)
    assert found.shape == (len(scores), k)
    for row, own in zip(found, scores, strict=True):
        left = [s for s, o in zip(own, out, strict=True) if not o and s > -math.inf]
        best = sorted(left, reverse=True)[:k] if len(set(left)) > 1 else []
        there = row[row >= 0]
        assert (row[: len(there)] >= 0).all()
        assert len(set(there.tolist())) == len(there)
        assert [own[i] for i in there] == best
        assert not any(out[i] for i in there)


def test_the_tail_is_what_the_head_leaves() -> None:
    events = np.array([1, 50, 0, 30, 10, 9])
    assert tail_mask(events).tolist() == [True, False, True, False, True, True]
    assert tail_mask(events, 0.85).tolist() == [True, False, True, False, False, True]
    assert tail_mask(events, 1.0).tolist() == [False, False, True, False, False, False]
    assert tail_mask(np.zeros(3, int)).all()


def test_the_examples_of_the_docstrings_run() -> None:
    for module in (rec.metrics.coverage, rec.metrics.diversity):
        result = doctest.testmod(module)
        assert result.attempted > 0
        assert result.failed == 0
