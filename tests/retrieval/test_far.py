"""Filters, exclusions and deletions that take away what lies near the query, and little else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.special import ndtr
from tables import clustered, embeddings, unit

from rec.retrieval.ann import Ann
from rec.retrieval.build import build_index
from rec.retrieval.changes import Delete, Put
from rec.retrieval.delta import Overlay
from rec.retrieval.filters import Range
from rec.retrieval.fits import Fit
from rec.retrieval.index import Index
from rec.retrieval.spec import IndexConfig
from rec.retrieval.spread import Spread
from rec.retrieval.tune import recall

NUM, WIDE, TOPICS = 22_000, 32, 100
FACTORIES = ["IVF256,Flat", "IVF256,SQ8", "IVF32,PQ16x4fs,RFlat", "IVF256_HNSW16,Flat"]


@pytest.fixture(scope="module", params=FACTORIES)
def topics(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Index, np.ndarray]:
    """Vectors in topics of 220, and queries in the first of them."""
    rng, folder = np.random.default_rng(7), tmp_path_factory.mktemp("topics")
    centres, topic = rng.standard_normal((TOPICS, WIDE)), np.arange(NUM) % TOPICS
    vectors = unit(centres[topic] + 0.4 * rng.standard_normal((NUM, WIDE)))
    queries = unit(centres[:1] + 0.4 * rng.standard_normal((60, WIDE)))
    uri = embeddings(folder / "e", vectors, columns={"topic": topic.tolist()})
    config = IndexConfig(
        factory=request.param, recall_target=0.98, attributes=("topic",), num_queries=300
    )
    build_index(uri, str(folder / "i"), config)
    return Index.open(str(folder / "i")), queries


@pytest.fixture(autouse=True)
def no_filter_is_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rec.retrieval.costs.CHEAP_VALUES", 0)


@pytest.mark.parametrize("by_cost", [True, False])
@pytest.mark.parametrize("least", [1, 10, 50])
@pytest.mark.parametrize("batch", [1, 60])
def test_a_filter_that_leaves_out_the_topic_of_the_query(
    topics: tuple[Index, np.ndarray],
    least: int,
    batch: int,
    by_cost: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index, queries = topics
    if not by_cost:
        monkeypatch.setattr("rec.retrieval.lists.ns_to_compare", lambda *_: np.inf)
    where = Range(column="topic", least=least)
    truth = index.search(queries, 10, where=where, exact=True).rows
    parts = [queries[start : start + batch] for start in range(0, 60, batch)]
    found = [index.search(some, 10, where=where).rows for some in parts]
    assert recall(np.concatenate(found), truth) >= 0.98


@pytest.mark.parametrize("num", [20, 100, 1000])
def test_exclusion_of_the_nearest(topics: tuple[Index, np.ndarray], num: int) -> None:
    index, queries = topics
    everything = index.search(queries, num, exact=True)
    out = [[*ids, ids[0], "item-none"] for ids in everything.ids]
    for where in (None, Range(column="topic", least=1)):
        truth = index.search(queries, 10, where=where, exclude=out, exact=True).rows
        hits = index.search(queries, 10, where=where, exclude=out)
        assert not any(
            set(ids) & set(gone) for ids, gone in zip(hits.ids.tolist(), out, strict=True)
        )
        assert recall(hits.rows, truth) >= 0.98


def test_deletion_of_the_nearest(topics: tuple[Index, np.ndarray]) -> None:
    """Others stand near them, in the index and in what was added; some of those are excluded."""
    index, queries = topics
    overlay = Overlay(index)
    near = index.search(queries, 500, exact=True).ids
    added = index.vectors(["item-1", "item-2"])
    overlay.apply([Delete(item_id) for item_id in np.unique(near)])
    values = [{"topic": 1}, {"topic": 2}]
    for _ in range(2):  # the first of each is dead
        pairs = zip(["new-1", "new-2"], added, values, strict=True)
        overlay.apply([Put(*put) for put in pairs])
    queries = np.concatenate([queries, added])
    exclude = [
        ["new-1", f"item-{number}"] + [f"item-{n}" for n in range(101, 160)] for number in range(62)
    ]
    for out in (None, exclude):
        for where in (None, Range(column="topic", least=1)):
            truth = overlay.index.search(queries, 10, where=where, exclude=out, exact=True)
            hits = overlay.index.search(queries, 10, where=where, exclude=out)
            assert not np.isin(hits.ids, near).any()
            assert ("new-1" in hits.ids) == (out is None)
            assert "new-2" in hits.ids[61]
            assert (hits.rows >= 0).all()
            assert recall(hits.rows, truth.rows) >= 0.98


def test_exclusions_of_items_of_many_vectors(tmp_path: Path) -> None:
    """In shards, and more of them than rows are near."""
    ids = [f"item-{number // 5}" for number in range(3000)]
    uri = embeddings(
        tmp_path / "e", clustered(3000), ids=ids, interests=[number % 5 for number in range(3000)]
    )
    config = IndexConfig(factory="IVF16,Flat", num_queries=100, num_shards=2)
    build_index(uri, str(tmp_path / "i"), config)
    index, queries = Index.open(str(tmp_path / "i")), clustered(20, seed=1)
    out = [[f"item-{n}" for n in range(number, 600, 2)] for number in range(20)]
    truth = index.search(queries, 10, exclude=out, exact=True)
    hits = index.search(queries, 10, exclude=out)
    assert recall(hits.rows, truth.rows) >= 0.95
    for found, gone in zip(hits.ids.tolist(), out, strict=True):
        assert len(set(found)) == 10
        assert not set(found) & set(gone)
    everything = [[f"item-{n}" for n in range(600)]] * 20
    assert (index.search(queries, 10, exclude=everything).rows < 0).all()


def test_fewer_rows_fit() -> None:
    rng = np.random.default_rng(0)
    fits, lists = rng.random(999) < 0.5, rng.integers(0, 7, 999)

    def fit(mask: np.ndarray) -> Fit:
        bits = np.packbits(mask, bitorder="little")
        return Fit(bits, int(mask.sum()), np.bincount(lists[mask], minlength=7))

    before, rows = fit(fits), rng.integers(0, 999, 300)
    left = fits.copy()
    left[rows] = False
    for some, expected in ((rows, left), (rows[:0], fits)):
        less = before.less(some, lists)
        assert less.num_rows == expected.sum()
        np.testing.assert_array_equal(less.bits, fit(expected).bits)
        np.testing.assert_array_equal(less.per_list, fit(expected).per_list)
    np.testing.assert_array_equal(before.bits, fit(fits).bits)


@pytest.mark.parametrize("factory", ["IVF16,Flat", "OPQ8,IVF16,PQ8x4fs,RFlat"])
def test_as_many_better_rows_are_expected_as_there_are(factory: str) -> None:
    """Lists of several widths, wider along some directions than along others; k-means cuts some."""
    rng = np.random.default_rng(0)
    centres, widths = 3 * rng.standard_normal((16, 8)), 0.1 * 2.0 ** np.arange(8)
    own = rng.integers(0, 16, 40_000)
    sizes = np.linspace(0.5, 1.5, 16)[own, None]
    vectors = centres[own] + sizes * widths * rng.standard_normal((40_000, 8)) / 10
    vectors = vectors.astype(np.float32)
    ann = Ann.make(factory, 8)
    ann.train(vectors)
    ann.add(vectors)
    lists = ann.list_of_rows()
    spread, queries = Spread(ann, lists), rng.standard_normal((50, 8)).astype(np.float32)
    scores = queries @ vectors.T
    worst = np.sort(scores)[:, -1000]
    along, per_list = spread.along(ann.turned(queries)), np.bincount(lists, minlength=16)
    expected = spread.expected(along, ann.list_scores(queries), worst, per_list)
    assert expected.sum(axis=1).mean() == pytest.approx(1000, rel=0.2)
    most = 40_000 * ndtr(-spread.reach(50, 40_000) / spread._sizes)
    assert most.max() == pytest.approx(50)
    nothing = spread.expected(np.zeros(1), np.array([[0.0, 1.0] * 8]), np.array([0.5]), per_list)
    np.testing.assert_array_equal(nothing[0], per_list * ([0, 1] * 8))
    assert spread.reach(9, 3) == spread.reach(9, 0) == 0
