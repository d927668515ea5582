"""Index: answers equal brute force, the recorded recall is true, and bad input is refused."""

from __future__ import annotations

import math
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tables import DIM, brute_force, clustered, embeddings, index_of, unit

from rec import artifacts
from rec.retrieval import ann
from rec.retrieval.build import build_index
from rec.retrieval.changes import Put
from rec.retrieval.errors import FilterError, IndexBuildError, QueryError, UnknownIdError
from rec.retrieval.filters import Equal, Range
from rec.retrieval.index import Index
from rec.retrieval.live import LiveIndex
from rec.retrieval.shards import Shard
from rec.retrieval.spec import IndexConfig, factories, is_uneven, num_bytes, num_lists
from rec.retrieval.table import write_table
from rec.retrieval.threads import omp_threads
from rec.retrieval.tune import recall


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> tuple[Index, np.ndarray]:
    folder = tmp_path_factory.mktemp("flat")
    vectors = clustered(500)
    build_index(embeddings(folder / "e", vectors), str(folder / "i"))
    return Index.open(str(folder / "i")), vectors


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> tuple[Index, np.ndarray]:
    folder = tmp_path_factory.mktemp("lists")
    vectors = clustered(6000)
    config = IndexConfig(factory="IVF64,SQ8", recall_target=0.9, num_queries=200)
    build_index(embeddings(folder / "e", vectors), str(folder / "i"), config)
    return Index.open(str(folder / "i")), vectors


def test_flat_equals_brute_force(flat: tuple[Index, np.ndarray]) -> None:
    index, vectors = flat
    queries = clustered(20, seed=1)
    hits = index.search(queries, 10)
    ids, scores = hits.ids, hits.scores
    expected = brute_force(vectors, queries, 10)
    assert ids.tolist() == [[f"item-{i}" for i in row] for row in expected]
    by_hand = np.take_along_axis(queries @ vectors.T, expected, axis=1)
    np.testing.assert_allclose(scores, by_hand, rtol=1e-5)


@pytest.mark.parametrize("num_zero", [40, 254])
def test_exact_search_among_equal_vectors_is_recorded_as_exact(
    tmp_path: Path, num_zero: int
) -> None:
    """Items that nobody chose yet have zeros, all as near to each other as to anything."""
    vectors = clustered(1000)
    vectors[::3][:num_zero] = 0.0
    manifest = build_index(embeddings(tmp_path / "e", vectors), str(tmp_path / "i"))
    assert manifest.config["factory"] == "Flat"
    assert manifest.metrics["recall@10"] == manifest.metrics["recall@100"] == 1.0


def test_flat_manifest(flat: tuple[Index, np.ndarray]) -> None:
    index, _ = flat
    manifest = index.manifest
    assert manifest.config["factory"] == "Flat"
    assert manifest.config["metric"] == "inner_product"
    assert (manifest.config["dimension"], manifest.config["num_items"]) == (DIM, 500)
    assert manifest.metrics["recall@10"] == manifest.metrics["recall@100"] == 1.0
    assert manifest.lineage["encoder"] == index.encoder_version == "enc-1"
    assert set(manifest.lineage) == {"encoder", "rows", "embedding-table"}
    assert set(manifest.files) == {
        "shard-00000/index.faiss",
        "shard-00000/ids.parquet",
        "search.json",
        "trained.faiss",
    }
    assert (len(index), index.dim, index.version) == (500, DIM, manifest.version)


def test_recorded_recall_is_true(lists: tuple[Index, np.ndarray]) -> None:
    """Over all items, by brute force, recall is what the manifest says of its sample."""
    index, vectors = lists
    metrics = index.manifest.metrics
    truth = brute_force(vectors, vectors, 101)
    ids = index.search(vectors, 101).ids
    numbers = np.array([[int(i.split("-")[1]) if i else -1 for i in row] for row in ids])
    for k in (10, 100):
        hits = []
        for item in range(len(vectors)):
            expected = [i for i in truth[item] if i != item][:k]
            found = [i for i in numbers[item] if i != item][:k]
            hits.append(len(set(expected) & set(found)) / k)
        assert np.mean(hits) == pytest.approx(metrics[f"recall@{k}"], abs=0.03)
    assert metrics["recall@10"] >= 0.88  # the target, less the sample's error
    assert metrics["num_queries"] == 200


def test_recorded_recall_is_that_of_ten_asked_for(tmp_path: Path) -> None:
    """More asked for is more re-ranked: the first ten of a hundred are truer than ten."""
    vectors = np.random.default_rng(0).standard_normal((6000, 32)).astype(np.float32)
    config = IndexConfig(factory="IVF16,PQ8x4fs,Refine(SQ8)", recall_target=0.5)
    build_index(embeddings(tmp_path / "e", vectors), str(tmp_path / "i"), config)
    index = Index.open(str(tmp_path / "i"))
    queries = np.random.default_rng(1).standard_normal((2000, 32)).astype(np.float32)
    truth = brute_force(vectors, queries, 10)
    measured = recall(index.search(queries, 10).rows, truth)
    assert index.manifest.metrics["recall@10"] == pytest.approx(measured, abs=0.03)


