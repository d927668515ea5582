"""A live index agrees with brute force over what it should hold, whatever happens in between."""

from __future__ import annotations

import json
import math
import resource
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tables import DIM, brute_force, clustered, embeddings

from rec import artifacts
from rec.retrieval import known_log, versions
from rec.retrieval.build import build_index
from rec.retrieval.changes import Change, Delete, Put, check, decode, encode, table
from rec.retrieval.errors import ChangeError, IndexBuildError, LogError, SettingError
from rec.retrieval.export import export
from rec.retrieval.filters import All, Equal, Range
from rec.retrieval.index import Index
from rec.retrieval.live import LiveIndex
from rec.retrieval.spec import IndexConfig
from rec.retrieval.tune import recall

LANGUAGES = ("en", "fr", None)
CONFIG = IndexConfig(attributes=("language", "age"), num_shards=2)
# one list of full vectors: exact, but on the way of inverted lists
LISTS = CONFIG.model_copy(update={"factory": "IVF1,Flat"})
# several lists, and codes: exact where it is asked for, over what the index stores
SEVERAL = CONFIG.model_copy(update={"factory": "IVF4,Flat"})
CODES = CONFIG.model_copy(update={"factory": "IVF4,SQ8"})


class Model:
    """What the index should hold, as a dictionary, and the plain search of it."""

    def __init__(self) -> None:
        self.items: dict[str, tuple[np.ndarray, dict[str, Any]]] = {}

    def apply(self, changes: list[Change]) -> None:
        for change in changes:
            self.items.pop(change.item_id, None)
            if isinstance(change, Put):
                assert isinstance(change.attributes, dict)  # of all its vectors
                self.items[change.item_id] = (
                    np.atleast_2d(change.vectors),
                    dict(change.attributes),
                )

    def search(self, query: np.ndarray, k: int, language: str | None, out: set[str]) -> list[float]:
        """The scores of the k best items, by their best vectors."""
        scores = [
            float((vectors @ query).max())
            for item_id, (vectors, attributes) in self.items.items()
            if item_id not in out and (language is None or attributes.get("language") == language)
        ]
        return sorted(scores, reverse=True)[:k]


def start(folder: Path, num_items: int = 60, config: IndexConfig = CONFIG) -> Model:
    """Publish a first version and return what it holds."""
    vectors = clustered(num_items)
    languages = [LANGUAGES[i % 3] for i in range(num_items)]
    columns = {"language": languages, "age": list(range(num_items))}
    uri = embeddings(folder / "e", vectors, columns=columns)
    build_index(uri, str(folder / "i"), config)
    model = Model()
    for i in range(num_items):
        model.items[f"item-{i}"] = (vectors[i : i + 1], {"language": languages[i], "age": i})
    return model


def live(folder: Path, **how: Any) -> LiveIndex:
    return LiveIndex(
        str(folder / "i"), folder / "log", **{"compact_at": None, "compact_least": 0, **how}
    )


def some_changes(rng: np.random.Generator, model: Model) -> list[Change]:
    changes: list[Change] = []
    for _ in range(rng.integers(1, 4)):
        known = sorted(model.items) or ["item-0"]
        fresh = f"new-{rng.integers(40)}"
        item_id = fresh if rng.random() < 0.4 else known[rng.integers(len(known))]
        if rng.random() < 0.4:
            changes.append(Delete(item_id))
        else:
            vectors = rng.standard_normal((rng.integers(1, 4), DIM)).astype("f4") / 4
            language = LANGUAGES[rng.integers(3)]
            changes.append(Put(item_id, vectors, {"language": language, "age": 1}))
    return changes


def stored(index: LiveIndex, model: Model) -> Model:
    """The model with the vectors that the index has, near those that it was given."""
    known = Model()
    ids = sorted(model.items)
    if not ids:
        return known
    rows = index.index.locate(ids)
    vectors = index.index.reconstruct(np.concatenate(rows))  # one by one, 1,000 steps take a minute
    given = np.concatenate([model.items[item_id][0] for item_id in ids])
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(given, axis=1)
    assert ((vectors * given).sum(axis=1) > 0.9 * norms).all()
    of_items = np.split(vectors, np.cumsum([len(found) for found in rows])[:-1])
    for item_id, found in zip(ids, of_items, strict=True):
        known.items[item_id] = found, model.items[item_id][1]
    return known


def agrees(index: LiveIndex, model: Model, rng: np.random.Generator, exact: bool = False) -> None:
    queries = rng.standard_normal((2, DIM)).astype("f4")
    k = int(rng.choice([1, 3, 10, 100]))
    language = [None, "en", "fr"][rng.integers(3)]
    where = None if language is None else Equal(column="language", value=language)
    known = sorted(model.items)
    out = {known[rng.integers(len(known))] for _ in range(3)} if known else set()
    hits = index.index.search(queries, k, where=where, exclude=[sorted(out)] * 2, exact=exact)
    for row in range(2):
        expected = model.search(queries[row], k, language, out)
        found = [item_id for item_id in hits.ids[row] if item_id is not None]
        assert len(found) == len(set(found)) == len(expected)
        np.testing.assert_allclose(hits.scores[row, : len(expected)], expected, atol=1e-5)
        for item_id, score in zip(found, expected, strict=True):
            best = float((model.items[item_id][0] @ queries[row]).max())
            assert best == pytest.approx(score, abs=1e-5)
            assert item_id not in out


