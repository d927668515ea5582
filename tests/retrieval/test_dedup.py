"""Near-duplicate groups against a plain loop over all pairs, and against planted ones."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from tables import clustered, index_of

from rec.retrieval.dedup import DuplicateRule, duplicate_groups
from rec.retrieval.errors import QueryError
from rec.retrieval.index import Index

RULE = DuplicateRule(similarity=0.8, max_bits=6, similarity_alone=0.9)


def plain_groups(
    vectors: np.ndarray, hashes: np.ndarray, has: np.ndarray, dead: np.ndarray
) -> list[int]:
    group = list(range(len(vectors)))
    for i in range(len(vectors)):
        for j in range(i):
            if dead[i] or dead[j]:
                continue
            similarity = float(vectors[i] @ vectors[j])
            if has[i] and has[j]:
                bits = bin(int(hashes[i]) ^ int(hashes[j])).count("1")
                alike = similarity >= RULE.similarity and bits <= RULE.max_bits
            else:
                alike = similarity >= RULE.similarity_alone
            if alike:
                old, new = group[i], group[j]
                low = min(old, new)
                group = [low if g in (old, new) else g for g in group]
    return group


@pytest.mark.parametrize("with_dead", [False, True])
def test_against_all_pairs(tmp_path: Path, with_dead: bool) -> None:
    rng = np.random.default_rng(0)
    vectors = clustered(250)
    base = rng.integers(0, 1 << 63, 5, dtype=np.uint64)
    hashes = base[rng.integers(0, 5, 250)]
    for row in range(250):  # a few bits of each differ
        for bit in rng.integers(0, 64, rng.integers(0, 8)):
            hashes[row] ^= np.uint64(1) << np.uint64(bit)
    has = rng.random(250) < 0.8
    dead = (rng.random(250) < 0.2) & with_dead
    index = index_of(tmp_path, vectors)
    index = Index(index.parts, index.manifest, dead)
    found = duplicate_groups(index, hashes, has, RULE)
    expected = plain_groups(vectors, hashes, has, dead)
    assert found.tolist() == expected
    assert 1 < len(set(expected)) < 250
    alone = duplicate_groups(index, rule=RULE)
    none = np.zeros(250, bool)
    assert alone.tolist() == plain_groups(vectors, hashes, none, dead)


def test_a_group_larger_than_the_first_look(tmp_path: Path) -> None:
    """One video uploaded a hundred times, slightly changed, among others."""
    rng = np.random.default_rng(1)
    vectors = clustered(300)
    copies = rng.choice(300, 100, replace=False)
    vectors[copies] = vectors[copies[0]] + 0.002 * rng.standard_normal((100, 16))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    groups = duplicate_groups(
        index_of(tmp_path, vectors), rule=DuplicateRule(similarity_alone=0.999)
    )
    assert set(groups[copies]) == {copies.min()}
    assert (groups == copies.min()).sum() == 100


def test_thousands_of_equal_vectors_take_little_memory(tmp_path: Path) -> None:
    """Every two of them are a pair; so are two of those that are all but equal."""
    rng = np.random.default_rng(2)
    vectors = clustered(4500)
    vectors[:3000] = vectors[0]
    vectors[3000:4000] = vectors[4000] + 1e-4 * rng.standard_normal((1000, 16))
    index = index_of(tmp_path, vectors)
    tracemalloc.start()
    groups = duplicate_groups(index, rule=DuplicateRule(similarity_alone=0.999))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert set(groups[:3000]) == {0}
    assert set(groups[3000:4001]) == {3000}
    assert len(set(groups[4001:])) > 400
    assert peak < 150e6


def test_equal_vectors_of_other_pictures_are_told_apart(tmp_path: Path) -> None:
    vectors = clustered(6)
    vectors[:] = vectors[0]
    hashes = np.array([0, 0, 2**40 - 1, 2**40 - 1, 0, 7], np.uint64)
    has = np.array([True, True, True, True, False, True])
    index = index_of(tmp_path, vectors)
    found = duplicate_groups(index, hashes, np.ones(6, bool), RULE)
    assert found.tolist() == [0, 0, 2, 2, 0, 0]
    assert duplicate_groups(index, hashes, has, RULE).tolist() == [0] * 6  # one has no picture


def test_items_without_a_vector_are_no_duplicates(tmp_path: Path) -> None:
    """Zeros, where there was nothing to embed."""
    vectors = clustered(30)
    vectors[[5, 9, 20]] = 0
    groups = duplicate_groups(index_of(tmp_path, vectors), rule=DuplicateRule(similarity_alone=1))
    assert groups.tolist() == list(range(30))


@pytest.mark.parametrize("uneven", [1, 1.9])
def test_the_norm_makes_no_difference(tmp_path: Path, uneven: float) -> None:
    vectors = clustered(250)
    of_unit = duplicate_groups(index_of(tmp_path / "1", vectors), rule=RULE)
    norms = 5 * np.random.default_rng(0).uniform(1, uneven, (250, 1)).astype("f4")
    of_longer = duplicate_groups(index_of(tmp_path / "5", vectors * norms), rule=RULE)
    assert of_longer.tolist() == of_unit.tolist()
    assert 1 < len(set(of_unit.tolist())) < 250


def test_norms_far_apart_are_refused(tmp_path: Path) -> None:
    vectors = clustered(10)
    vectors[3] *= 3
    with pytest.raises(QueryError, match=r"norms from 1 .* to 3 \(item 'item-3'\): .*unit vectors"):
        duplicate_groups(index_of(tmp_path, vectors))


def test_several_vectors_of_an_item_are_refused(tmp_path: Path) -> None:
    index = index_of(tmp_path, clustered(3), ids=["a", "a", "b"], interests=[0, 1, 0])
    with pytest.raises(QueryError, match="an item has several vectors"):
        duplicate_groups(index)


def test_hashes_of_another_length(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"hashes of shape \(3,\), the index has 10 rows"):
        duplicate_groups(index_of(tmp_path, clustered(10)), np.zeros(3, np.uint64))