def test_nprobe_is_the_least_that_reaches_the_target(lists: tuple[Index, np.ndarray]) -> None:
    index, _ = lists
    curve = index.manifest.metrics["curve"]
    reached = [point["nprobe"] for point in curve if point["reached"]]
    missed = [point["nprobe"] for point in curve if not point["reached"]]
    assert all(point["recall@10"] >= 0.9 for point in curve if point["reached"])
    assert index.manifest.config["nprobe"] == min(reached) == max(missed) + 1
    assert index.parts[0].ann.effort.nprobe == min(reached)


def test_unreachable_target_takes_the_best_and_says_so(tmp_path: Path) -> None:
    uri = embeddings(tmp_path / "e", clustered(4000))
    config = IndexConfig(factory="IVF16,PQ2", recall_target=0.99, num_queries=100)
    manifest = build_index(uri, str(tmp_path / "i"), config)
    curve = manifest.metrics["curve"]
    assert curve[-1]["nprobe"] == 16
    best = max(point["recall@10"] for point in curve)
    assert best < 0.99
    chosen = next(p for p in curve if p["nprobe"] == manifest.config["nprobe"])
    assert chosen["recall@10"] == best
    assert manifest.metrics["recall@10"] < manifest.metrics["recall_target"]


@pytest.mark.parametrize(
    ("kind", "bytes_a_value"),
    [("PQ16x4fs,Refine(SQ8)", 1.3), ("PQ16x4fs,RFlat", 4.3), ("SQ8", 1.0), ("Flat", 4.0)],
)
def test_memory_is_what_was_estimated(tmp_path: Path, kind: str, bytes_a_value: float) -> None:
    num, dim = 30_000, 32
    uri = embeddings(tmp_path / "e", clustered(num, dim))
    factory = f"IVF{num_lists(num, num, kind)},{kind}"
    build_index(uri, str(tmp_path / "i"), IndexConfig(factory=factory, num_queries=50))
    index = Index.open(str(tmp_path / "i"))
    shard = index.parts[0]
    assert isinstance(shard, Shard)
    keys = shard.keys.nbytes + shard._by_id.nbytes
    held = len(shard.ann.to_bytes()) + keys + shard._lists.nbytes
    assert num_bytes(num, dim, bytes_a_value, keys / num) == pytest.approx(held, rel=0.15)


def test_recall_against_plain_loop() -> None:
    rng = np.random.default_rng(0)
    truth = np.array([rng.permutation(30)[:5] for _ in range(40)])
    found = np.array([rng.permutation(30)[:5] for _ in range(40)])
    found[3, 2:] = -1
    truth[4, 3:] = -1
    truth[5] = -1
    expected = []
    for t, f in zip(truth.tolist(), found.tolist(), strict=True):
        real = {i for i in t if i >= 0}
        expected.append(len(real & set(f)) / len(real) if real else 0.0)
    assert recall(found, truth) == pytest.approx(np.mean(expected))


@pytest.mark.parametrize("which", ["flat", "lists"])
def test_search_by_id_leaves_the_item_out(which: str, request: pytest.FixtureRequest) -> None:
    index, vectors = request.getfixturevalue(which)
    hits = index.search_ids(["item-7", "item-123"], 5)
    ids, scores = hits.ids, hits.scores
    assert ids.shape == scores.shape == (2, 5)
    assert "item-7" not in ids[0]
    assert "item-123" not in ids[1]
    assert (np.diff(scores, axis=1) <= 0).all()
    if which == "flat":
        truth = brute_force(vectors, vectors[[7, 123]], 6)[:, 1:]
        assert ids.tolist() == [[f"item-{i}" for i in row] for row in truth]


@pytest.mark.parametrize(("which", "tolerance"), [("flat", 0), ("lists", 0.02)])
def test_vector_of_an_item(which: str, tolerance: float, request: pytest.FixtureRequest) -> None:
    index, vectors = request.getfixturevalue(which)
    for row in (0, 1, 99, len(vectors) - 1):
        np.testing.assert_allclose(index.vector(f"item-{row}"), vectors[row], atol=tolerance)
    assert "item-0" in index
    assert "item-0x" not in index


def test_exclude_against_brute_force(flat: tuple[Index, np.ndarray]) -> None:
    index, vectors = flat
    queries = clustered(3, seed=2)
    order = brute_force(vectors, queries, 500)
    exclude = [[f"item-{i}" for i in order[0][:4]], [], ["not-there", f"item-{order[2][1]}"]]
    ids = index.search(queries, 6, exclude=exclude).ids
    for row in range(3):
        expected = [f"item-{i}" for i in order[row] if f"item-{i}" not in exclude[row]][:6]
        assert ids[row].tolist() == expected


