from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rec.features.evidence import (
    MIN_Z,
    SAID,
    SMOOTHING,
    Profiles,
    deviation,
    evidence,
    words_of,
)


def test_words_are_distinct_in_order_without_stop_words_and_cut() -> None:
    texts = pa.array(["The Sea, the SEA and a boat; x", None, "", "to be or", "one-two three four"])
    assert words_of(texts, 3).to_pylist() == [["sea", "boat"], [], [], [], []]
    assert words_of(pa.array(["wolf bear fox hare"], pa.large_string()), 2).to_pylist() == [
        ["wolf", "bear"]
    ]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(0, 20), *[st.booleans()] * 2),
        min_size=1,
        max_size=20,
    )
)
def test_evidence_agrees_with_the_formula(rows: list[tuple[int, int, int, bool, bool]]) -> None:
    """Label k and word k are counted as row k says, the diagonal of a table of pairs."""
    size, num_items = len(rows), 40
    labels = np.array([r[0] for r in rows])
    words = np.array([r[1] for r in rows])
    both = np.array([min(r) for r in zip(labels, words, [r[2] for r in rows], strict=True)])
    training = np.array([r[3] and b > 0 for r, b in zip(rows, both, strict=True)])
    said = np.array([r[4] for r in rows])
    place = np.arange(size)
    profiles = Profiles(num_items, words, labels, place * size + place, both)
    found = evidence(profiles, place, place, said, training)
    for k in range(size):
        out = int(training[k])
        background = max(words[k] - out, 0.5) / (num_items - out)
        n, x = labels[k] - out, both[k] - out
        prior = max(background, SAID) if said[k] else background
        value = math.log((x + SMOOTHING * prior) / (n + SMOOTHING) / background)
        chance = n * background
        if not said[k] and x - chance < MIN_Z * math.sqrt(max(chance, 0.5)):
            value = 0.0
        assert found[k] == pytest.approx(value, abs=1e-9)
        if found[k] != 0 and not said[k]:
            value = deviation(num_items, words[k : k + 1], labels[k : k + 1], both[k : k + 1])
            assert value[0] >= MIN_Z


def test_unlisted_pairs_never_met() -> None:
    profiles = Profiles(10, np.array([5, 5]), np.array([4]), np.array([1]), np.array([4]))
    assert profiles.together(np.array([0, 0]), np.array([0, 1])).tolist() == [0, 4]
    none = Profiles(0, np.zeros(0), np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert none.together(np.array([0]), np.array([0])).tolist() == [0]
