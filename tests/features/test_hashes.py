from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rec.features.hashes import (
    band_keys,
    dhash,
    distances,
    near_groups,
    near_pairs,
    partners,
    phash,
)


def scene(seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (9, 12), dtype=np.uint8)
    return cv2.resize(coarse, (240, 180), interpolation=cv2.INTER_CUBIC)


def recompressed(picture: np.ndarray) -> np.ndarray:
    data = cv2.imencode(".jpg", cv2.resize(picture, (160, 120)), [cv2.IMWRITE_JPEG_QUALITY, 50])
    return cv2.imdecode(data[1], cv2.IMREAD_GRAYSCALE)


@pytest.mark.parametrize("of", [phash, dhash])
def test_hashes_survive_scaling_and_compression_and_tell_scenes_apart(of: object) -> None:
    hashes = np.array([of(scene(n)) for n in range(20)], np.uint64)  # type: ignore[operator]
    again = np.array([of(recompressed(scene(n))) for n in range(20)], np.uint64)  # type: ignore[operator]
    assert distances(hashes, again).max() <= 6
    others = [distances(hashes[n : n + 1], hashes[:n]).min() for n in range(1, 20)]
    assert min(others) > 12
    assert of(np.full((50, 50), 7, np.uint8)) is None  # type: ignore[operator]


def near_values(draw_from: int) -> st.SearchStrategy[list[int]]:
    """Hashes of which many are near each other."""
    flips = st.lists(st.integers(0, 63), max_size=6)
    one = st.tuples(st.integers(0, draw_from), flips)

    def build(pair: tuple[int, list[int]]) -> int:
        value = (pair[0] * 0x9E3779B97F4A7C15) % 2**64
        for bit in pair[1]:
            value ^= 1 << bit
        return value

    return st.lists(one.map(build), max_size=30)


@settings(deadline=None)
@given(near_values(3), st.integers(0, 8))
def test_pairs_and_groups_agree_with_plain_loops(values: list[int], limit: int) -> None:
    hashes = np.array(values, np.uint64)
    near = {
        (a, b)
        for b in range(len(values))
        for a in range(b)
        if (values[a] ^ values[b]).bit_count() <= limit
    }
    found = {
        (min(a, b), max(a, b))
        for left, right in near_pairs(hashes, limit)
        for a, b in zip(left.tolist(), right.tolist(), strict=True)
    }
    assert found <= near
    group = list(range(len(values)))
    for _ in values:
        for a, b in near:
            group[a] = group[b] = min(group[a], group[b])
    assert near_groups(hashes, limit).tolist() == group


@settings(deadline=None)
@given(st.lists(st.integers(0, 3)))
def test_partners_are_all_pairs_of_equal_keys(keys: list[int]) -> None:
    keys.sort()
    found = [
        pair
        for left, right in partners(np.array(keys))
        for pair in zip(left.tolist(), right.tolist(), strict=True)
    ]
    n = len(keys)
    expected = [(a, b) for a in range(n) for b in range(a + 1, n) if keys[a] == keys[b]]
    assert sorted(found) == expected


def test_bands_cover_every_bit_once() -> None:
    for distance in (0, 3, 4, 6, 63):
        ones = np.array([2**64 - 1], np.uint64)
        assert sum(int(key).bit_count() for key in band_keys(ones, distance)[0]) == 64
