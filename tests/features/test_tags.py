from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rec.features.tags import LabelWeights, final_weights, idf, normalise, raw_weights


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("#Sci-Fi", "sci fi"),
        ("sci_fi", "sci fi"),
        ("ＳＣＩ　ＦＩ", "sci fi"),  # noqa: RUF001
        ("  two\t words!! ", "two words"),
        ("日本の映画", "日本の映画"),
        ("Ünïcode", "ünïcode"),
        ("###", None),
        ("", None),
        (None, None),
    ],
)
def test_variants_have_one_spelling(text: str | None, label: str | None) -> None:
    assert normalise(pa.chunked_array([pa.array([text], pa.large_string())])).to_pylist() == [label]


@given(st.lists(st.text(max_size=12), max_size=5))
def test_normalising_twice_changes_nothing(texts: list[str]) -> None:
    once = normalise(pa.array(texts, pa.string()))
    assert normalise(once).to_pylist() == once.to_pylist()


def test_weights_agree_with_a_plain_loop() -> None:
    config = LabelWeights(half_life_days=30, fresh_floor=0.2, min_weight=0.5, max_weight=1.5)
    counts, dfs, coefficients = [1, 5, 2, 1], [10, 1, 3, 3], [1.0, 0.5, 1.0, 1.0]
    ages = [0.0, 30.0, 1000.0, -4.0]
    expected = []
    for count, df, age, coefficient in zip(counts, dfs, ages, coefficients, strict=True):
        rarity = math.log((1 + 100) / (1 + df)) + 1
        fresh = max(0.2, 2 ** (-max(age, 0.0) / 30))
        expected.append(math.log(1 + count) * rarity * fresh * coefficient)
    raw = raw_weights(
        np.array(counts), idf(np.array(dfs), 100), np.array(ages), np.array(coefficients), config
    )
    np.testing.assert_allclose(raw, expected, rtol=1e-5)
    mean = sum(expected) / 4
    clipped = [min(max(w / mean, 0.5), 1.5) for w in expected]
    np.testing.assert_allclose(final_weights(raw, mean, config), clipped, rtol=1e-5)


def test_plain_weighting_gives_every_label_one() -> None:
    config = LabelWeights(weighting="plain", max_weight=0.5)
    raw = raw_weights(np.array([3, 9]), np.array([1.0, 7.0]), np.zeros(2), np.ones(2), config)
    assert final_weights(raw, float(raw.mean()), config).tolist() == [1.0, 1.0]