@pytest.mark.parametrize(
    ("seed", "config"),
    [(0, CONFIG), (1, CONFIG), (2, LISTS), (3, SEVERAL), (4, CODES)],
    ids=["flat-0", "flat-1", "one-list", "lists", "codes"],
)
def test_a_thousand_random_steps_agree_with_brute_force(
    tmp_path: Path, seed: int, config: IndexConfig
) -> None:
    rng = np.random.default_rng(seed)
    exact = config in (SEVERAL, CODES)  # with items enough to train lists to the end
    model = start(tmp_path, 600 if exact else 200 if config is LISTS else 60, config)
    index = live(tmp_path)
    counts = dict.fromkeys(["change", "search", "restart", "compact", "torn"], 0)
    for _ in range(1000):
        step = rng.choice(list(counts), p=[0.48, 0.48, 0.02, 0.01, 0.01])
        counts[step] += 1
        if step == "change":
            changes = some_changes(rng, model)
            index.apply(changes)
            model.apply(changes)
        elif step == "compact":
            index.compact()
        elif step == "restart":
            index.close()
            index = live(tmp_path)
        elif step == "torn":
            index.close()
            newest = sorted((tmp_path / "log").glob("*.log"))[-1]
            with newest.open("ab") as stream:  # the first bytes of a change, never acknowledged
                stream.write(newest.read_bytes()[:17])
            index = live(tmp_path)
        agrees(index, stored(index, model) if config is CODES else model, rng, exact)
    assert min(counts.values()) > 3, counts
    assert {i for i in model.items if i not in index.index} == set()
    index.close()


def test_changes_while_a_compaction_runs_are_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    model = start(tmp_path, 2000)
    index = live(tmp_path)
    first = index.index.version
    stop = threading.Event()
    failed: list[BaseException] = []

    def search() -> None:
        queries = rng.standard_normal((1, DIM)).astype("f4")
        while not stop.is_set():
            try:
                hits = index.index.search(queries, 5)
                assert (hits.rows >= 0).all()
            except BaseException as error:
                failed.append(error)
                return

    searcher = threading.Thread(target=search)
    compaction = threading.Thread(target=index.compact)
    searcher.start()
    own = np.random.default_rng(1)
    changes = some_changes(own, model)
    index.apply(changes)
    model.apply(changes)
    compaction.start()
    during = 0
    while compaction.is_alive():
        changes = some_changes(own, model)
        index.apply(changes)
        model.apply(changes)
        during += 1
    stop.set()
    searcher.join()
    assert not failed
    assert during > 0
    assert index.index.version != first
    for _ in range(20):
        agrees(index, model, own)
    index.close()
    index = live(tmp_path)
    for _ in range(20):
        agrees(index, model, own)
    index.close()


def test_compacts_by_itself_past_a_share_of_changes(tmp_path: Path) -> None:
    start(tmp_path, 100)
    index = live(tmp_path, compact_at=0.05)
    first = index.index.version
    index.apply([Put("a", clustered(1)[0])])
    assert index.changed_share == pytest.approx(0.01)
    index.apply([Delete(f"item-{i}") for i in range(5)])
    deadline = time.monotonic() + 30
    while index.index.version == first and time.monotonic() < deadline:
        time.sleep(0.02)
    assert index.index.version == versions.current(str(tmp_path / "i")) != first
    assert len(index.index) == 96
    assert index.changed_share == 0
    index.close()


def test_a_tiny_index_is_not_compacted_for_a_few_changes(tmp_path: Path) -> None:
    start(tmp_path, 30)
    index = LiveIndex(str(tmp_path / "i"), tmp_path / "log")  # as it comes
    for number in range(100):
        index.apply([Put("item-1", clustered(1, seed=number)[0], {"age": number})])
    assert index._worker is None
    index.apply([Put(f"new-{number}", clustered(1)[0]) for number in range(900)])
    assert index._worker is not None
    index.close()
    assert len(versions.history(str(tmp_path / "i"))) == 2


