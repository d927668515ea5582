"""Filtered search by whichever way costs least finds what brute force over the codes finds."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from tables import clustered, embeddings, unit

from rec.retrieval import costs
from rec.retrieval.ann import Ann
from rec.retrieval.build import build_index
from rec.retrieval.effort import Effort
from rec.retrieval.filters import Range
from rec.retrieval.index import Index
from rec.retrieval.shards import Shard
from rec.retrieval.spec import IndexConfig
from rec.retrieval.tune import recall

NUM, WIDE = 12_000, 24


@pytest.fixture(
    scope="module", params=["IVF128,PQ12x4fs,RFlat", "IVF8,PQ12x4fs,RFlat", "IVF128,SQ8"]
)
def far(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Index, np.ndarray]:
    """Vectors of few dimensions in truth, their places along an axis, queries at its end."""
    rng = np.random.default_rng(0)
    folder, plane = tmp_path_factory.mktemp("far"), rng.standard_normal((5, WIDE))

    def drawn(num: int) -> np.ndarray:
        noise = 0.05 * rng.standard_normal((num, WIDE))
        return unit(rng.standard_normal((num, 5)) @ plane + noise)

    vectors, queries, axis = drawn(NUM), drawn(2000), rng.standard_normal(WIDE)
    place = np.argsort(np.argsort(vectors @ axis)) / NUM
    uri = embeddings(folder / "e", vectors, columns={"place": place.tolist()})
    config = IndexConfig(factory=request.param, attributes=("place",), num_queries=500)
    build_index(uri, str(folder / "i"), config)
    return Index.open(str(folder / "i")), queries[np.argsort(-(queries @ axis))[:100]]


@pytest.mark.parametrize("below", [0.5, 0.2])
@pytest.mark.parametrize("batch", [1, 100])
@pytest.mark.parametrize("by_cost", [True, False])
def test_filters_far_from_the_query(
    far: tuple[Index, np.ndarray],
    below: float,
    batch: int,
    by_cost: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index, queries = far
    monkeypatch.setattr("rec.retrieval.costs.CHEAP_VALUES", 0)
    if not by_cost:
        monkeypatch.setattr("rec.retrieval.lists.ns_to_compare", lambda *_: math.inf)
    where = Range(column="place", below=below)
    truth = index.search(queries, 10, where=where, exact=True).rows
    batches = [queries[start : start + batch] for start in range(0, len(queries), batch)]
    found = [index.search(some, 10, where=where).rows for some in batches]
    assert recall(np.concatenate(found), truth) >= 0.98


@pytest.mark.parametrize("nprobe", [6, 8])
def test_filters_far_from_the_query_where_all_of_few_lists_are_looked_into(
    nprobe: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No wider look shows that what fits is far, and its codes are as many."""
    vectors, axis = clustered(NUM, WIDE), np.eye(WIDE)[0]
    place = np.argsort(np.argsort(vectors @ axis)) / NUM
    uri = embeddings(tmp_path / "e", vectors, columns={"place": place.tolist()})
    config = IndexConfig(factory="IVF8,PQ12x4fs,RFlat", attributes=("place",), num_queries=50)
    build_index(uri, str(tmp_path / "i"), config)
    index = Index.open(str(tmp_path / "i"))
    (part,) = index.parts
    assert isinstance(part, Shard)
    part.ann.effort = part.ann.effort._replace(nprobe=nprobe, k_factor=4)
    monkeypatch.setattr("rec.retrieval.costs.CHEAP_VALUES", 0)
    monkeypatch.setattr("rec.retrieval.lists.ns_to_compare", lambda *_: math.inf)
    queries, where = vectors[np.argsort(-(vectors @ axis))[:50]], Range(column="place", below=0.5)
    truth = index.search(queries, 10, where=where, exact=True).rows
    assert recall(index.search(queries, 10, where=where).rows, truth) >= 0.98


def test_candidates_are_held_for_some_queries_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = clustered(1000)
    ann = Ann.make("IVF8,PQ8x4fs,RFlat", vectors.shape[1])
    ann.train(vectors)
    ann.add(vectors)
    effort, bits = Effort(nprobe=4, k_factor=8), np.full(125, 0b0101_0101, np.uint8)
    searches = [(None, None), (effort, None), (effort, bits)]
    whole = [ann.search(vectors[:9], 5, *how) for how in searches]
    monkeypatch.setattr("rec.retrieval.ann._CANDIDATES", 100)  # of two queries
    for how, (rows, scores) in zip(searches, whole, strict=True):
        in_parts = ann.search(vectors[:9], 5, *how)
        np.testing.assert_array_equal(in_parts[0], rows)
        np.testing.assert_array_equal(in_parts[1], scores)


