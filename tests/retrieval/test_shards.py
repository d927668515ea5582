"""Shards searched as one find what one index of all rows finds; filters, items of many vectors."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tables import DIM, brute_force, clustered, embeddings, unit

from rec import artifacts
from rec.artifacts import ArtifactError
from rec.retrieval.build import build_index
from rec.retrieval.costs import compares_all
from rec.retrieval.errors import FilterError, IndexBuildError, QueryError
from rec.retrieval.filters import Equal, In, Not, Range
from rec.retrieval.index import Index
from rec.retrieval.shards import Shard
from rec.retrieval.spec import IndexConfig
from rec.retrieval.table import EmbeddingTable, folder_of
from rec.retrieval.tune import recall

NUM = 6000


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> str:
    columns = {"n": list(range(NUM)), "kind": [f"k{i % 7}" for i in range(NUM)]}
    return embeddings(tmp_path_factory.mktemp("t") / "e", clustered(NUM), columns=columns)


def built(table: str, folder: Path, **settings: Any) -> Index:
    config = IndexConfig(attributes=("n", "kind"), num_queries=100, **settings)
    build_index(table, str(folder / "i"), config)
    return Index.open(str(folder / "i"))


@pytest.mark.parametrize("factory", ["Flat", "IVF32,Flat", "IVF32,SQ8", "IVF32,PQ8x4fs,RFlat"])
def test_sharded_equals_unsharded(table: str, tmp_path: Path, factory: str) -> None:
    """The quantiser is shared, so even approximate searches agree; merged shards as well."""
    queries = clustered(20, seed=1)
    one = built(table, tmp_path / "one", factory=factory, num_shards=1)
    for name, merge in (("kept", False), ("merged", True)):
        many = built(table, tmp_path / name, factory=factory, num_shards=5, merge=merge)
        assert len(many.parts) == (1 if merge else 5)
        for index in (one, many):
            for part in index.parts:
                assert isinstance(part, Shard)
                part.ann.effort = part.ann.effort._replace(nprobe=8, k_factor=64)
        a, b = one.search(queries, 10), many.search(queries, 10)
        np.testing.assert_allclose(a.scores, b.scores, rtol=1e-5)
        if factory != "IVF32,SQ8":  # equal codes give equal scores, in either order
            assert a.ids.tolist() == b.ids.tolist()
        assert many.vectors(["item-17", "item-5999"]).shape == (2, DIM)
        assert [len(rows) for rows in many.locate(["item-17", "none"])] == [1, 0]


def test_sharded_flat_is_exact(table: str, tmp_path: Path) -> None:
    index = built(table, tmp_path, factory="Flat", num_shards=7)
    queries = clustered(10, seed=2)
    expected = brute_force(clustered(NUM), queries, 100)
    assert index.search(queries, 100).ids.tolist() == [
        [f"item-{i}" for i in row] for row in expected
    ]
    pool = ThreadPoolExecutor(2)
    threaded = Index.open(str(tmp_path / "i"), pool=pool, mmap=True)
    assert (threaded.search(queries, 100).rows == index.search(queries, 100).rows).all()
    pool.shutdown()


def test_a_graph_cannot_be_merged(table: str, tmp_path: Path) -> None:
    with pytest.raises(IndexBuildError, match="merge=false"):
        built(table, tmp_path, factory="HNSW8", num_shards=2, merge=True)
    assert not list((tmp_path / "i").glob("v-*"))
    index = built(table, tmp_path, factory="HNSW8", recall_target=0.9)
    assert index.manifest.metrics["recall@10"] > 0.85
    assert (index.search(clustered(3), 2000).rows >= 0).all()


@pytest.fixture
def nothing_is_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that lists are looked into, however few the rows that fit."""
    monkeypatch.setattr("rec.retrieval.costs.CHEAP_VALUES", 0)
    monkeypatch.setattr("rec.retrieval.lists.ns_to_compare", lambda *_: math.inf)


FILTERS = [
    (Range(column="n", below=30), lambda i: i < 30),
    (Equal(column="kind", value="k3"), lambda i: i % 7 == 3),
    (In(column="kind", values=("k1", "k2")), lambda i: i % 7 in (1, 2)),
    (Not(of=Range(column="n", least=10)), lambda i: i < 10),
    (Range(column="n", least=NUM), lambda i: i >= NUM),
]