def test_a_damaged_history_stops_no_compaction(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    start(tmp_path)
    index = live(tmp_path, keep=2, grace_s=0)
    index.apply([Delete("item-0")])
    index.compact()
    damaged = next((tmp_path / "i" / "history").glob("*.json"))
    root = json.loads(damaged.read_text())["root"]
    damaged.write_text("X" + damaged.read_text()[1:])
    for number in range(1, 5):
        index.apply([Delete(f"item-{number}")])
        assert index.compact() is not None
    assert f"{damaged}: not a manifest" in caplog.text
    roots = {path.name for path in (tmp_path / "i").glob("v-*")}
    assert root in roots  # whoever restores the file finds them
    assert len(roots) == 3
    assert len(list((tmp_path / "log").glob("*.log"))) == 2
    index.close()


def test_what_cannot_be_cleared_away_is_told_and_the_new_version_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(tmp_path)
    index = live(tmp_path, keep=1, grace_s=0)

    def refused(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(versions, "collect", refused)
    index.apply([Delete("item-0")])
    manifest = index.compact()
    assert manifest is not None
    assert versions.current(str(tmp_path / "i")) == index.index.version == manifest.version
    told = f"version {manifest.version} is in use, but those before it cannot be cleared away"
    assert told in caplog.text
    index.close()


def test_a_compaction_after_a_rollback_keeps_what_was_rolled_back_to(tmp_path: Path) -> None:
    start(tmp_path)
    uri = str(tmp_path / "i")
    good = versions.current(uri)
    build_index(embeddings(tmp_path / "bad", -clustered(60)), uri)
    versions.rollback(uri)
    index = live(tmp_path, keep=2, grace_s=0)
    index.apply([Delete("item-0")])
    index.compact()
    index.close()
    assert versions.rollback(uri).version == good


def test_trained_quantiser_is_kept_until_a_fifth_has_changed(tmp_path: Path) -> None:
    config = IndexConfig(factory="IVF8,SQ8", num_queries=50, recall_target=0.9)
    start(tmp_path, 1000, config)
    index = live(tmp_path)
    before = index.index.centroids()
    index.apply([Put(f"new-{i}", v) for i, v in enumerate(clustered(50, seed=1))])
    manifest = index.compact()
    assert manifest is not None
    assert manifest.config["num_changed"] == 50
    assert manifest.lineage["encoder"] == "enc-1"
    np.testing.assert_array_equal(index.index.centroids(), before)
    index.apply([Put(f"more-{i}", v) for i, v in enumerate(clustered(200, seed=2))])
    manifest = index.compact()
    assert manifest is not None
    assert manifest.config["num_changed"] == 0
    assert manifest.config["num_rows"] == 1250
    assert not np.array_equal(index.index.centroids(), before)
    index.close()


@pytest.mark.parametrize("factory", ["IVF16,Flat", "IVF8,PQ4x4fs,RFlat"])
def test_what_is_left_of_a_large_index_is_compacted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, factory: str
) -> None:
    start(tmp_path, 600, IndexConfig(factory=factory, num_queries=50))
    index = live(tmp_path)
    index.apply([Delete(f"item-{i}") for i in range(595)])
    manifest = index.compact()
    assert manifest is not None
    assert (len(index.index), manifest.config["factory"]) == (5, "Flat")
    assert f"{tmp_path / 'i'}: 5 rows are too few for {factory}" in caplog.text
    index.apply([Put(f"new-{i}", v) for i, v in enumerate(clustered(600, seed=1))])
    manifest = index.compact()
    assert manifest is not None
    assert manifest.config["factory"] == factory
    index.close()


def test_rows_removed_count_as_changed(tmp_path: Path) -> None:
    start(tmp_path, 1000, IndexConfig(factory="IVF8,SQ8", num_queries=50))
    index = live(tmp_path)
    for first, expected in [(0, 150), (150, 0)]:  # of 850 less than a fifth, of 700 more
        index.apply([Delete(f"item-{i}") for i in range(first, first + 150)])
        manifest = index.compact()
        assert manifest is not None
        assert manifest.config["num_changed"] == expected
    index.close()


def test_recall_is_held_to_that_after_training_before_a_version_is_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost in steps each too small to be noticed beside the one before."""
    vectors = clustered(1000)
    config = IndexConfig(factory="IVF8,PQ8x4", num_queries=200)
    build_index(embeddings(tmp_path / "e", vectors), str(tmp_path / "i"), config)
    index = live(tmp_path)
    built = index.index.manifest
    assert built.config["recall_at_training"] == built.metrics["recall@10"]
    # a training that is out of date: its recall was that of other data
    stale = built.model_copy(update={"config": {**built.config, "recall_at_training": 0.99}})
    artifacts.write_atomic(tmp_path / "i" / "manifest.json", stale.to_json().encode())
    index.close()
    index = live(tmp_path)
    used: list[Any] = []
    real = versions.publish
    monkeypatch.setattr(
        versions, "publish", lambda *places, **about: used.append(places) or real(*places, **about)
    )
    index.apply([Delete("item-0")])
    manifest = index.compact()
    assert manifest is not None
    assert len(used) == 1  # the version that did worse never was
    assert manifest.config["num_changed"] == 0
    assert manifest.config["recall_at_training"] == manifest.metrics["recall@10"]
    assert len(list((tmp_path / "i").glob("v-*"))) == 2
    index.close()


def test_a_compaction_tunes_with_the_queries_that_the_index_was_tuned_with(tmp_path: Path) -> None:
    vectors, rng = clustered(3000), np.random.default_rng(0)
    users = rng.standard_normal((600, DIM)).astype("f4")  # lie elsewhere than the items
    queries = embeddings(tmp_path / "q", users[:400])
    uri = str(tmp_path / "i")
    config = IndexConfig(factory="IVF64,Flat", num_queries=200)
    first = build_index(embeddings(tmp_path / "e", vectors), uri, config, queries_uri=queries)
    index = live(tmp_path)
    for gone in ([2999], range(2000, 2999)):  # the quantiser is kept, and trained anew
        index.apply([Delete(f"item-{row}") for row in gone])
        manifest = index.compact()
        assert manifest is not None
        assert manifest.config["nprobe"] > first.config["nprobe"] / 2
        truth = brute_force(vectors[: gone[0]], users[400:], 10)
        assert recall(index.index.search(users[400:], 10).rows, truth) > 0.92
    index.close()


def test_a_mapped_index_is_compacted(tmp_path: Path) -> None:
    start(tmp_path, 1000, IndexConfig(factory="IVF8,SQ8", num_queries=50))
    index = live(tmp_path, mmap=True)
    index.apply([Put("a", clustered(1, seed=3)[0])])
    before = index.index.centroids()
    manifest = index.compact()
    assert manifest is not None
    assert (manifest.config["num_rows"], manifest.config["num_changed"]) == (1001, 1)
    np.testing.assert_array_equal(index.index.centroids(), before)
    index.close()


def test_compactions_start_from_the_vectors_as_they_were_given(tmp_path: Path) -> None:
    """Else each would encode what the one before decoded, and find its own codes perfect."""
    vectors = clustered(3000)
    uri = str(tmp_path / "i")
    config = IndexConfig(factory="IVF16,PQ4x4", num_queries=200, num_shards=2, merge=True)
    first = build_index(embeddings(tmp_path / "e", vectors), uri, config)
    index = live(tmp_path)
    added = clustered(2, seed=9)
    for number in range(2):
        index.apply([Put(f"new-{number}", added[number]), Delete(f"item-{number}")])
        manifest = index.compact()
        assert manifest is not None
        assert abs(manifest.metrics["recall@10"] - first.metrics["recall@10"]) < 0.1
    (tmp_path / "x").mkdir()
    export(index.index, uri, str(tmp_path / "x"))
    kept = pq.read_table(tmp_path / "x" / "rows")
    np.testing.assert_array_equal(
        np.stack(kept["vector"].to_numpy()), np.concatenate([vectors[2:], added])
    )
    root = artifacts.read_manifest(uri, "index").root
    path = tmp_path / "i" / root / "shard-00000" / "vectors.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    index.apply([Delete("new-0")])
    with pytest.raises(artifacts.ArtifactError, match=r"vectors\.parquet"):
        index.compact()
    assert "new-0" not in index.index
    index.close()
    index = live(tmp_path)  # searching needs no originals
    assert len(index.index) == 2999
    index.close()


def test_rollback_makes_the_changes_since_again(tmp_path: Path) -> None:
    model = start(tmp_path)
    uri = str(tmp_path / "i")
    index = live(tmp_path)
    changes: list[Change] = [Put("a", clustered(1, seed=3)[0]), Delete("item-3")]
    index.apply(changes)
    model.apply(changes)
    first = index.index.version
    index.compact()
    versions.rollback(uri)
    index.refresh()
    assert index.index.version == first
    agrees(index, model, np.random.default_rng(0))
    assert ("a" in index.index, "item-3" in index.index) == (True, False)
    index.close()


def test_a_version_published_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    start(tmp_path)
    index = live(tmp_path)
    index.apply([Put("a", clustered(1, seed=3)[0])])
    vectors = clustered(80, seed=9)
    columns = {"language": ["en"] * 80, "age": [0] * 80}
    uri = embeddings(tmp_path / "f", vectors, columns=columns)
    other = build_index(uri, str(tmp_path / "i"), CONFIG)
    manifest = index.compact()
    assert manifest is not None
    assert manifest.version == other.version == index.index.version
    assert len(index.index) == 81  # and the change is on it
    index.close()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("compact_at", ["x", math.nan, math.inf, -1, True, 1j]),
        ("compact_least", ["x", None, -1, 0.5, True]),
        ("keep", [0, -1, 1.5, "2", None, True]),
        ("grace_s", ["a", None, -1, math.nan, math.inf, 1e10]),
        ("pool", [3, "x"]),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, name: str, values: list[Any]) -> None:
    start(tmp_path)
    for value in values:
        with pytest.raises(SettingError, match=rf"^{name} is .*, expected "):
            live(tmp_path, **{name: value})
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("compact_at", [0, np.float32(0.01)])
def test_settings_of_other_kinds(tmp_path: Path, compact_at: Any) -> None:
    start(tmp_path)
    with ThreadPoolExecutor(1) as pool:
        index = live(tmp_path, compact_at=compact_at, keep=np.int64(1), grace_s=1e9, pool=pool)
        assert index.apply([Delete("item-0")]) == 1
        assert index._worker is not None
        index.close()
    assert artifacts.read_manifest(tmp_path / "i", "index").config["log_seq"] == 1


def test_what_a_change_is_refused_for(tmp_path: Path) -> None:
    start(tmp_path)
    index = live(tmp_path)
    good = clustered(1)[0]
    for change, message in [
        (Put("", good), "not empty"),
        (Delete("\ud800"), "the id is no Unicode text"),
        (Put("a", good[:-1]), r"shape \(15,\), expected \(16,\)"),
        (Put("a", np.zeros((0, DIM))), "shape"),
        (Put("a", np.full(DIM, np.nan)), "NaN or infinity"),
        (Put("a", np.full(DIM, np.inf)), "NaN or infinity"),
        (Put("a", np.full(DIM, 3e38)), r"item 'a'\): the vector has a norm of 1.2e\+39, expected"),
        (Put("a", good, {"langage": "en"}), r"no attributes \['langage'\]; there are \['language'"),
        (Put("a", good, {"age": "old"}), "attribute 'age' is 'old', expected int64"),
        (Put("a", good, {"age": 1.5}), "attribute 'age' is 1.5, expected int64: not a whole"),
        (Put("a", good, {"age": np.float32(1.5)}), "expected int64: not a whole number"),
        (Put("a", good, {"age": True}), "attribute 'age' is True, expected int64"),
        (Put("a", good.astype(complex)), "the vector is not numbers"),
        (None, "change 1 is None, expected Put or Delete"),
        ("a", "change 1 is 'a', expected Put or Delete"),
    ]:
        with pytest.raises(ChangeError, match=message):
            index.apply([Put("fine", good), change])  # type: ignore[list-item]
    for changes in (Delete("item-0"), None, iter([])):
        with pytest.raises(ChangeError, match="in place of a list of changes"):
            index.apply(changes)  # type: ignore[arg-type]
    assert index.apply([Put("whole", good, {"age": 2.0})]) == 1
    assert "fine" not in index.index
    assert index.last_change == 1
    index.close()


def test_failed_publishing_leaves_all_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = start(tmp_path)
    index = live(tmp_path)
    changes: list[Change] = [Delete("item-1")]
    index.apply(changes)
    model.apply(changes)
    first = index.index.version

    def full(*arguments: Any, **about: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("rec.artifacts.describe", full)
        with pytest.raises(artifacts.ArtifactError, match="No space left"):
            index.compact()
    assert index.index.version == first == versions.current(str(tmp_path / "i"))
    agrees(index, model, np.random.default_rng(0))
    index.compact()
    assert index.index.version != first
    index.close()


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (IndexConfig(factory="Flat"), 100_000),  # within index.faiss
        (IndexConfig(factory="Flat"), 320_040),  # in its last bytes, which FAISS holds back
        (IndexConfig(factory="IVF4,SQ8", num_queries=20), 100_000),  # within vectors.parquet
        (IndexConfig(factory="Flat", num_shards=2, merge=True), 200_000),  # the merged shard
    ],
)
def test_a_full_disk_is_an_artifact_error_and_the_version_in_use_stays(
    tmp_path: Path, config: IndexConfig, limit: int
) -> None:
    table, uri = embeddings(tmp_path / "e", clustered(5000)), str(tmp_path / "i")
    first = build_index(table, uri, config)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(artifacts.ArtifactError, match="cannot be written"):
            build_index(table, uri, config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in (tmp_path / "i").glob("v-*")] == [first.root]
    assert versions.current(uri) == first.version
    assert len(Index.open(uri)) == 5000


@pytest.mark.parametrize(
    "name",
    [
        "shard-00000/attributes.parquet",
        "shard-00000/ids.parquet",
        "shard-00000/index.faiss",
        "search.json",
        "trained.faiss",
        "manifest.json",
    ],
)
@pytest.mark.parametrize("how", ["cut", "flipped", "gone"])
def test_a_damaged_version_is_refused_by_file_and_the_one_before_answers(
    tmp_path: Path, name: str, how: str
) -> None:
    start(tmp_path)
    index = live(tmp_path)
    first = index.index.version
    start(tmp_path / "other", 80)
    other = build_index(str(tmp_path / "other" / "e"), str(tmp_path / "i"), CONFIG)
    path = tmp_path / "i" / ("" if name == "manifest.json" else other.root) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x80
    path.write_bytes(content[:-3] if how == "cut" else content)
    if how == "gone":
        path.unlink()
    index.apply([Delete("item-0")])
    for work in (index.refresh, index.compact, lambda: Index.open(str(tmp_path / "i"))):
        with pytest.raises(artifacts.ArtifactError, match=name):
            work()
    assert index.index.version == first
    assert "item-0" not in index.index.search(clustered(3), 60).ids
    index.close()


def test_compactions_clear_old_versions_and_the_log_away(tmp_path: Path) -> None:
    start(tmp_path)
    index = live(tmp_path, keep=1, grace_s=0)
    first = index.index.version
    for number in range(2):
        index.apply([Delete(f"item-{number}")])
        index.compact()
        assert len(list((tmp_path / "i").glob("v-*"))) == 1
    uri = str(tmp_path / "i")
    assert first not in [manifest.version for manifest in versions.history(uri)]
    assert not (tmp_path / "log" / "changes-0000000000000001.log").exists()
    index.close()
    index = live(tmp_path)
    assert len(index.index) == 58
    index.close()


def test_a_table_of_unknown_age_is_refused_once_changes_are_forgotten(tmp_path: Path) -> None:
    start(tmp_path)
    index = live(tmp_path, grace_s=0)
    for number in range(3):
        index.apply([Delete(f"item-{number}")])
        index.compact()
    uri, table = str(tmp_path / "i"), str(tmp_path / "e")
    in_use = versions.current(uri)
    for log_seq in (None, 1):
        with pytest.raises(IndexBuildError, match=f"{uri}: .*--log-seq"):
            build_index(table, uri, CONFIG, log_seq=log_seq)
    index.close()
    live(tmp_path).close()  # what was refused is in nobody's way
    assert versions.current(uri) == in_use
    build_index(table, uri, CONFIG, log_seq=2)
    index = live(tmp_path)
    found = [f"item-{number}" in index.index for number in range(3)]
    assert found == [True, True, False]
    index.close()


def test_a_publisher_sees_what_was_forgotten_while_it_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(tmp_path)
    live(tmp_path).close()
    uri, real = str(tmp_path / "i"), versions.publish
    in_use, known = artifacts.read_manifest(uri), known_log.read(uri)
    assert known is not None

    def late(*places: Any, **about: Any) -> Any:
        known_log.write(uri, known.model_copy(update={"forgotten": 1}))
        return real(*places, **about)

    monkeypatch.setattr(versions, "publish", late)
    with pytest.raises(IndexBuildError, match="--log-seq"):
        build_index(str(tmp_path / "e"), uri, CONFIG)
    assert [root.name for root in (tmp_path / "i").glob("v-*")] == [in_use.root]
    assert artifacts.read_manifest(uri) == in_use


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b"[]", b'{"log": 3}', b"\xff"])
def test_a_damaged_name_of_the_log_is_told_by_file(tmp_path: Path, content: bytes) -> None:
    start(tmp_path)
    live(tmp_path).close()
    (tmp_path / "i" / "log.json").write_bytes(content)
    with pytest.raises(LogError, match=r"i/log\.json: .*restore it, or remove it"):
        live(tmp_path)
    with pytest.raises(LogError, match=r"i/log\.json"):
        build_index(str(tmp_path / "e"), str(tmp_path / "i"), CONFIG)
    (tmp_path / "i" / "log.json").unlink()
    index = live(tmp_path)
    assert len(index.index) == 60
    index.close()


def test_changes_of_an_attribute_that_a_version_lacks_are_told_by_file(tmp_path: Path) -> None:
    start(tmp_path)
    index = live(tmp_path)
    index.apply([Delete("item-0")])
    index.apply([Put("a", clustered(1)[0], {"age": 3})])
    build_index(str(tmp_path / "e"), str(tmp_path / "i"), IndexConfig(attributes=("language",)))
    message = r"0001\.log: change 2 .* no attributes \['age'\]; .*--rollback"
    with pytest.raises(LogError, match=message):
        index.refresh()
    assert "a" in index.index
    index.close()
    with pytest.raises(LogError, match=message):
        live(tmp_path)
    versions.rollback(str(tmp_path / "i"))
    index = live(tmp_path)
    assert "a" in index.index
    index.close()


def test_closing_waits_for_a_compaction_and_ends_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(tmp_path)
    index = live(tmp_path)
    index.apply([Delete("item-0")])
    begun, real = threading.Event(), versions.publish

    def slow(*places: Any, **about: Any) -> Any:
        begun.set()
        time.sleep(0.3)
        return real(*places, **about)

    monkeypatch.setattr(versions, "publish", slow)
    compaction = threading.Thread(target=index.compact)
    compaction.start()
    begun.wait(30)
    index.close()
    assert artifacts.read_manifest(tmp_path / "i", "index").config["log_seq"] == 1
    compaction.join()
    for change in (lambda: index.apply([Delete("item-1")]), index.compact):
        with pytest.raises(LogError, match="this log is closed; open the index again"):
            change()


def test_an_index_has_one_log(tmp_path: Path) -> None:
    start(tmp_path)
    index = live(tmp_path)
    index.apply([Delete("item-0")])
    segment = tmp_path / "another" / "changes-0000000000000001.log"
    with pytest.raises(LogError, match=f"^{segment}: no log, the changes of this index are in log"):
        LiveIndex(str(tmp_path / "i"), tmp_path / "another")
    index.close()
    (tmp_path / "log").rename(tmp_path / "lost")
    start(tmp_path / "b")
    other = live(tmp_path / "b")
    other.close()
    (tmp_path / "b" / "log").rename(tmp_path / "log")
    with pytest.raises(LogError, match=r"log [0-9a-f]+, the changes of this index.*restore it"):
        live(tmp_path)
    (tmp_path / "i" / "log.json").unlink()
    index = live(tmp_path)  # without what only the lost log held, as was said
    assert "item-0" in index.index
    index.close()


def test_of_two_first_writers_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With logs of their own, at the same moment: neither finds that there is a log."""
    start(tmp_path)
    uri, real = str(tmp_path / "i"), known_log.read

    def slow(place: str) -> known_log.KnownLog | None:
        found = real(place)
        time.sleep(0.2)
        return found

    def opened(log: str) -> LiveIndex | LogError:
        try:
            return LiveIndex(uri, tmp_path / log, compact_at=None)
        except LogError as error:
            return error

    monkeypatch.setattr(known_log, "read", slow)
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(opened, ["a", "b"]))
    (refused,) = (one for one in both if isinstance(one, LogError))
    (index,) = (one for one in both if isinstance(one, LiveIndex))
    assert "the changes of this index are in log" in str(refused)
    index.apply([Delete("item-0")])
    index.close()