def test_fewer_items_than_k(flat: tuple[Index, np.ndarray]) -> None:
    index, _ = flat
    hits = index.search(clustered(2), 1000)
    ids, scores = hits.ids, hits.scores
    assert all(i is not None for i in ids[:, :500].ravel())
    assert all(i is None for i in ids[:, 500:].ravel())
    assert np.isneginf(scores[:, 500:]).all()


@pytest.mark.parametrize("rows", [[], [3], [7, 0, 7, 119, 40]])
def test_bytes_of_ids_are_the_ids(flat: tuple[Index, np.ndarray], rows: list[int]) -> None:
    index, _ = flat
    twice = Index((*index.parts, *index.parts), index.manifest)
    for one in (index, twice):
        lengths, data = one.id_bytes(np.array(rows, np.int64))
        ends = np.cumsum(lengths).tolist()
        found = [data[start:end].decode() for start, end in zip([0, *ends], ends, strict=False)]
        assert found == one.ids(np.array(rows, np.int64)).tolist()


def test_no_queries(flat: tuple[Index, np.ndarray]) -> None:
    hits = flat[0].search(np.zeros((0, DIM), "f4"), 3)
    ids, scores = hits.ids, hits.scores
    assert ids.shape == scores.shape == (0, 3)


def test_searching_threads_agree_and_leave_openmp_as_it_was(
    flat: tuple[Index, np.ndarray],
) -> None:
    index, vectors = flat
    expected = index.search(vectors[:50], 5).ids.tolist()
    answers: list[object] = []
    settings: list[int] = []

    def work() -> None:
        for _ in range(20):
            answers.append(index.search(vectors[:50], 5).ids.tolist())
        settings.append(faiss.omp_get_max_threads())

    before = faiss.omp_get_max_threads()
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 80
    assert all(answer == expected for answer in answers)
    assert faiss.omp_get_max_threads() == before
    with omp_threads(3):
        assert faiss.omp_get_max_threads() == 3
    assert faiss.omp_get_max_threads() == before