@pytest.mark.parametrize("place", range(len(FILTERS)))
@pytest.mark.parametrize("num_shards", [1, 3])
def test_filtered_flat_against_brute_force(
    table: str, tmp_path: Path, place: int, num_shards: int
) -> None:
    where, fits = FILTERS[place]
    index = built(table, tmp_path, factory="Flat", num_shards=num_shards)
    vectors, queries = clustered(NUM), clustered(5, seed=3)
    rows = np.array([i for i in range(NUM) if fits(i)], int)
    expected = rows[brute_force(vectors[rows], queries, 12)]
    hits = index.search(queries, 12, where=where)
    width = expected.shape[1]
    assert hits.rows[:, :width].tolist() == expected.tolist()
    assert (hits.rows[:, width:] == -1).all()
    assert np.isneginf(hits.scores[:, width:]).all()


@pytest.mark.parametrize(
    "factory", ["SQ8", "PQ16x4fs,RFlat", "PCA12,SQ8", "IVF8,RQ2x4", "IVF8,RQ2x4,RFlat"]
)
@pytest.mark.usefixtures("nothing_is_cheap")
def test_filter_on_codes_that_faiss_cannot_filter(table: str, tmp_path: Path, factory: str) -> None:
    index, queries = built(table, tmp_path, factory=factory), clustered(5, seed=3)
    hits = index.search(queries, 10, where=Range(column="n", below=3000))
    stored = index.reconstruct(np.arange(3000))
    scores = -np.sort(-(queries @ stored.T), axis=1)[:, :10]
    np.testing.assert_allclose(hits.scores, scores, rtol=1e-5)
    assert ((hits.rows >= 0) & (hits.rows < 3000)).all()


@pytest.mark.parametrize("factory", ["IVF32,SQ8", "IVF32,PQ8x4fs,Refine(SQ8)", "HNSW16"])
@pytest.mark.usefixtures("nothing_is_cheap")
def test_filtered_approximate_search_keeps_its_recall(
    table: str, tmp_path: Path, factory: str
) -> None:
    index = built(table, tmp_path, factory=factory, recall_target=0.98)
    vectors, queries = clustered(NUM), clustered(100, seed=0)
    for below in (3000, 600, 60):
        where = Range(column="n", below=below)
        hits = index.search(queries, 10, where=where)
        assert (hits.rows < below).all()
        truth = brute_force(vectors[:below], queries, 10)
        found = np.mean([len(set(a) & set(b)) for a, b in zip(hits.rows, truth, strict=True)])
        assert found / 10 >= 0.95
        exact = index.search(queries, 10, where=where, exact=True)
        same = np.mean([len(set(a) & set(b)) for a, b in zip(exact.rows, truth, strict=True)])
        assert same / 10 >= 0.97  # but for what 8-bit codes lose


@pytest.mark.parametrize(
    "factory", ["IVF64,SQ8", "IVF64,PQ8x4fs,Refine(SQ8)", "OPQ8,IVF64,PQ8x4fs,RFlat", "HNSW16"]
)
@pytest.mark.usefixtures("nothing_is_cheap")
def test_filter_on_rows_far_from_the_queries(tmp_path: Path, factory: str) -> None:
    """French items lie on one side, the queries on the other."""
    vectors, queries = clustered(NUM), clustered(100, seed=0)
    side = np.argsort(-vectors[:, 0])
    french = np.zeros(NUM, bool)
    french[side[:800]] = True
    queries = queries[queries[:, 0] < -0.1]
    columns = {"lang": np.where(french, "fr", "en").tolist()}
    config = IndexConfig(factory=factory, attributes=("lang",), num_queries=100, recall_target=0.98)
    build_index(embeddings(tmp_path / "e", vectors, columns=columns), str(tmp_path / "i"), config)
    index = Index.open(str(tmp_path / "i"))
    hits = index.search(queries, 10, where=Equal(column="lang", value="fr"))
    rows = np.flatnonzero(french)
    truth = rows[brute_force(vectors[rows], queries, 10)]
    assert french[hits.rows].all()
    assert (hits.rows >= 0).all()
    found = np.mean([len(set(a) & set(b)) for a, b in zip(hits.rows, truth, strict=True)])
    if factory != "HNSW16":  # a graph promises as many hits as there are, not the best
        assert found / 10 >= 0.95