def test_a_writer_does_not_take_the_index_from_another(tmp_path: Path) -> None:
    """Where nothing can be held meanwhile (S3), or somebody removed log.json under a writer."""
    start(tmp_path)
    first = live(tmp_path, grace_s=0)
    first.apply([Delete("item-0")])
    (tmp_path / "i" / "log.json").unlink()
    second = LiveIndex(str(tmp_path / "i"), tmp_path / "another", compact_at=None)
    second.apply([Delete("item-1")])
    with pytest.raises(
        LogError, match=r"i/log\.json: the changes of this index are in log .*, not"
    ):
        first.compact()
    with pytest.raises(LogError, match=r"not in .*/log"):
        first.apply([Delete("item-2")])
    first.close()
    assert second.compact() is not None
    second.close()
    again = LiveIndex(str(tmp_path / "i"), tmp_path / "another", compact_at=None)
    assert "item-1" not in again.index
    again.close()


def rolled(folder: Path) -> Path:
    """An index with a change after a compaction, closed; the segment that has the change."""
    start(folder)
    index = live(folder)
    index.apply([Delete("item-0")])
    index.compact()
    index.apply([Delete("item-1")])
    index.close()
    return folder / "log" / "changes-0000000000000002.log"


@pytest.mark.parametrize("left", [None, 0, 10])
def test_a_newest_segment_that_is_lost_is_told_by_file(tmp_path: Path, left: int | None) -> None:
    newest = rolled(tmp_path)
    content = newest.read_bytes()
    newest.unlink()
    if left is not None:
        newest.write_bytes(content[:left])
    for _ in range(2):  # what was found stays as it is
        with pytest.raises(LogError, match=rf"{newest}: is (missing|empty), .* restore it, or"):
            live(tmp_path)
    newest.write_bytes(content)
    index = live(tmp_path)
    assert "item-1" not in index.index
    index.close()
    newest.unlink()
    (tmp_path / "i" / "log.json").unlink()
    index = live(tmp_path)  # without what only that held, as was said
    assert "item-1" in index.index
    index.close()