def test_batches_and_row_groups_do_not_change_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streamed in batches of 100 rows as in one."""
    uri = embeddings(tmp_path / "e", clustered(1000), num_parts=7)
    config = IndexConfig(factory="IVF8,Flat", num_queries=50)
    whole = build_index(uri, str(tmp_path / "i"), config)
    monkeypatch.setattr("rec.retrieval.table._BATCH_ROWS", 100)
    pieces = build_index(uri, str(tmp_path / "j"), config)
    assert whole.files["shard-00000/ids.parquet"] == pieces.files["shard-00000/ids.parquet"]
    assert whole.metrics["recall@10"] == pieces.metrics["recall@10"]
    queries = clustered(10, seed=5)
    a = Index.open(str(tmp_path / "i")).search(queries, 10).ids
    assert a.tolist() == Index.open(str(tmp_path / "j")).search(queries, 10).ids.tolist()


def test_inactive_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    weights = np.ones(100, "f4")
    weights[::4] = 0
    manifest = build_index(
        embeddings(tmp_path / "e", clustered(100), weights=weights), str(tmp_path / "i")
    )
    assert (manifest.config["num_items"], manifest.config["num_inactive"]) == (75, 25)
    index = Index.open(str(tmp_path / "i"))
    assert "item-0" not in index
    np.testing.assert_array_equal(index.vector("item-1"), clustered(100)[1])


def test_one_item(tmp_path: Path) -> None:
    build_index(embeddings(tmp_path / "e", clustered(1), num_parts=1), str(tmp_path / "i"))
    index = Index.open(str(tmp_path / "i"))
    assert index.search(clustered(1), 2).ids.tolist() == [["item-0", None]]


@pytest.mark.parametrize(
    ("num_rows", "settings", "expected"),
    [
        (20_000, {}, "Flat"),
        (20_001, {}, "IVF128,PQ64x4fs,Refine(SQ8)"),
        (200_000, {}, "IVF512,PQ64x4fs,Refine(SQ8)"),
        (1_000_000, {"recall_target": 0.99}, "IVF1024,PQ64x4fs,RFlat"),
        (20_001, {"updates_per_day": 0.3}, "IVF256,SQ8"),  # 512 lists: fewer than 39 points each
        (1_000_000, {"recall_target": 0.99, "memory_gb": 0.3}, "IVF4096,SQ8"),
        (1_000_000, {"recall_target": 0.998}, "IVF4096,Flat"),
        (1_000_000, {"recall_target": 1}, "Flat"),
        (1_000_000, {"memory_gb": 0.17}, "IVF4096,SQ8"),
        (20_000, {"memory_gb": 0.011}, "Flat"),
        (20_000, {"memory_gb": 0.01}, "IVF128,PQ64x4fs,Refine(SQ8)"),
        (20_000, {"memory_gb": 0.0038}, "IVF256,SQ8"),
        (1_000_000, {"recall_target": 1, "memory_gb": 0.51}, "Flat"),
        (1_000_000, {"updates_per_day": 0.3}, "IVF4096,SQ8"),
        (1_000_000, {"factory": "HNSW16"}, "HNSW16"),
    ],
)
def test_auto_factory(num_rows: int, settings: dict[str, Any], expected: str) -> None:
    assert factories(num_rows, 128, IndexConfig(**settings))[0] == expected


@pytest.mark.parametrize(
    ("num_rows", "settings", "least"),
    [
        (1_000_000, {"memory_gb": 0.1}, "0.162 GiB"),
        (10, {"memory_gb": 1e-9}, "2.08e-06 GiB"),
        (1_000_000, {"recall_target": 1, "memory_gb": 0.3}, "0.507 GiB"),
    ],
)
def test_too_little_memory_is_refused(num_rows: int, settings: dict[str, Any], least: str) -> None:
    message = f"memory_gb is {settings['memory_gb']}.*{num_rows} rows.* at least {least}"
    with pytest.raises(IndexBuildError, match=re.escape(message).replace(r"\.\*", ".*")):
        factories(num_rows, 128, IndexConfig(**settings))


def test_memory_is_said_and_a_compaction_never_refused_for_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri, out = embeddings(tmp_path / "e", clustered(2000)), str(tmp_path / "i")
    with pytest.raises(IndexBuildError, match="memory_gb is 1e-05"):
        build_index(uri, out, IndexConfig(memory_gb=1e-5))
    manifest = build_index(uri, out, IndexConfig(memory_gb=0.0003))
    held = sum(e.num_bytes for name, e in manifest.files.items() if name.endswith("index.faiss"))
    assert held / 2**30 < manifest.metrics["memory_gb"] < 0.0003
    vectors = clustered(8000, seed=1)
    live = LiveIndex(out, tmp_path / "log", compact_at=None, grace_s=0)
    live.apply([Put(f"new-{n}", vector) for n, vector in enumerate(vectors)])
    grown = live.compact()
    assert grown is not None
    assert grown.config["factory"].endswith("SQ8")
    assert grown.metrics["memory_gb"] > manifest.metrics["memory_gb"]
    assert "memory_gb" in caplog.text
    live.close()


def test_auto_goes_on_to_a_stronger_kind() -> None:
    kinds = [name.split(",", 1)[1] for name in factories(200_000, 64, IndexConfig())]
    assert kinds == ["PQ32x4fs,Refine(SQ8)", "PQ32x4fs,RFlat", "SQ8", "Flat"]
    assert factories(200_000, 63, IndexConfig())[0].endswith("SQ8")


@pytest.mark.parametrize(
    ("spread", "tail", "uneven"), [(0, 0, False), (0.2, 0, False), (0.5, 0, True), (0, 1.5, True)]
)
def test_auto_keeps_full_vectors_of_uneven_norms(spread: float, tail: float, uneven: bool) -> None:
    rng = np.random.default_rng(0)
    norms = rng.pareto(tail, 2000) if tail else rng.lognormal(0, spread, 2000)
    vectors = unit(rng.standard_normal((2000, 32))) * norms[:, None]
    assert is_uneven(vectors.astype(np.float32)) == uneven
    assert not is_uneven(np.zeros((5, 32), np.float32))
    kinds = [name.split(",", 1)[1] for name in factories(200_000, 64, IndexConfig(), uneven=True)]
    assert kinds == ["Flat"]
    small = IndexConfig(memory_gb=0.03)
    assert factories(200_000, 64, small, uneven=True) == factories(200_000, 64, small)


def test_short_vectors_are_found_among_long_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rec.retrieval.spec.FLAT_UP_TO", 1000)
    rng = np.random.default_rng(0)
    norms = rng.pareto(1.5, 6000)
    vectors = (clustered(6000) * norms[:, None]).astype(np.float32)
    uri = embeddings(tmp_path / "e", vectors, columns={"norm": norms.tolist()})
    config = IndexConfig(attributes=("norm",), num_queries=100)
    build_index(uri, str(tmp_path / "i"), config)
    index, queries = Index.open(str(tmp_path / "i")), clustered(50, seed=1)
    for share in (0.5, 0.1):
        rows = np.flatnonzero(norms < (bound := float(np.quantile(norms, share))))
        truth = rows[brute_force(vectors[rows], queries, 10)]
        hits = index.search(queries, 10, where=Range(column="norm", below=bound))
        assert recall(hits.rows, truth) >= 0.98


def test_auto_tries_on_until_one_does_without_strain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight four-bit codes are too coarse for these sixteen dimensions where few candidates are
    re-ranked: the first two kinds are followed by the third; of those tried only one is left."""
    monkeypatch.setattr("rec.retrieval.spec.FLAT_UP_TO", 1000)
    monkeypatch.setattr("rec.retrieval.tune._K_FACTORS", (1, 2))
    uri = embeddings(tmp_path / "e", clustered(4000))
    config = IndexConfig(recall_target=0.97, num_queries=100)
    manifest = build_index(uri, str(tmp_path / "i"), config)
    first = factories(4000, DIM, config)[0]
    assert first == "IVF64,PQ8x4fs,Refine(SQ8)"
    chosen = [
        point
        for point in manifest.metrics["curve"]
        if all(point[name] == manifest.config[name] for name in ("nprobe", "k_factor", "ef"))
    ]
    assert chosen[0]["reached"]
    assert manifest.config["factory"] == "IVF64,SQ8"
    assert manifest.metrics["recall@10"] > 0.95
    assert [p.name for p in (tmp_path / "i").glob("v-*")] == [manifest.root]