@pytest.mark.parametrize("scale", [0.1, 10, 1e4])
def test_filters_find_the_same_whatever_the_norm_of_the_query(
    far: tuple[Index, np.ndarray], scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, queries = far
    monkeypatch.setattr("rec.retrieval.costs.CHEAP_VALUES", 0)
    monkeypatch.setattr("rec.retrieval.lists.ns_to_compare", lambda *_: math.inf)
    for below in (0.5, 0.2):
        where = Range(column="place", below=below)
        found = index.search(queries * np.float32(scale), 10, where=where).rows
        assert recall(found, index.search(queries, 10, where=where).rows) >= 0.99


def test_brute_force_in_lists_is_brute_force(tmp_path: Path) -> None:
    config = IndexConfig(factory="IVF32,SQ8", attributes=("n",), num_queries=50)
    uri = embeddings(tmp_path / "e", clustered(3000), columns={"n": list(range(3000))})
    build_index(uri, str(tmp_path / "i"), config)
    index, queries = Index.open(str(tmp_path / "i")), clustered(20, seed=1)
    (part,) = index.parts
    assert isinstance(part, Shard)
    for below in (3000, 1000, 5, 0):
        where = Range(column="n", below=below)
        assert costs.passes_all(part.ann, below, 1) == (below >= 1000)
        for filtered in (where, None):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("rec.retrieval.shards.passes_all", lambda *_: True)
                in_lists = index.search(queries, 10, where=filtered, exact=True)
                patch.setattr("rec.retrieval.shards.passes_all", lambda *_: False)
                decoded = index.search(queries, 10, where=filtered, exact=True)
            np.testing.assert_allclose(in_lists.scores, decoded.scores, rtol=1e-5)
            assert recall(in_lists.rows, decoded.rows) > 0.99 or below == 0  # but for equal scores


@pytest.mark.parametrize("factory", ["IVF256_HNSW8,SQ8", "IVF256_HNSW8,PQ12x4fs,RFlat"])
@pytest.mark.parametrize("cost", [0.0, math.inf])
def test_a_graph_of_centres_loses_no_lists(
    factory: str, cost: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for all lists, FAISS looks into those alone that a walk over the graph comes to."""
    rng = np.random.default_rng(0)
    flat = rng.standard_normal((6000, 3)) @ rng.standard_normal((3, WIDE))
    vectors = unit(flat + 0.05 * rng.standard_normal((6000, WIDE)))
    place = np.argsort(np.argsort(vectors @ (axis := rng.standard_normal(WIDE)))) / 6000
    uri = embeddings(tmp_path / "e", vectors, columns={"place": place.tolist()})
    config = IndexConfig(factory=factory, attributes=("place",), num_queries=100)
    build_index(uri, str(tmp_path / "i"), config)
    index = Index.open(str(tmp_path / "i"))
    monkeypatch.setattr("rec.retrieval.costs.CHEAP_VALUES", 0)
    monkeypatch.setattr("rec.retrieval.lists.ns_to_compare", lambda *_: cost)
    queries = vectors[np.argsort(-(vectors @ axis))[:30]]
    scores = queries @ index.reconstruct(np.arange(6000)).T
    for below, where in ((2.0, None), (0.5, Range(column="place", below=0.5))):
        best = -np.sort(-np.where(place < below, scores, -np.inf), axis=1)[:, :10]
        for batch in (1, 30):
            parts = [queries[start : start + batch] for start in range(0, 30, batch)]
            exact = [index.search(some, 10, where=where, exact=True).scores for some in parts]
            np.testing.assert_allclose(np.concatenate(exact), best, rtol=1e-5)
            if where is not None:
                found = np.concatenate(
                    [index.search(some, 10, where=where).scores for some in parts]
                )
                assert np.mean(found >= best[:, -1:] - 1e-5) >= 0.98


@pytest.mark.parametrize(
    "factory", ["IVF8,PQ8x4fs,Refine(SQ8)", "IVF8,SQ8,Refine(SQfp16)", "SQ4", "PQ8", "Flat"]
)
def test_codes_decoded_at_once_are_those_decoded_one_by_one(factory: str) -> None:
    vectors = clustered(1000)
    ann = Ann.make(factory, vectors.shape[1])
    ann.train(vectors)
    ann.add(vectors[:500])
    ann.add(vectors[500:])
    rows = np.random.default_rng(0).permutation(1000)[:300]
    one_by_one = np.array([ann._index.reconstruct(int(row)) for row in rows])
    np.testing.assert_array_equal(ann.reconstruct(rows), one_by_one)
    empty = Ann.make(factory, vectors.shape[1])
    empty.train(vectors)
    for held in (ann, empty):
        assert held.reconstruct(rows[:0]).shape == (0, vectors.shape[1])