@pytest.mark.parametrize("is_rolled", [False, True])
@pytest.mark.parametrize("lost", [1, 60, None])
def test_a_closed_log_that_lost_its_end_is_told_by_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, is_rolled: bool, lost: int | None
) -> None:
    """It is known where it ended; nothing is cut, nor a number given out again."""
    start(tmp_path)
    index = live(tmp_path)
    index.apply([Delete("item-0")])
    if is_rolled:
        index.compact()
    segment = sorted((tmp_path / "log").glob("*.log"))[-1]
    index.apply([Delete("item-1")])
    before = segment.stat().st_size
    index.apply([Delete("item-2")])
    index.close()
    content = segment.read_bytes()
    left = content[:before] if lost is None else content[:-lost]
    segment.write_bytes(left)
    for _ in range(2):
        with pytest.raises(LogError, match=rf"{segment}: ends with change [12], 3 was .*restore"):
            live(tmp_path)
        assert segment.read_bytes() == left
    assert not caplog.messages
    segment.write_bytes(content)
    index = live(tmp_path)
    assert (index.last_change, "item-2" in index.index) == (3, False)
    segment.write_bytes(left)  # as a crash leaves it, while the log goes on
    index._log.close()
    index = live(tmp_path)
    assert index.last_change < 3
    index.close()
    segment.write_bytes(segment.read_bytes()[:-1])
    (tmp_path / "i" / "log.json").unlink()
    live(tmp_path).close()  # without what was lost, as was said


