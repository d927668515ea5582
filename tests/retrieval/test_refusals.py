"""What cannot be answered is refused by a typed error that names the argument or the file."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from tables import DIM, clustered, embeddings

from rec import artifacts
from rec.artifacts import ArtifactError
from rec.retrieval import staging, versions
from rec.retrieval.ann import Ann
from rec.retrieval.build import build_index
from rec.retrieval.changes import Delete, Put, check
from rec.retrieval.clusters import ClusterRecall, add_up, first_centres, kmeans, nearest
from rec.retrieval.dedup import duplicate_groups
from rec.retrieval.diversity import dpp, mmr
from rec.retrieval.errors import (
    ChangeError,
    FilterError,
    IndexBuildError,
    LogError,
    QueryError,
    SettingError,
)
from rec.retrieval.filters import All, Equal, In, Not, Range, parse
from rec.retrieval.index import Index
from rec.retrieval.interests import UserInterests, quotas, recall_interests
from rec.retrieval.live import LiveIndex
from rec.retrieval.neighbours import neighbours
from rec.retrieval.spec import IndexConfig
from rec.retrieval.table import write_table

ROWS = 60
NAN = float("nan")
V = clustered(ROWS)
ONES = np.ones(2)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    uri = embeddings(folder / "e", V, columns={"age": list(range(ROWS))})
    config = IndexConfig(attributes=("age",), num_shards=2)
    build_index(uri, str(folder / "i"), config)
    return folder


@pytest.fixture(scope="module")
def index(published: Path) -> Index:
    return Index.open(str(published / "i"))


def nested(depth: int) -> Any:
    where: Any = Equal(column="age", value=1)
    for _ in range(depth):
        where = Not(of=where)
    return where


def user(vectors: Any = V[:2], weights: Any = ONES) -> list[UserInterests]:
    return [UserInterests(vectors, weights)]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda i: i.search(V[:1], True), "k is True, expected a whole number"),
        (lambda i: i.search(V[:1], 3, exact="no"), "exact is 'no', expected True or False"),
        (lambda i: i.search(V[:1], 3, num_threads="x"), "num_threads is 'x', expected a whole"),
        (lambda i: i.search(V[:1], 3, num_threads=0), "num_threads is 0, expected 1 to"),
        (lambda i: i.search(V[:1], 3, num_threads=-1), "num_threads is -1, expected 1 to"),
        (lambda i: i.search_ids(["item-1"], 3, exclude=[[], []]), "2 lists of excluded ids for 1"),
        (lambda i: i.search_ids(["item-1"], 3, exclude="x"), "exclude is 'x', expected a list"),
        (lambda _: kmeans([], lambda _: add_up([], V[:2]), V[:2]), "no vectors to cluster"),
        (lambda i: i.ids([0, ROWS]), f"row {ROWS} is not there: expected -1 to {ROWS - 1}"),
        (lambda i: i.ids(np.array([-2])), "row -2 is not there"),
        (lambda i: i.ids([0.5]), "rows are of type float64"),
        (lambda i: i.interests([ROWS]), f"row {ROWS} is not there"),
        (lambda i: i.id_bytes([-1]), f"row -1 is not there: expected 0 to {ROWS - 1}"),
        (lambda i: i.attributes([-1]), "row -1 is not there"),
        (lambda i: i.attributes([ROWS]), f"row {ROWS} is not there"),
        (lambda i: i.reconstruct([-1]), "row -1 is not there"),
        (lambda i: i.reconstruct([1, ROWS]), f"row {ROWS} is not there"),
        (lambda i: neighbours(i, 0, 5, 10_000), "k is 10000, expected 1 to 9999"),
        (lambda i: neighbours(i, -5, 5, 3), "start is -5, expected at least 0"),
        (lambda i: neighbours(i, 0, 5.5, 3), "stop is 5.5, expected a whole number"),  # type: ignore[arg-type]
        (lambda i: recall_interests(i, user(), 5, by="best"), "by is 'best', expected score"),  # type: ignore[arg-type]
        (lambda i: recall_interests(i, user(weights=np.ones((2, 1))), 5), r"weights have shape"),
        (lambda i: recall_interests(i, user(weights=["a", "b"]), 5), "user 0: could not convert"),
        (lambda i: recall_interests(i, user(V[:2, :4]), 5), r"user 0: vectors of shape \(2, 4\)"),
        (lambda i: recall_interests(i, user() + user(V[:2] * NAN), 5), "user 1: vector 0 has NaN"),
        (lambda i: recall_interests(i, [V], 5), "user 0 is of type ndarray"),  # type: ignore[list-item]
        (lambda i: recall_interests(i, user(), 2.5), "budget is 2.5, expected a whole number"),  # type: ignore[arg-type]
        (lambda _: quotas(ONES, -1), "budget is -1, expected at least 0"),
        (lambda i: duplicate_groups(i, np.zeros(ROWS)), "hashes are of type float64"),
        (lambda i: duplicate_groups(i, np.zeros(3, "u8")), r"hashes of shape \(3,\)"),
        (lambda _: mmr(ONES, V[:2], True), "k is True"),
        (lambda _: dpp(ONES, V[:2], 1, "x"), "trade_off is 'x'"),  # type: ignore[arg-type]
        (lambda _: mmr(["a"], V[:1], 1), "not numbers"),  # type: ignore[arg-type]
        (lambda _: nearest(V, V[:3, :4]), r"centres have shape \(3, 4\), vectors \(60, 16\)"),
        (lambda _: nearest(V * NAN, V[:3]), "vector 0 has NaN"),
        (lambda _: nearest(V, V[:0]), r"centres have shape \(0, 16\)"),
        (lambda _: add_up([V, V[0]], V[:3]), r"vectors have shape \(16,\)"),
        (lambda _: first_centres(V, 0, 0), "num_clusters is 0, expected at least 1"),
        (lambda _: first_centres(V * NAN, 3, 0), "vector 0 has NaN"),
        (lambda _: first_centres(V, 3, "x"), "seed is 'x', expected a whole number"),  # type: ignore[arg-type]
        (lambda _: first_centres(V, 3, -1), "seed is -1, expected at least 0"),
        (lambda i: recall_interests(i, user(3.0), 5), r"user 0: vectors of shape \(\)"),
        (lambda i: recall_interests(i, user(ONES), 5), r"user 0: vectors of shape \(2,\)"),
        (lambda _: ClusterRecall(["a"], [[0]], [1]), r"1 ids, clusters of shape \(1, 1\)"),  # type: ignore[arg-type]
        (lambda _: ClusterRecall(["a"], 0, [1]), r"1 ids, clusters of shape \(\)"),  # type: ignore[arg-type]
        (lambda _: ClusterRecall(["a", "b"], [0.5, 1], ONES), "clusters are not whole"),  # type: ignore[arg-type]
        (lambda _: ClusterRecall(["a", "b"], [0, -1], ONES), "clusters are not whole"),  # type: ignore[arg-type]
        (lambda _: ClusterRecall(["a", "b"], [0, 1], ["x", "y"]), "scores .*no numbers"),  # type: ignore[arg-type]
        (lambda _: ClusterRecall(["a"], [0], [1]).recall("a", 3), "'a' in place of a list"),  # type: ignore[arg-type]
        (lambda _: ClusterRecall(["a"], [0], [1]).recall(["a"], 1.5), "budget is 1.5"),  # type: ignore[arg-type]
    ],
)
def test_queries(index: Index, ask: Callable[[Index], Any], message: str) -> None:
    with pytest.raises(QueryError, match=message):
        ask(index)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: Equal(column="age", value=None), "filter Equal: value"),
        (lambda: Equal(column=3, value=1), "filter Equal: column"),  # type: ignore[arg-type]
        (lambda: In(column="age", values=range(10_001)), "filter In: values"),  # type: ignore[arg-type]
        (lambda: Range(column="age", lest=1), "filter Range: lest"),  # type: ignore[call-arg]
        (lambda: Not(of=3), "filter Not: of"),  # type: ignore[arg-type]
        (lambda: nested(3000), "8 inside each other"),
        (lambda: All(of=[nested(1)] * 40), "at most 64 expressions"),  # type: ignore[arg-type]
        (lambda: parse({"op": "not", "of": {"op": "equal", "column": "age"}}), r"not\.of\.equal"),
        (lambda: parse({"op": "equal", "self": 1}), "equal"),
    ],
)
def test_filters(index: Index, ask: Callable[[], Any], message: str) -> None:
    with pytest.raises(FilterError, match=message):
        index.search(V[:1], 3, where=ask())


def test_filters_of_the_largest_depth_and_size(index: Index) -> None:
    for where in (nested(7), All(of=(Range(column="age"),) * 63)):
        assert index.search(V[:1], ROWS, where=where).ids.shape == (1, ROWS)


def test_large_and_tiny_weights_share_as_others() -> None:
    assert quotas(np.array([1e308, 1e308, 0]), 10).tolist() == [5, 5, 0]
    assert quotas(np.array([1e-320, 1e-320, 0]), 10).tolist() == [5, 5, 0]


def test_lists_in_place_of_arrays(index: Index) -> None:
    assert ClusterRecall(["a", "b", "c"], [0, 0, 1], [1, 3, 2]).recall(["a"], 5).tolist() == ["b"]  # type: ignore[arg-type]
    far_apart = ClusterRecall(["a", "b", "c"], [2**62, 2**62, 7], [1, 3, 2])  # type: ignore[arg-type]
    assert far_apart.recall(["a", "c"], 5).tolist() == ["b"]
    assert ClusterRecall([], [], []).recall(["a"], 5).tolist() == []  # type: ignore[arg-type]
    assert index.ids([0, -1]).tolist() == [index.ids(np.array([0]))[0], None]
    assert index.reconstruct([]).shape == (0, DIM)
    near = index.search_ids(["item-1", "item-2"], 3).ids
    others = index.search_ids(["item-1", "item-2"], 2, exclude=[[near[0, 0]], ()]).ids
    assert others.tolist() == [near[0, 1:].tolist(), near[1, :2].tolist()]
    empty = user([], [])
    assert [len(found.ids) for found in recall_interests(index, empty, 5)] == [0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Put(None, V[0]), "item None.*expected a text"),  # type: ignore[arg-type]
        (Put("p", V[0], None), "attributes are None, expected a dictionary"),  # type: ignore[arg-type]
        (Put("p", V[0], []), r"attributes are \[\], expected a dictionary"),  # type: ignore[arg-type]
        (Put("p", V[0], {1: 2, "x": 3}), r"no attributes \[1, 'x'\]"),  # type: ignore[dict-item]
        (Put("p", V[0], {"age": {}}), "attribute 'age' is {}, expected int64"),
        (Put("p", np.zeros((1, 0))), r"vectors of shape \(1, 0\)"),
        (Delete(None), "item None.*expected a text"),  # type: ignore[arg-type]
    ],
)
def test_changes(published: Path, tmp_path: Path, change: Any, message: str) -> None:
    shutil.copytree(published / "i", tmp_path / "i")
    live = LiveIndex(str(tmp_path / "i"), tmp_path / "log", compact_at=None)
    with pytest.raises(ChangeError, match=message):
        live.apply([change])
    assert live.last_change == 0
    live.close()


def test_vectors_of_no_values(tmp_path: Path) -> None:
    uri = embeddings(tmp_path / "e", np.zeros((3, 0), "f4"))
    with pytest.raises(IndexBuildError, match=r"part-00000\.parquet, row 0: a vector of 0 values"):
        build_index(uri, str(tmp_path / "i"))
    with pytest.raises(ValueError, match="vectors of 0 values, expected at least 1"):
        Ann.make("Flat", 0)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"log_seq": "x"}, "log_seq is 'x', expected a whole number"),
        ({"log_seq": -1}, "log_seq is -1"),
        ({"log_seq": True}, "log_seq is True"),
        ({"log_seq": 2**70}, "log_seq is 1180591620717411303424"),
        ({"num_threads": "x"}, "num_threads is 'x'"),
        ({"num_threads": 0}, "num_threads is 0"),
        ({"num_threads": -1}, "num_threads is -1"),
        ({"config": {"seed": 1}}, "config is {'seed': 1}, expected an IndexConfig"),
        ({"config": {}}, "config is {}, expected an IndexConfig"),
        *(
            ({"config": IndexConfig(factory=factory)}, "needs at least 2 neighbours")
            for factory in ("HNSW0", "HNSW1", "HNSW01", "NSG1,Flat", "IVF64_HNSW1,Flat")
        ),
    ],
)
def test_builds(published: Path, tmp_path: Path, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(IndexBuildError, match=message):
        build_index(str(published / "e"), str(tmp_path / "i"), **asked)
    assert not (tmp_path / "i").exists()


@pytest.mark.parametrize("fields", [{"attributes": ("y", "y")}, {"seed": -1}])
def test_configs(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(fields))):
        IndexConfig(**fields)


def test_queries_of_another_encoder(published: Path, tmp_path: Path) -> None:
    for encoder, fits in (("enc-1", True), (None, True), ("enc-2", False)):
        uri = str(tmp_path / f"{encoder}")
        write_table(uri, ["q"], V[:1], encoder=encoder)
        if fits:
            build_index(str(published / "e"), str(tmp_path / "i"), queries_uri=uri)
            continue
        with pytest.raises(IndexBuildError, match=r"enc-2: queries of encoder enc-2, .* of enc-1"):
            build_index(str(published / "e"), str(tmp_path / "i"), queries_uri=uri)


def test_an_index_from_before_rise_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri, folder = embeddings(tmp_path / "e", clustered(300)), tmp_path / "i"
    built = build_index(uri, str(folder), IndexConfig(factory="IVF4,Flat"))
    Index.open(str(folder))
    assert not caplog.text
    (folder / built.root / "search.json").write_text('{"nprobe": 2, "margin": 0.1}')
    about = {"config": built.config, "lineage": built.lineage}
    artifacts.seal(str(folder), built.root, "index", **about)
    Index.open(str(folder))
    assert f"{folder}: search.json of version" in caplog.text
    assert "has no `rise`" in caplog.text
    assert "build it again" in caplog.text


def test_the_least_graph_is_built(tmp_path: Path) -> None:
    uri = embeddings(tmp_path / "e", clustered(300))
    for factory in ("HNSW2", "IVF4_HNSW2,Flat"):
        build_index(uri, str(tmp_path / "i"), IndexConfig(factory=factory), log_seq=np.int64(0))  # type: ignore[arg-type]
    assert len(Index.open(str(tmp_path / "i"))) == 300


def test_a_version_that_claims_changes_beyond_the_log_is_undone_by_a_rollback(
    published: Path, tmp_path: Path
) -> None:
    shutil.copytree(published / "i", tmp_path / "i")
    uri = str(tmp_path / "i")
    live = LiveIndex(uri, tmp_path / "log", compact_at=None)
    live.apply([Delete("item-0")])
    build_index(str(published / "e"), uri, IndexConfig(attributes=("age",)), log_seq=999)
    with pytest.raises(LogError, match=r"wanted those after 999; .*versions\.rollback"):
        live.refresh()
    versions.rollback(uri)
    live.refresh()
    live.apply([Delete("item-1")])
    live.close()
    live = LiveIndex(uri, tmp_path / "log", compact_at=None)
    assert (live.last_change, len(live.index)) == (2, ROWS - 2)
    live.close()


@pytest.mark.parametrize("uri", [None, 3, b"x", ""])
def test_addresses(uri: Any) -> None:
    def write(uri: Any) -> Any:
        return write_table(uri, ["a"], V[:1])

    asks = (Index.open, versions.current, versions.history, versions.collect, write)
    for ask in asks:
        with pytest.raises(ArtifactError, match=f"^{uri!r} in place of an address; give a local"):
            ask(uri)


def test_an_empty_address_is_not_the_root(tmp_path: Path) -> None:
    for ask in (lambda: artifacts.join("", "manifest.json"), lambda: artifacts.filesystem("")):
        with pytest.raises(ArtifactError, match=r"^'' in place of an address"):
            ask()
    with pytest.raises(ArtifactError, match=r"^'' in place of an address"):
        build_index("", str(tmp_path / "i"))


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda uri: Index.open(uri, pool=3), "pool is 3, expected a thread pool"),  # type: ignore[arg-type]
        (lambda uri: Index.open(uri, mmap="x"), "mmap is 'x', expected True or False"),  # type: ignore[arg-type]
        (lambda uri: Index.open(uri, manifest=3), "manifest is 3, expected a Manifest"),  # type: ignore[arg-type]
        (lambda uri: LiveIndex(uri, None), "log_folder is None, expected the path"),  # type: ignore[arg-type]
        (lambda uri: LiveIndex(uri, 3), "log_folder is 3, expected the path"),  # type: ignore[arg-type]
        (lambda uri: LiveIndex(uri, "s3://bucket/log"), "log_folder is 's3:.*a local folder"),
        (lambda uri: LiveIndex(uri, Path("s3://bucket/log")), "log_folder is .*a local folder"),
        (lambda uri: versions.collect(uri, grace_s=NAN), "grace_s is nan, expected seconds"),
        (lambda uri: versions.collect(uri, grace_s=-1), "grace_s is -1, expected seconds"),
        (lambda uri: versions.collect(uri, keep=-1), "keep is -1, expected .* at least 0"),
        (lambda uri: versions.collect(uri, keep=None), "keep is None"),  # type: ignore[arg-type]
    ],
)
def test_settings(published: Path, ask: Callable[[str], Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        ask(str(published / "i"))


def test_a_folder_that_cannot_be_written_is_told_by_name(published: Path, tmp_path: Path) -> None:
    shutil.copytree(published / "i", tmp_path / "i")
    (tmp_path / "i" / ".publisher").unlink()
    (tmp_path / "i" / ".publisher").mkdir()
    for ask in (versions.rollback, versions.collect):
        with pytest.raises(ArtifactError, match=r"i/\.publisher: cannot be written"):
            ask(str(tmp_path / "i"))


def test_what_a_killed_process_staged_is_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    place = f"import os, tempfile; tempfile.tempdir = {str(tmp_path)!r}"
    code = f"{place}\nfrom rec.retrieval import staging\nwith staging.folder(): os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    (left,) = tmp_path.iterdir()
    with staging.folder() as held:
        assert left.exists()  # young: it may be about to be locked
        for path in (left, Path(held)):
            os.utime(path, (0, 0))
        with staging.folder():
            assert (left.exists(), Path(held).exists()) == (False, True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("root", ["../e", "", "v-", "v-1/shard-00000", "history", None])
def test_roots_that_are_no_version_are_left_as_they_are(published: Path, root: Any) -> None:
    before = sorted(published.rglob("*"))
    with pytest.raises(ArtifactError, match=r"root is .*, expected the name of a folder below"):
        versions.publish(str(published / "i"), root)
    assert sorted(published.rglob("*")) == before


@pytest.mark.parametrize("name", ["manifest.json", "history/0.json", "log.json"])
def test_a_folder_in_place_of_a_file_is_told_by_name(
    published: Path, tmp_path: Path, name: str
) -> None:
    shutil.copytree(published / "i", tmp_path / "i")
    uri = str(tmp_path / "i")
    (tmp_path / "i" / name).unlink(missing_ok=True)
    (tmp_path / "i" / name).mkdir(parents=True)

    def ask() -> None:
        versions.history(uri)
        LiveIndex(uri, tmp_path / "log")

    with pytest.raises((ArtifactError, LogError), match=rf"{name}: cannot be read"):
        ask()


def test_a_folder_in_place_of_a_log_segment_is_told_by_name(
    published: Path, tmp_path: Path
) -> None:
    (tmp_path / "log" / "changes-0000000000000001.log").mkdir(parents=True)
    with pytest.raises(LogError, match=r"changes-0000000000000001\.log: .*cannot be read"):
        LiveIndex(str(published / "i"), tmp_path / "log")


def test_more_changes_than_the_log_has_are_refused(published: Path, tmp_path: Path) -> None:
    """Else the next changes would pass for those that the version has."""
    shutil.copytree(published / "i", tmp_path / "i")
    uri, table = str(tmp_path / "i"), str(published / "e")
    live = LiveIndex(uri, tmp_path / "log", compact_at=None)
    live.apply([Delete("item-0")])
    live.close()
    in_use = versions.current(uri)
    with pytest.raises(IndexBuildError, match=r"ends with change 1, .* up to 2 .*--log-seq"):
        build_index(table, uri, IndexConfig(), log_seq=2)
    assert versions.current(uri) == in_use
    build_index(table, uri, IndexConfig(), log_seq=1)
    live = LiveIndex(uri, tmp_path / "log", compact_at=None)
    live.apply([Delete("item-1")])
    build_index(table, uri, IndexConfig(), log_seq=2)  # while it goes on nobody else knows
    shutil.rmtree(tmp_path / "i")
    live.close()
    assert not (tmp_path / "i").exists()  # what was removed stays so


def test_a_compaction_that_cannot_write_names_the_file(tmp_path: Path) -> None:
    build_index(embeddings(tmp_path / "e", clustered(3000)), str(tmp_path / "i"))
    live = LiveIndex(str(tmp_path / "i"), tmp_path / "log", compact_at=None)
    live.apply([Delete("item-0")])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(ArtifactError, match=r"rows/part-00000\.parquet: .*free space"):
            live.compact(num_threads=1)
        with pytest.raises(OSError, match=r"'.*/file'"):
            artifacts.write_atomic(tmp_path / "file", bytes(60_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(live.index) == 2999
    live.close()


def test_a_table_and_an_index_do_not_replace_each_other(published: Path, tmp_path: Path) -> None:
    shutil.copytree(published, tmp_path, dirs_exist_ok=True)
    table, index = str(tmp_path / "e"), str(tmp_path / "i")
    with pytest.raises(ArtifactError, match=r"i/manifest.json: .*'index'.*'embedding-table'"):
        write_table(index, ["a"], clustered(1))
    with pytest.raises(ArtifactError, match=r"e/manifest.json: .*'embedding-table'.*'index'"):
        build_index(table, table)
    assert build_index(table, index) is not None
    assert not list((tmp_path / "e").glob(".publisher"))


class _Grad:
    """As a tensor of torch that requires a gradient."""

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.")


MASKED = np.ma.masked_array(V[:1], np.arange(V.shape[1]) == 0)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda index: index.search(_Grad(), 1), "query vectors are not numbers: .*requires grad"),
        (lambda index: index.search(MASKED, 1), "query vectors are not numbers: .*masked"),
        (lambda index: index.search(V[:1], 1, exclude=np.array("a")), "exclude is .*list of ids"),
        (lambda index: index.search(V[:1], 1, exclude=5), "exclude is 5, expected a list of ids"),
        (lambda index: index.search(V[:1], 1, exclude=[5]), "5 in place of a list of ids"),
        (lambda index: index.fits(np.arange(3), None), "where is of type NoneType"),
        (lambda index: index.fits(np.arange(3), {"op": "any"}), "where is of type dict"),
        (lambda index: index.fits(np.zeros((2, 2), int), All(of=())), r"shape \(2, 2\)"),
        (lambda index: recall_interests(index, None, 3), "users are None"),
        (lambda index: recall_interests(index, 3, 3), "users are 3"),
    ],
)
def test_what_is_no_query_is_told(published: Path, ask: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(QueryError, match=message):
        ask(Index.open(str(published / "i")))


def test_what_has_no_order_or_is_masked_is_no_table(tmp_path: Path) -> None:
    for ids, vectors, message in (
        ({"a", "b"}, V[:2], "no order"),
        (["a"], MASKED, "masked"),
        (["a"], _Grad(), "requires grad"),
    ):
        with pytest.raises(IndexBuildError, match=message):
            write_table(str(tmp_path / "t"), ids, vectors)  # type: ignore[arg-type]
    for put, message in (
        (Put("a", _Grad()), "not numbers: .*requires grad"),  # type: ignore[arg-type]
        (Put("a", V[:2], {}, {1, 2}), "interests are"),  # type: ignore[arg-type]
    ):
        with pytest.raises(ChangeError, match=message):
            check([put], V.shape[1], pa.schema([]))


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("id", [0.5, 1.5]),
        ("id", [True, False]),
        ("interest", ["a", "b"]),
        ("interest", [2**40, 0]),
        ("weight", ["1", "1"]),
        ("vector", ["x", "y"]),
        ("vector", [["x"], ["y"]]),
        ("vector", pa.array([[1.0], [2.0]], pa.list_(pa.float32(), 1))),
    ],
)
def test_a_sealed_table_of_other_types_is_told_by_file(
    tmp_path: Path, column: str, values: Any
) -> None:
    columns = {"id": ["a", "b"], "interest": [0, 0], "weight": [1.0, 1.0]}
    table = pa.table({**columns, "vector": [[1.0], [0.5]], column: values})
    (tmp_path / "e" / "parts").mkdir(parents=True)
    pq.write_table(table, tmp_path / "e" / "parts" / "p.parquet")
    artifacts.seal(tmp_path / "e", "parts", "embedding-table")
    with pytest.raises(IndexBuildError, match=rf"^p\.parquet: column '{column}'.* expected"):
        build_index(str(tmp_path / "e"), str(tmp_path / "i"))