@pytest.mark.parametrize("factory", ["IVF128,SQ8", "IVF128,PQ16x4fs,RFlat"])
@pytest.mark.parametrize("where", ["by chance", "elsewhere"])
@pytest.mark.usefixtures("nothing_is_cheap")
def test_filter_that_leaves_few_neighbours_near_the_query(
    tmp_path: Path, factory: str, where: str
) -> None:
    """Ten items to a centre: under a filter the ten nearest lie in many lists, of no order."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((1500, 32))
    vectors, queries = (
        unit(centres[np.arange(num) % 1500] + 0.3 * rng.standard_normal((num, 32)))
        for num in (15_000, 200)
    )
    side = centres[:, 0] > 0.8
    fits = rng.random(15_000) < 0.2 if where == "by chance" else side[np.arange(15_000) % 1500]
    queries = queries if where == "by chance" else queries[centres[:200, 0] < -0.5]
    config = IndexConfig(factory=factory, attributes=("fits",), recall_target=0.95)
    uri = embeddings(tmp_path / "e", vectors, columns={"fits": fits.tolist()})
    build_index(uri, str(tmp_path / "i"), config)
    hits = Index.open(str(tmp_path / "i")).search(
        queries, 10, where=Equal(column="fits", value=True)
    )
    rows = np.flatnonzero(fits)
    truth = rows[brute_force(vectors[rows], queries, 10)]
    assert recall(hits.rows, truth) >= 0.95


def test_queries_beside_empty_lists_find_as_many_as_there_are(tmp_path: Path) -> None:
    """Few of the lists hold nearly all rows, so that their mean length says little."""
    rng = np.random.default_rng(0)
    vectors = np.concatenate([clustered(300), clustered(1)[:1] + 1e-3 * rng.random((2700, DIM))])
    uri = embeddings(tmp_path / "e", vectors.astype("f4"))
    build_index(uri, str(tmp_path / "i"), IndexConfig(factory="IVF32,Flat", recall_target=0.1))
    index = Index.open(str(tmp_path / "i"))
    assert (index.search(-clustered(50), 200).rows >= 0).all()


@pytest.mark.parametrize("factory", ["IVF4,SQ8", "SQ8", "IVF4,PQ8x4fs,RFlat"])
def test_few_rows_leave_some_to_train_on(tmp_path: Path, factory: str) -> None:
    uri = embeddings(tmp_path / "e", clustered(500))
    manifest = build_index(uri, str(tmp_path / "i"), IndexConfig(factory=factory))
    assert manifest.metrics["num_queries"] == 50  # a fifth, half of it to tune with


def test_plan(table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = {}
    for factory in ("IVF16,SQ8", "HNSW8"):
        (shards[factory],) = built(table, tmp_path / factory, factory=factory).parts
    lists, graph = (shard.ann for shard in shards.values() if isinstance(shard, Shard))
    assert compares_all(6000, lists, 10)  # of 16 values: as fast as finding the lists
    monkeypatch.setattr("rec.retrieval.costs.CHEAP_VALUES", 0)
    assert compares_all(299, lists, 10)
    assert not compares_all(300, lists, 10)
    assert compares_all(599, graph, 10)
    assert not compares_all(600, graph, 10)
    assert compares_all(5000, lists, 1000)


def test_filter_that_does_not_fit(table: str, tmp_path: Path) -> None:
    index = built(table, tmp_path, factory="Flat")
    with pytest.raises(FilterError, match=r"no attribute 'x'; the index holds \['n', 'kind'\]"):
        index.search(clustered(1), 3, where=Equal(column="x", value=1))


def test_filters_kept_are_told_apart_and_bounded(
    table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = {"price": [float("-inf"), 0.0, 1.0, float("inf")]}
    uri = embeddings(tmp_path / "e", clustered(4), columns=columns, num_parts=1)
    build_index(uri, str(tmp_path / "p"), IndexConfig(attributes=("price",)))
    index = Index.open(str(tmp_path / "p"))
    for least, count in [(None, 4), (float("inf"), 1), (float("-inf"), 4), (0.5, 2)]:
        hits = index.search(clustered(1), 4, where=Range(column="price", least=least))
        assert (hits.rows >= 0).sum() == count, least
    monkeypatch.setattr("rec.retrieval.shards._BYTES_OF_FITS", 5000)  # of 750 bits, and more
    shard = built(table, tmp_path, factory="Flat").parts[0]
    assert isinstance(shard, Shard)
    for below in [*range(40), 39]:
        shard.search(clustered(1), 5, Range(column="n", below=below))
        assert shard._held == sum(len(key) + fit.bits.nbytes for key, fit in shard._fits.items())
        assert shard._held <= 5000
    assert 4 <= len(shard._fits) <= 6


def test_large_k_finds_as_many_as_there_are(table: str, tmp_path: Path) -> None:
    index = built(table, tmp_path, factory="IVF32,SQ8", recall_target=0.5)
    hits = index.search(clustered(3), 5000)
    assert (hits.rows >= 0).all()
    assert (np.diff(hits.scores, axis=1) <= 0).all()
    assert ((index.search(clustered(3), 10_000).rows >= 0).sum(axis=1) == NUM).all()


def test_attributes_from_another_table(tmp_path: Path) -> None:
    uri = embeddings(tmp_path / "e", clustered(50))
    ids = [f"item-{i}" for i in range(60, 10, -1)]
    pq.write_table(pa.table({"item_id": ids, "n": range(60, 10, -1)}), tmp_path / "items.parquet")
    config = IndexConfig(attributes=("n",), num_shards=3)
    items = str(tmp_path / "items.parquet")
    build_index(uri, str(tmp_path / "i"), config, attributes_uri=items)
    index = Index.open(str(tmp_path / "i"))
    hits = index.search(clustered(1), 50, where=Range(column="n", least=20))
    assert {i for i in hits.ids[0] if i} == {f"item-{i}" for i in range(20, 50)}
    assert index.attributes(np.array([10, 11])) == [{"n": None}, {"n": 11}]
    with pytest.raises(IndexBuildError, match=r"no columns \['n'\] to keep as attributes"):
        build_index(uri, str(tmp_path / "i"), config)
    with pytest.raises(IndexBuildError, match=r"columns \['m'\] are missing"):
        build_index(uri, str(tmp_path / "i"), IndexConfig(attributes=("m",)), attributes_uri=items)
    pq.write_table(pa.table({"item_id": ["item-3"] * 2, "n": [1, 2]}), items)
    with pytest.raises(IndexBuildError, match="item_id 'item-3' is there more than once"):
        build_index(uri, str(tmp_path / "i"), config, attributes_uri=items)


def test_attributes_of_other_items_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, items = embeddings(tmp_path / "e", clustered(50)), str(tmp_path / "items.parquet")
    config, out = IndexConfig(attributes=("n",)), str(tmp_path / "i")

    def written(*ids: str) -> None:
        pq.write_table(pa.table({"item_id": [*ids, "other"], "n": range(len(ids) + 1)}), items)

    written(*(f"item-{i}" for i in range(50)))
    build_index(uri, out, config, attributes_uri=items)
    assert not caplog.messages
    written(*(f"item-{i}" for i in range(20)))
    build_index(uri, out, config, attributes_uri=items)
    assert caplog.messages == [
        f"{items}: 30 items are not there, and have none of the attributes ['n']"
    ]
    monkeypatch.setattr("rec.retrieval.build.train", None)  # before anything is trained
    written()
    with pytest.raises(IndexBuildError, match=r"items.parquet: none of the 50 items is there by"):
        build_index(uri, out, config, attributes_uri=items)
    other = IndexConfig(attributes=("n", "m"))
    with pytest.raises(IndexBuildError, match=r"items.parquet: columns \['m'\] are missing"):
        build_index(uri, out, other, attributes_uri=items)


def test_an_item_of_many_vectors_counts_once_by_its_best(tmp_path: Path) -> None:
    """Regions with boxes: the hit says which region it was."""
    vectors = clustered(300)
    ids, interests = [f"item-{i // 5}" for i in range(300)], [i % 5 for i in range(300)]
    boxes = pa.array([[i, i, i + 1.0, i + 1.0] for i in range(300)], pa.list_(pa.float32(), 4))
    uri = embeddings(
        tmp_path / "e", vectors, ids=ids, interests=interests, columns={"box": boxes}, num_parts=4
    )
    config = IndexConfig(attributes=("box",), num_shards=4)
    build_index(uri, str(tmp_path / "i"), config)
    index = Index.open(str(tmp_path / "i"))
    assert index.manifest.config["num_items"] == 60
    queries = clustered(10, seed=4)
    hits = index.search(queries, 20)
    per_item = (queries @ vectors.T).reshape(10, 60, 5)
    order = np.argsort(-per_item.max(axis=2), axis=1)[:, :20]
    assert hits.ids.tolist() == [[f"item-{i}" for i in row] for row in order]
    best = np.take_along_axis(per_item.argmax(axis=2), order, axis=1)
    assert hits.interests.tolist() == best.tolist()
    region = int(order[0, 0]) * 5 + int(best[0, 0])
    assert index.attributes(hits.rows[0, :1])[0]["box"] == [region, region, region + 1, region + 1]
    assert "item-0" not in index.search_ids(["item-0"], 59).ids
    assert [len(rows) for rows in index.locate(["item-3"])] == [5]


def test_vectors_of_an_item_are_located_in_the_order_of_its_interests(tmp_path: Path) -> None:
    interests = [3, 0, 2, 1]
    uri = embeddings(tmp_path / "e", clustered(4), ids=["a"] * 4, interests=interests)
    build_index(uri, str(tmp_path / "i"), IndexConfig(num_shards=2))
    index = Index.open(str(tmp_path / "i"))
    assert index.interests(index.locate(["a"])[0]).tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(index.vector("a"), clustered(4)[1])


def test_repeated_interest_of_an_item_is_refused(tmp_path: Path) -> None:
    uri = embeddings(tmp_path / "e", clustered(4), ids=["a", "a", "a", "b"], interests=[0, 1, 1, 0])
    with pytest.raises(IndexBuildError, match="'a' is there more than once with interest 1"):
        build_index(uri, str(tmp_path / "i"))


def test_a_dictionary_column_can_be_filtered(tmp_path: Path) -> None:
    columns = {"kind": pa.array(["a", "b", None] * 10).dictionary_encode()}
    uri = embeddings(tmp_path / "e", clustered(30), columns=columns)
    tags = pa.array(["x", "y"] * 15).dictionary_encode()
    pq.write_table(
        pa.table({"item_id": [f"item-{i}" for i in range(30)], "tag": tags}), tmp_path / "a.parquet"
    )
    config = IndexConfig(attributes=("kind", "tag"), num_shards=2)
    build_index(uri, str(tmp_path / "i"), config, attributes_uri=str(tmp_path / "a.parquet"))
    index = Index.open(str(tmp_path / "i"))
    for column, value, expected in [("kind", "b", slice(1, 30, 3)), ("tag", "y", slice(1, 30, 2))]:
        hits = index.search(clustered(1), 30, where=Equal(column=column, value=value))
        assert sorted(hits.rows[hits.rows >= 0]) == list(range(30))[expected]


def test_a_part_of_the_table_decodes_no_row_groups_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = (np.arange(1000) % 3 > 0).astype("f4")
    uri = embeddings(tmp_path / "e", clustered(1000), weights=weights, num_parts=1)
    (path,) = Path(uri).rglob("*.parquet")
    for name, rows in (("a", slice(0, 600)), ("b", slice(600, 400))):
        whole = pq.read_table(path).slice(rows.start, rows.stop)
        (tmp_path / "f").mkdir(exist_ok=True)
        pq.write_table(whole, tmp_path / "f" / f"{name}.parquet", row_group_size=90)
    active = clustered(1000)[weights > 0]
    decoded: list[int] = []
    real = pq.ParquetFile.iter_batches

    def counted(self: Any, *sizes: int, **what: Any) -> Any:
        decoded.append(1)
        return real(self, *sizes, **what)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    for start, stop, groups in [(0, 60, 1), (50, 70, 2), (60, 61, 1), (390, 410, 2), (0, 666, 12)]:
        decoded.clear()
        vectors = EmbeddingTable(tmp_path / "f", start, stop).vectors()
        np.testing.assert_array_equal(np.concatenate(list(vectors)), active[start:stop])
        assert len(decoded) == groups
    assert EmbeddingTable(tmp_path / "f").places("item-851") == ["b.parquet row 251"]


def test_a_process_verifies_the_table_once_for_all_its_shards(
    table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified: list[str] = []
    real = artifacts.verify
    monkeypatch.setattr(artifacts, "verify", lambda uri, m: verified.append(uri) or real(uri, m))
    folder_of.cache_clear()
    built(table, tmp_path, factory="Flat", num_shards=5)
    assert verified.count(table) == 2  # by the build, and for its shards
    with pytest.raises(ArtifactError, match="published again meanwhile"):
        folder_of(table, "0" * 16)


class Stalled:
    """A shard that does not answer until it is let go."""

    def __init__(self, shard: Shard) -> None:
        self._shard, self.go = shard, threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shard, name)

    def search(self, *arguments: Any) -> tuple[np.ndarray, np.ndarray]:
        self.go.wait(10)
        return self._shard.search(*arguments)


@pytest.mark.parametrize("exclude", [None, [["item-4000"]]])
def test_a_stalled_shard_gives_a_partial_answer_in_time(
    table: str, tmp_path: Path, exclude: Sequence[Sequence[str]] | None
) -> None:
    index = built(table, tmp_path, factory="Flat", num_shards=3)
    stalled = Stalled(index.parts[1])  # type: ignore[arg-type]
    pool = ThreadPoolExecutor(4)
    slow = Index([index.parts[0], stalled, index.parts[2]], index.manifest, pool=pool)
    started = time.monotonic()
    hits = slow.search(clustered(1), 10, deadline_s=0.2, exclude=exclude)
    assert time.monotonic() - started < 2
    assert (hits.partial, hits.missing_shards) == (True, (1,))
    assert not ((hits.rows >= 2000) & (hits.rows < 4000)).any()
    assert (hits.rows >= 0).all()
    for _ in range(6):  # more than the pool has threads
        hits = slow.search(clustered(1), 10, deadline_s=0.5, exclude=exclude)
        assert hits.missing_shards == (1,)
    stalled.go.set()
    end = time.monotonic() + 30  # the search that was late is soon done
    while (whole := slow.search(clustered(1), 10, deadline_s=10, exclude=exclude)).partial:
        assert time.monotonic() < end
    assert (whole.partial, whole.missing_shards) == (False, ())
    assert (whole.rows == index.search(clustered(1), 10, exclude=exclude).rows).all()
    pool.shutdown()
    with pytest.raises(QueryError, match="needs an index opened with a pool"):
        index.search(clustered(1), 10, deadline_s=1)


def test_a_callers_deadline_makes_no_others_answer_partial(table: str, tmp_path: Path) -> None:
    """Two threads for four shards, one of which is slow when a hurried caller leaves."""
    index = built(table, tmp_path, factory="Flat", num_shards=4)
    slow = Stalled(index.parts[2])  # type: ignore[arg-type]
    pool = ThreadPoolExecutor(2)
    shared = Index([*index.parts[:2], slow, index.parts[3]], index.manifest, pool=pool)
    assert 2 in shared.search(clustered(1), 10, deadline_s=0.3).missing_shards
    letting_go = threading.Timer(0.3, slow.go.set)
    letting_go.start()
    hits = shared.search(clustered(1), 10, deadline_s=60)
    assert hits.missing_shards == ()
    assert (hits.rows == index.search(clustered(1), 10).rows).all()
    for _ in range(50):
        shared.search(clustered(1), 10, deadline_s=0)
        assert not shared.search(clustered(1), 10, deadline_s=60).partial
    letting_go.join()
    pool.shutdown()


class SlowAgain(Stalled):
    """A shard that answers its first search at once and no other in time."""

    num_searches = 0

    def search(self, *arguments: Any) -> tuple[np.ndarray, np.ndarray]:
        self.num_searches += 1
        if self.num_searches > 1:
            self.go.wait(10)
        return self._shard.search(*arguments)


def test_a_second_look_that_is_late_keeps_the_first(tmp_path: Path) -> None:
    """All vectors of the best items are found first, so that few items are left of them."""
    ids = [f"item-{i // 10}" for i in range(600)]
    uri = embeddings(
        tmp_path / "e", clustered(600), ids=ids, interests=[i % 10 for i in range(600)]
    )
    build_index(uri, str(tmp_path / "i"), IndexConfig(num_shards=2))
    index = Index.open(str(tmp_path / "i"))
    slow = [SlowAgain(part) for part in index.parts]  # type: ignore[arg-type]
    pool = ThreadPoolExecutor(4)
    hits = Index(slow, index.manifest, pool=pool).search(clustered(1), 30, deadline_s=1)
    for part in slow:
        part.go.set()
    pool.shutdown()
    assert [part.num_searches for part in slow] == [2, 2]
    assert hits.missing_shards == (0, 1)
    found = hits.ids[0][hits.rows[0] >= 0]
    assert len(found) >= 10
    assert found[:10].tolist() == index.search(clustered(1), 10).ids[0].tolist()


def test_tuned_on_queries_of_another_table(table: str, tmp_path: Path) -> None:
    queries = embeddings(tmp_path / "q", clustered(80, seed=5), ids=[f"u{i}" for i in range(80)])
    config = IndexConfig(factory="IVF16,SQ8", num_queries=30)
    manifest = build_index(table, str(tmp_path / "i"), config, queries_uri=queries)
    assert manifest.metrics["num_queries"] == 30
    assert manifest.metrics["recall@10"] > 0.9
    wrong = embeddings(tmp_path / "w", clustered(10, dim=8))
    with pytest.raises(IndexBuildError, match="queries of 8 values"):
        build_index(table, str(tmp_path / "i"), config, queries_uri=wrong)