def test_a_log_whose_newest_segment_is_not_known_opens_and_becomes_known(tmp_path: Path) -> None:
    newest = rolled(tmp_path)
    known = known_log.read(str(tmp_path / "i"))
    assert known is not None
    text = known.to_json()
    (tmp_path / "i" / "log.json").write_text(json.dumps({**json.loads(text), "newest": 1}))
    live(tmp_path).close()  # stopped before the new segment was told
    old = {name: value for name, value in json.loads(text).items() if name != "newest"}
    (tmp_path / "i" / "log.json").write_text(json.dumps(old))
    live(tmp_path).close()
    assert known_log.read(str(tmp_path / "i")) == known
    newest.unlink()
    with pytest.raises(LogError, match=rf"{newest}: is missing"):
        live(tmp_path)


def test_no_change_is_made_before_its_segment_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(tmp_path)
    index = live(tmp_path)
    index.apply([Delete("item-0")])

    def full(*_: Any) -> None:
        raise LogError("log.json: cannot be written: No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(known_log, "write", full)
        with pytest.raises(LogError, match="No space left"):
            index.compact()
        with pytest.raises(LogError, match="No space left"):
            index.apply([Delete("item-1")])
        assert (index.last_change, "item-1" in index.index) == (1, True)
    index.apply([Delete("item-1")])
    known = known_log.read(str(tmp_path / "i"))
    assert known is not None
    assert known.newest == 2
    index.close()


def test_a_compaction_to_equal_contents_takes_the_changes_in(tmp_path: Path) -> None:
    start(tmp_path, 100)
    index = live(tmp_path)
    index.apply([Put("a", clustered(1)[0])])
    index.apply([Delete("a")])
    version = index.index.version
    index.compact()
    index.apply([Put("a", clustered(1)[0])])
    index.apply([Delete("a")])
    manifest = index.compact()
    assert manifest is not None
    assert (index.changed_share, index.index.manifest.config["log_seq"]) == (0, 4)
    assert (manifest.version, len(index.index)) == (version, 100)
    index.close()


@pytest.mark.parametrize("fails", [False, True])
def test_a_compaction_in_vain_waits_until_more_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    start(tmp_path, 10)
    index = live(tmp_path, compact_at=0.5)
    started: list[int] = []
    real = LiveIndex.compact

    def counted(self: LiveIndex, num_threads: int | None = None) -> Any:
        started.append(1)
        return real(self, num_threads)

    def full(*arguments: Any, **about: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LiveIndex, "compact", counted)
    if fails:
        monkeypatch.setattr("rec.artifacts.describe", full)
    # of nothing there is no version
    index.apply([Delete(f"item-{i}") for i in range(5 if fails else 10)])
    for number in range(4):
        assert index._worker is not None
        index._worker.join()
        index.apply([Delete(f"item-{5 + number}")])
    index._worker.join()
    assert len(started) == 1
    index.close()


def test_a_delta_without_attributes_fits_a_filter_of_none(tmp_path: Path) -> None:
    start(tmp_path, config=IndexConfig())
    index = live(tmp_path)
    index.apply([Put(f"new-{i}", vector) for i, vector in enumerate(clustered(100, seed=3))])
    hits = index.index.search(clustered(1), 200, where=All(of=()))
    assert (hits.rows >= 0).sum() == 160
    index.close()


def test_another_models_vectors_are_refused(tmp_path: Path) -> None:
    start(tmp_path)
    live(tmp_path).close()
    with pytest.raises(artifacts.ArtifactError, match="holds vectors of encoder enc-1"):
        live(tmp_path, model="enc-2")
    manifest = artifacts.read_manifest(tmp_path / "i", "index")
    other = manifest.model_copy(update={"lineage": {"encoder": "enc-2"}})
    artifacts.write_atomic(tmp_path / "i" / "manifest.json", other.to_json().encode())
    with pytest.raises(LogError, match="make the changes again with its encoder"):
        live(tmp_path)


def test_times_survive_the_log(tmp_path: Path) -> None:
    vectors = clustered(3)
    days = pa.array(
        [datetime(2026, 1, d, tzinfo=UTC) for d in (1, 2, 3)], pa.timestamp("us", "UTC")
    )
    uri = embeddings(tmp_path / "e", vectors, columns={"at": days}, num_parts=1)
    build_index(uri, str(tmp_path / "i"), IndexConfig(attributes=("at",)))
    index = live(tmp_path)
    index.apply([Put("late", vectors[0], {"at": datetime(2026, 2, 1, tzinfo=UTC)})])
    index.close()
    index = live(tmp_path)
    where = Range(column="at", least="2026-01-03T00:00:00Z")
    assert set(index.index.search(vectors[:1], 2, where=where).ids[0]) == {"late", "item-2"}
    index.close()


TIMES = {
    "at": pa.timestamp("ns"),
    "day": pa.date32(),
    "seen": pa.list_(pa.timestamp("us", "UTC")),
}


@pytest.mark.parametrize(
    "attributes",
    [
        {"day": datetime(2026, 1, 2, tzinfo=UTC)},
        {"day": date(2026, 1, 2)},
        {"day": np.datetime64("2026-01-02")},
        {"at": np.datetime64("2026-01-02T03:04:05.000000006", "ns")},
        {"seen": [datetime(2026, 1, 2, tzinfo=UTC), "2026-01-03T00:00:00+00:00"]},
        {"seen": (), "day": "2026-01-02"},
    ],
)
def test_whatever_is_taken_is_replayed(tmp_path: Path, attributes: dict[str, Any]) -> None:
    vectors = clustered(3)
    columns = {name: pa.nulls(3, kind) for name, kind in TIMES.items()}
    uri = embeddings(tmp_path / "e", vectors, columns=columns, num_parts=1)
    build_index(uri, str(tmp_path / "i"), IndexConfig(attributes=tuple(TIMES)))
    index = live(tmp_path)
    index.apply([Put("new", vectors[0], attributes)])
    taken = index.index.attributes(index.index.locate(["new"])[0])
    for name, value in taken[0].items():
        assert (value is not None) == (name in attributes)
    index.close()
    index = live(tmp_path)
    assert index.index.attributes(index.index.locate(["new"])[0]) == taken
    index.compact()
    assert index.index.attributes(index.index.locate(["new"])[0]) == taken
    index.close()


def test_a_batch_with_an_id_that_is_no_text_changes_nothing(tmp_path: Path) -> None:
    start(tmp_path)
    index = live(tmp_path)
    with pytest.raises(ChangeError, match="change 8"):
        index.apply([*(Delete(f"item-{i}") for i in range(8)), Put("\ud800", clustered(1)[0])])
    assert (index.last_change, len(index.index)) == (0, 60)
    index.close()


def test_a_time_is_no_fraction() -> None:
    schema = pa.schema([("day", pa.date32()), ("at", pa.timestamp("s"))])
    for name in schema.names:
        with pytest.raises(ChangeError, match=f"'{name}' is 1.5.*: not a whole number"):
            check([Put("a", clustered(1)[0], {name: 1.5})], DIM, schema)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("2026-01-01T23:59", "not a whole day"),
        ("2026-01-02T00:00+05:00", "not a whole day"),
        (datetime(2026, 1, 2, 3, tzinfo=UTC), "not a whole day"),
        (np.datetime64("2026-01-02T03"), "not a whole day"),
        (5, "a number"),
        (np.int64(5), "a number"),
        (True, "a number"),
    ],
)
def test_a_day_is_a_whole_one_and_no_number(value: Any, reason: str) -> None:
    for kind in (pa.date32(), pa.date64()):
        with pytest.raises(ChangeError, match=f"'day' is .*: {reason}"):
            check([Put("a", clustered(1)[0], {"day": value})], DIM, pa.schema([("day", kind)]))
        schema = pa.schema([("days", pa.list_(kind))])
        with pytest.raises(ChangeError, match=f"'days' is .*: {reason}"):
            check([Put("a", clustered(1)[0], {"days": ["2026-01-01", value]})], DIM, schema)