@pytest.fixture(scope="module", params=["clustered", "constant"])
def scanned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Four-bit codes, which FAISS scans by a table of eight-bit sums."""
    folder = tmp_path_factory.mktemp("scanned")
    vectors = clustered(2000) if request.param == "clustered" else np.ones((2000, DIM), "f4")
    halves = [["a", "b"][i % 2] for i in range(2000)]
    config = IndexConfig(
        factory="IVF8,PQ8x4fs,RFlat", attributes=("half",), num_queries=10, recall_target=0.5
    )
    uri = embeddings(folder / "e", vectors, columns={"half": halves})
    build_index(uri, str(folder / "i"), config)
    return Index.open(str(folder / "i"))


@pytest.mark.parametrize("value", [0, 1e-45, 1e-38, 1e-30])
@pytest.mark.parametrize("k", [3, 100])
def test_a_query_of_next_to_nothing_finds_any_items(
    scanned: Index, value: float, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rec.retrieval.costs.CHEAP_VALUES", 0)  # so that lists are looked into
    monkeypatch.setattr("rec.retrieval.lists.ns_to_compare", lambda *_: math.inf)
    queries = np.vstack([clustered(1, seed=1), np.full((1, DIM), value, "f4")])
    out = [["item-0", "item-7"], scanned.search(queries, 2).ids[1].tolist()]
    for where in (None, Equal(column="half", value="a")):
        for exclude in (None, out):
            ids = scanned.search(queries, k, where=where, exclude=exclude).ids
            scores = scanned.search(queries, k, where=where, exclude=exclude).scores
            for row in range(2):
                assert len({*ids[row]} - {None}) == k
                assert where is None or all(int(i[5:]) % 2 == 0 for i in ids[row])
                assert exclude is None or not {*ids[row]} & {*out[row]}
            np.testing.assert_allclose(scores[1], 0, atol=1e-28)


# what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_query_not_finite(flat: tuple[Index, np.ndarray], bad: float) -> None:
    queries = clustered(3)
    queries[1, 4] = bad
    with pytest.raises(QueryError, match="query 1 has NaN or infinity"):
        flat[0].search(queries, 5)


@pytest.mark.parametrize("bad", [3e38, -3e38, 1.1e18])
def test_query_whose_inner_products_overflow(flat: tuple[Index, np.ndarray], bad: float) -> None:
    queries = clustered(3)
    queries[1, 4] = bad
    norm = re.escape(f"{abs(bad):.3g}")
    with pytest.raises(QueryError, match=rf"query 1 has a norm of {norm}, expected at most 1e\+18"):
        flat[0].search(queries, 5)


def test_the_longest_vectors_are_taken(tmp_path: Path) -> None:
    vectors = clustered(500) * np.float32(0.99e18)
    index = index_of(tmp_path, vectors)
    hits = index.search(vectors, 3)  # a sum of all their squares overflows
    assert hits.ids[:, 0].tolist() == [f"item-{i}" for i in range(500)]
    assert np.isfinite(hits.scores).all()


def test_vectors_whose_inner_products_overflow_are_refused_by_row(tmp_path: Path) -> None:
    vectors = clustered(12)
    vectors[9] = 3e38
    uri = embeddings(tmp_path / "e", vectors)
    message = r"part-00002.parquet, row 1: the vector has a norm of 1.2e\+39, expected at most 1e"
    with pytest.raises(IndexBuildError, match=message):
        build_index(uri, str(tmp_path / "i"))


@pytest.mark.parametrize("shape", [(2, DIM + 1), (DIM,), (1, 1, DIM)])
def test_query_of_wrong_shape(flat: tuple[Index, np.ndarray], shape: tuple[int, ...]) -> None:
    with pytest.raises(QueryError, match=r"expected \(B, 16\): the index's dimension is 16"):
        flat[0].search(np.zeros(shape, "f4"), 5)


def test_query_not_numbers(flat: tuple[Index, np.ndarray]) -> None:
    with pytest.raises(QueryError, match="not numbers"):
        flat[0].search(np.array([["a"] * DIM]), 5)


def test_query_of_other_kinds(flat: tuple[Index, np.ndarray]) -> None:
    index, vectors = flat
    with pytest.raises(QueryError, match=r"not numbers.*complex"):
        index.search(vectors[:1] + 1j, 5)
    with pytest.raises(QueryError, match="not numbers"):
        index.search(np.full((1, DIM), "1.5"), 5)
    with pytest.raises(QueryError, match="query 0 has NaN or infinity"):
        index.search(np.full((1, DIM), 1e300), 5)
    expected = index.search(vectors[:2], 5).rows
    for queries in (vectors[:2].astype(float), vectors[:2].tolist(), vectors[:2].astype(">f4")):
        assert (index.search(queries, 5).rows == expected).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("where", [{"op": "equal", "column": "a", "value": 1}, "a = 1", 0, []])
def test_where_that_is_no_filter(flat: tuple[Index, np.ndarray], where: Any) -> None:
    with pytest.raises(FilterError, match=f"where is of type {type(where).__name__}, expected"):
        flat[0].search(clustered(1), 5, where=where)


@pytest.mark.parametrize("deadline_s", [math.inf, math.nan, -1, 1e9, "1", 1j])
def test_deadline_that_is_none(flat: tuple[Index, np.ndarray], deadline_s: Any) -> None:
    with ThreadPoolExecutor(1) as pool:
        index = Index(flat[0].parts, flat[0].manifest, pool=pool)
        with pytest.raises(QueryError, match=r"deadline_s is .*, expected seconds, 0 to 86400"):
            index.search(clustered(1), 5, deadline_s=deadline_s)


@pytest.mark.parametrize("k", [0, -1, 10_001, 100_000])
def test_k_out_of_range(flat: tuple[Index, np.ndarray], k: int) -> None:
    with pytest.raises(QueryError, match=f"k is {k}, expected 1 to 10000"):
        flat[0].search(clustered(1), k)


def test_unknown_id(flat: tuple[Index, np.ndarray]) -> None:
    for call in (flat[0].vector, lambda i: flat[0].search_ids(["item-1", i], 3)):
        with pytest.raises(UnknownIdError, match="no item 'item-500'"):
            call("item-500")


def test_ids_that_are_no_list_of_texts(flat: tuple[Index, np.ndarray]) -> None:
    index, vectors = flat
    for exclude in (["item-0"], "a", 5, [[5]], [None], [["item-0", *range(9)]]):
        with pytest.raises(QueryError, match=r"list of ids|expected str"):
            index.search(vectors[:1], 3, exclude=exclude)  # type: ignore[arg-type]
    for ids in ("item-0", [5], 5):
        with pytest.raises(QueryError, match=r"list of ids|expected str"):
            index.search_ids(ids, 3)  # type: ignore[arg-type]


def test_exclude_of_wrong_length(flat: tuple[Index, np.ndarray]) -> None:
    with pytest.raises(QueryError, match="1 lists of excluded ids for 2 queries"):
        flat[0].search(clustered(2), 3, exclude=[["a"]])
    with pytest.raises(QueryError, match="10001 excluded ids"):
        flat[0].search(clustered(1), 3, exclude=[["a"] * 10_001])


@pytest.mark.parametrize(
    "name", ["shard-00000/index.faiss", "shard-00000/ids.parquet", "search.json"]
)
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_altered_file_is_refused_by_name(tmp_path: Path, name: str, damage: str) -> None:
    uri = str(tmp_path / "i")
    manifest = build_index(embeddings(tmp_path / "e", clustered(50)), uri)
    path = Path(uri) / manifest.root / name
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "truncate":
        path.write_bytes(data[:-10])
    else:
        path.unlink()
    with pytest.raises(artifacts.ArtifactError, match=name):
        Index.open(uri)


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    build_index(embeddings(tmp_path / "e", clustered(50)), str(tmp_path / "i"))
    build_index(embeddings(tmp_path / "f", clustered(60)), str(tmp_path / "j"))
    staged = tmp_path / "mix"
    staged.mkdir()
    ones = [artifacts.open_artifact(str(tmp_path / name), "index") for name in "ij"]
    (staged / "shard-00000").mkdir()
    for name, one in (("shard-00000/index.faiss", 0), ("shard-00000/ids.parquet", 1)):
        (staged / name).write_bytes((ones[one][1] / name).read_bytes())
    (staged / "search.json").write_text("{}")
    artifacts.publish(staged, str(tmp_path / "k"), "index", config=ones[0][0].config)
    with pytest.raises(
        artifacts.ArtifactError, match="60 ids and 60 rows of attributes; build the index again"
    ):
        Index.open(str(tmp_path / "k"))


@pytest.mark.parametrize("name", ["dimension", "num_rows", "num_shards", "max_vectors_per_item"])
@pytest.mark.parametrize("value", [None, "16", 0])
def test_a_manifest_that_does_not_say_what_an_index_needs(
    tmp_path: Path, name: str, value: Any
) -> None:
    uri = str(tmp_path / "i")
    manifest = build_index(embeddings(tmp_path / "e", clustered(50)), uri)
    manifest.config[name] = value
    if value is None:
        del manifest.config[name]
    (tmp_path / "i" / "manifest.json").write_text(manifest.to_json())
    with pytest.raises(artifacts.ArtifactError, match=rf"i/manifest\.json: {name} of .* {value!r}"):
        Index.open(uri)


def test_another_models_index_is_refused(tmp_path: Path) -> None:
    uri = str(tmp_path / "i")
    build_index(embeddings(tmp_path / "e", clustered(50)), uri)
    assert Index.open(uri, model="enc-1").encoder_version == "enc-1"
    with pytest.raises(artifacts.ArtifactError, match=f"{uri}: holds .* enc-1, .* from enc-2"):
        Index.open(uri, model="enc-2")


def test_empty_table(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="embedding table is empty"):
        build_index(embeddings(tmp_path / "e", clustered(0), num_parts=1), str(tmp_path / "i"))


def test_no_table(tmp_path: Path) -> None:
    with pytest.raises(artifacts.ArtifactError, match="expected a published 'embedding-table'"):
        build_index(str(tmp_path / "nowhere"), str(tmp_path / "i"))


def test_a_table_written_again_clears_the_older_away(tmp_path: Path) -> None:
    uri, roots = str(tmp_path / "e"), list[str]()
    for number in range(3):
        roots.append(write_table(uri, ["a", "b"], clustered(2, seed=number)).root)
        for path in tmp_path.rglob("*"):  # as if hours had passed
            os.utime(path, (0, 0))
    assert {path.name for path in (tmp_path / "e").glob("v-*")} == set(roots[1:])


def test_duplicate_ids_name_both_places(tmp_path: Path) -> None:
    ids = [f"item-{i}" for i in range(30)]
    ids[25] = "item-3"
    uri = embeddings(tmp_path / "e", clustered(30), ids=ids)
    message = r"'item-3' .* \(part-00000.parquet row 3, part-00002.parquet row 5\)"
    with pytest.raises(ValueError, match=message):
        build_index(uri, str(tmp_path / "i"))
    assert not (tmp_path / "i" / "manifest.json").exists()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_in_the_table_names_partition_and_row(tmp_path: Path, bad: float) -> None:
    vectors = clustered(30)
    vectors[14, 2] = bad
    weights = np.ones(30, "f4")
    weights[11] = 0  # row numbers are the file's own, not those of the active rows
    uri = embeddings(tmp_path / "e", vectors, weights=weights)
    with pytest.raises(ValueError, match=r"part-00001.parquet, row 4: .* NaN"):
        build_index(uri, str(tmp_path / "i"))


def _one_part(folder: Path, table: pa.Table) -> str:
    (folder / "parts").mkdir(parents=True)
    pq.write_table(table, folder / "parts" / "part-0.parquet")
    artifacts.seal(str(folder), "parts", "embedding-table")
    return str(folder)


def test_ragged_vectors_null_ids_and_missing_columns(tmp_path: Path) -> None:
    good = pa.table(
        {
            "id": ["a", "b"],
            "interest": pa.array([0, 0], pa.int32()),
            "weight": pa.array([1, 1], pa.float32()),
            "vector": pa.array([[1.0, 0.0], [1.0]], pa.list_(pa.float32())),
        }
    )
    with pytest.raises(ValueError, match="row 1: a vector of 1 values, expected 2"):
        build_index(_one_part(tmp_path / "ragged", good), str(tmp_path / "i"))
    for row, ids in ((0, [None, "b"]), (1, ["b", ""])):
        unnamed = good.set_column(0, "id", pa.array(ids))
        with pytest.raises(IndexBuildError, match=f"part-0.parquet, row {row}: the id is empty"):
            build_index(_one_part(tmp_path / f"unnamed-{row}", unnamed), str(tmp_path / "i"))
    with pytest.raises(ValueError, match=r"columns \['weight'\] are missing"):
        build_index(_one_part(tmp_path / "lacks", good.drop(["weight"])), str(tmp_path / "i"))


@pytest.mark.parametrize(
    "ids", [pa.array([12, 34]), pa.array(["12", "34"]).dictionary_encode()], ids=["int", "dict"]
)
def test_ids_that_are_numbers_or_encoded_become_texts(tmp_path: Path, ids: pa.Array) -> None:
    table = pa.table(
        {
            "id": ids,
            "interest": pa.array([0, 0], pa.int32()),
            "weight": pa.array([1, 1], pa.float32()),
            "vector": pa.array([[1.0, 0.0], [0.0, 1.0]], pa.list_(pa.float32())),
        }
    )
    build_index(_one_part(tmp_path / "e", table), str(tmp_path / "i"))
    assert Index.open(str(tmp_path / "i")).ids(np.arange(2)).tolist() == ["12", "34"]


@pytest.mark.parametrize("factory", ["IVF", "Nonsense", "IVF4,PQ3", "IVF4096,Flat"])
def test_factory_that_faiss_refuses(tmp_path: Path, factory: str) -> None:
    uri = embeddings(tmp_path / "e", clustered(300))
    with pytest.raises(ValueError, match=factory):
        build_index(uri, str(tmp_path / "i"), IndexConfig(factory=factory))


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        ("IDMap,Flat", "add does not make sense"),
        ("IVF4,Flat,IDMap2", "add does not make sense"),
        ("NSG8", "does not support incremental addition"),
        ("IVF4,FlatDedup", "not implemented"),
        ("IVF4,RQ4x4fs", "are not decoded unless re-ranked"),
        ("IVF4,PQ8x4fs", "are not decoded unless re-ranked"),
        ("OPQ8,IVF4_HNSW8,PQ8x4fs", "are not decoded unless re-ranked"),
        ("HNSW8_2+PQ4", "search params not supported"),
        ("ZnLattice2x4_4", "no code storage"),
        ("OPQ8", "could not parse"),
    ],
)
def test_factory_of_what_cannot_be_used(tmp_path: Path, factory: str, reason: str) -> None:
    uri = embeddings(tmp_path / "e", clustered(400))
    with pytest.raises(IndexBuildError, match=f"{re.escape(factory)}.*{reason}"):
        build_index(uri, str(tmp_path / "i"), IndexConfig(factory=factory))
    assert not list((tmp_path / "i").glob("*"))


def test_k_of_other_kinds(tmp_path: Path) -> None:
    index = index_of(tmp_path, clustered(30))
    assert index.search(clustered(1), np.int64(3)).rows.shape == (1, 3)  # type: ignore[arg-type]
    with pytest.raises(QueryError, match=r"k is 3\.5, expected a whole number"):
        index.search(clustered(1), 3.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("factory", ["Flat", "IVF8,SQ8", "IVF8,PQ4x4fs,RFlat", "HNSW8"])
def test_what_is_read_is_aligned_and_finds_the_same(tmp_path: Path, factory: str) -> None:
    vectors = clustered(1000)
    made = ann.Ann.make(factory, DIM)
    made.train(vectors)
    made.add(vectors)
    made.write(str(tmp_path / "index.faiss"))
    read = ann.Ann.read(str(tmp_path / "index.faiss"))
    assert read._moved
    assert all(codes.ctypes.data % 64 == 0 for codes in read._moved)
    for found, expected in zip(
        read.search(vectors[:9], 5), made.search(vectors[:9], 5), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    again = ann.Ann.from_bytes(read.to_bytes())
    np.testing.assert_array_equal(again.search(vectors[:9], 5)[0], read.search(vectors[:9], 5)[0])
    for mmap in (False, True):
        read = ann.Ann.read(str(tmp_path / "index.faiss"), mmap)
        with pytest.raises(ValueError, match="takes no more rows"):
            read.add(vectors)


def test_a_hundred_and_more_are_found_as_surely_as_ten(tmp_path: Path) -> None:
    """Vectors of few dimensions in truth: a hundred stand in many more lists than ten."""
    rng = np.random.default_rng(5)
    num, dim = 22_000, 24
    vectors = 0.3 * rng.standard_normal((num, 5)) @ rng.standard_normal((5, dim))
    vectors += 0.05 * rng.standard_normal((num, dim)) + 2 / dim**0.5 * rng.standard_normal(dim)
    vectors = unit(vectors)
    write_table(str(tmp_path / "e"), [f"item-{n}" for n in range(num)], vectors)
    config = IndexConfig(recall_target=0.98)
    manifest = build_index(str(tmp_path / "e"), str(tmp_path / "i"), config)
    assert manifest.metrics["recall@100"] >= 0.97
    index = Index.open(str(tmp_path / "i"))
    queries = vectors[rng.choice(num, 300, replace=False)]
    truth = brute_force(vectors, queries, 1000)
    for k in (10, 20, 50, 100, 200, 300, 500, 1000):
        found = index.search(queries, k).rows
        shares = [len(set(a) & set(b)) / k for a, b in zip(found, truth[:, :k], strict=True)]
        assert np.mean(shares) >= 0.97, k
    # ten cost what they did
    (ann,) = (part.ann for part in index.parts if isinstance(part, Shard))
    assert ann.effort.at(10).nprobe == manifest.config["nprobe"]
    assert ann.enough_for >= 10