def test_a_day_that_an_older_log_has_with_a_time_is_replayed() -> None:
    schema = pa.schema([("day", pa.date32())])
    for value in ("2026-01-01T23:59", 20454):
        assert table({"day": value}, 1, schema, "item 'a'")["day"].to_pylist() == [date(2026, 1, 1)]


def test_regions_keep_their_boxes_and_numbers(tmp_path: Path) -> None:
    vectors = clustered(6)
    boxes = pa.array([[float(n), 0, 1, 1] for n in range(3)], pa.list_(pa.float32()))
    uri = embeddings(
        tmp_path / "e", vectors[:3], ["a", "a", "b"], interests=[3, 7, 0], columns={"box": boxes}
    )
    build_index(uri, str(tmp_path / "i"), IndexConfig(attributes=("box",)))
    index = live(tmp_path)

    def held(item_id: str) -> list[tuple[int, list[float]]]:
        (rows,) = index.index.locate([item_id])
        of_rows = index.index.attributes(rows)
        numbers = index.index.interests(rows).tolist()
        np.testing.assert_allclose(index.index.reconstruct(rows), by_number[item_id], atol=1e-6)
        return [(n, one["box"]) for n, one in zip(numbers, of_rows, strict=True)]

    by_number = {"a": vectors[[4, 3]], "new": vectors[[3, 4, 5]]}
    changes = [
        Put("a", vectors[[3, 4]], [{"box": [9, 9, 2, 2]}, {"box": [4, 4, 1, 1]}], [9, 4]),
        Put("new", vectors[3:], [{"box": [0, 0, 1, 1]}, {}, {"box": None}]),
    ]
    index.apply(changes)
    for again in (None, "reopened", "compacted"):
        if again == "reopened":
            index.close()
            index = live(tmp_path)
        if again == "compacted":
            index.compact()
        assert held("a") == [(4, [4, 4, 1, 1]), (9, [9, 9, 2, 2])]
        assert held("new") == [(0, [0, 0, 1, 1]), (1, None), (2, None)]
    hits = index.index.search(vectors[3:4], 1, where=Equal(column="box", value=9.0))
    assert (hits.ids[0, 0], hits.interests[0, 0]) == ("a", 9)
    for wrong in ([0], [0, 0], [0, -1], [0, 2**31], [0, 0.5], [True, 2], "01", 3):
        with pytest.raises(ChangeError, match=r"interests are .*expected 2 different whole"):
            index.apply([Put("a", vectors[:2], {}, wrong)])  # type: ignore[arg-type]
    with pytest.raises(ChangeError, match="or a list of one for each of 2 vectors"):
        index.apply([Put("a", vectors[:2], [{}])])
    index.close()


def test_changes_as_bytes() -> None:
    changes = [Put("a", clustered(2), {"n": np.int64(3)}), Delete("b"), Put("c", clustered(1))]
    a, b, c = decode(encode(changes), DIM)
    assert isinstance(a, Put)
    assert isinstance(c, Put)
    assert (a.item_id, a.attributes, b, c.item_id) == ("a", {"n": 3}, Delete("b"), "c")
    np.testing.assert_array_equal(a.vectors, clustered(2))
    np.testing.assert_array_equal(c.vectors, clustered(1))


@pytest.mark.parametrize("what", ["dimension", "encoder"])
def test_a_version_of_other_vectors_is_refused_and_the_one_before_answers(
    tmp_path: Path, what: str
) -> None:
    start(tmp_path)
    index = live(tmp_path)
    first = index.index.version
    index.apply([Put("new", clustered(1)[0])])
    vectors = clustered(40)[:, : DIM // 2] if what == "dimension" else clustered(40)
    table = embeddings(
        tmp_path / "other", vectors, columns={"language": ["en"] * 40, "age": [1] * 40}
    )
    if what == "encoder":
        manifest = artifacts.read_manifest(table, "embedding-table")
        artifacts.seal(table, manifest.root, manifest.kind, lineage={"encoder": "another"})
    build_index(table, str(tmp_path / "i"), CONFIG, log_seq=0)
    for work in (index.refresh, index.compact):
        with pytest.raises(LogError, match=f"{what}.* the log of .*{what}"):
            work()
    assert index.index.version == first
    assert "new" in index.index
    index.close()


@pytest.mark.parametrize("name", ["trained.faiss", "queries.npy"])
@pytest.mark.parametrize("how", ["cut", "flipped"])
def test_a_compaction_trusts_no_file_that_was_altered(tmp_path: Path, name: str, how: str) -> None:
    start(tmp_path, config=SEVERAL)
    queries = embeddings(tmp_path / "q", clustered(8, seed=9))
    build_index(str(tmp_path / "e"), str(tmp_path / "i"), SEVERAL, queries_uri=queries)
    index = live(tmp_path)
    first = index.index.version
    path = tmp_path / "i" / index.index.manifest.root / name
    content = bytearray(path.read_bytes())
    content[-9] ^= 0x80
    path.write_bytes(content[:-3] if how == "cut" else content)
    index.apply([Delete("item-0")])
    with pytest.raises(artifacts.ArtifactError, match=name):
        index.compact()
    assert index.index.version == first
    assert artifacts.read_manifest(str(tmp_path / "i"), versions.KIND).version == first
    index.close()
