"""Versions: one in use, others kept; a publisher that dies at any step changes nothing."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tables import clustered, embeddings

from rec import artifacts
from rec.artifacts import ArtifactError
from rec.retrieval import versions
from rec.retrieval.build import build_index
from rec.retrieval.errors import StaleError
from rec.retrieval.fill import merge_shards
from rec.retrieval.index import Index
from rec.retrieval.live import LiveIndex
from rec.retrieval.spec import IndexConfig


class Killed(BaseException):
    """A publisher's process ended here."""


def publish(folder: Path, seed: int, num_items: int = 30) -> str:
    """Build from vectors of this seed; returns the version."""
    table = folder / f"e-{seed}"
    uri = str(table) if table.exists() else embeddings(table, clustered(num_items, seed=seed))
    return build_index(uri, str(folder / "i")).version


def test_rollback_and_forward(tmp_path: Path) -> None:
    uri = str(tmp_path / "i")
    first, second, third = (publish(tmp_path, seed) for seed in range(3))
    assert [manifest.version for manifest in versions.history(uri)] == [first, second, third]
    assert versions.current(uri) == third
    assert versions.rollback(uri).version == second
    assert Index.open(uri).version == second
    assert versions.rollback(uri).version == first
    with pytest.raises(ArtifactError, match=f"no version before {first} is kept"):
        versions.rollback(uri)
    assert versions.rollback(uri, third).version == versions.current(uri) == third
    with pytest.raises(ArtifactError, match="version 0123 is not kept"):
        versions.rollback(uri, "0123")


def test_rollback_never_returns_to_what_was_rolled_back(tmp_path: Path) -> None:
    uri = str(tmp_path / "i")
    good, _bad = publish(tmp_path, 0), publish(tmp_path, 1)
    versions.rollback(uri)
    third = publish(tmp_path, 2)
    assert publish(tmp_path, 2) == third  # again the same
    assert versions.rollback(uri).version == good


def test_rollback_to_a_damaged_version_is_refused(tmp_path: Path) -> None:
    uri = str(tmp_path / "i")
    first, second = publish(tmp_path, 0), publish(tmp_path, 1)
    root = versions.history(uri)[0].root
    path = tmp_path / "i" / root / "shard-00000" / "index.faiss"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"index\.faiss"):
        versions.rollback(uri, first)
    assert Index.open(uri).version == second


def test_rollback_on_a_full_disk_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "i")
    first, second = publish(tmp_path, 0), publish(tmp_path, 1)

    def full(place: str, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", place)

    with monkeypatch.context() as patched:
        patched.setattr(artifacts, "write_atomic", full)
        with pytest.raises(ArtifactError, match=rf"{second}\.json: cannot .*free space: version"):
            versions.rollback(uri)
    assert versions.current(uri) == second
    assert versions.rollback(uri).version == first


def test_rollback_under_load_mixes_nothing(tmp_path: Path) -> None:
    """Readers that open, or refresh, and search see one whole version or the other."""
    uri = str(tmp_path / "i")
    two = [publish(tmp_path, seed) for seed in range(2)]
    queries = clustered(4, seed=7)
    expected = {}
    for version in two:
        versions.rollback(uri, version)
        expected[version] = Index.open(uri).search(queries, 5).scores
    stop, failed = threading.Event(), []
    held = LiveIndex(uri, tmp_path / "log", compact_at=None)
    seen: list[list[str]] = [[], [], []]

    def refreshed() -> Index:
        held.refresh()
        return held.index

    def read(opened: Callable[[], Index], mine: list[str]) -> None:
        while not stop.is_set():
            try:
                index = opened()
                np.testing.assert_array_equal(
                    index.search(queries, 5).scores, expected[index.version]
                )
                mine.append(index.version)
            except BaseException as error:
                failed.append(error)
                return

    ways = [lambda: Index.open(uri), lambda: Index.open(uri), refreshed]
    threads = [threading.Thread(target=read, args=one) for one in zip(ways, seen, strict=True)]
    for thread in threads:
        thread.start()
    end, turns = time.monotonic() + 120, 0
    while not failed and (turns < 60 or any(set(mine) != set(two) for mine in seen)):
        versions.rollback(uri, two[turns % 2])
        turns += 1
        assert time.monotonic() < end, [len(mine) for mine in seen]
    stop.set()
    for thread in threads:
        thread.join()
    held.close()
    assert not failed


def test_collect_keeps_the_newest_and_the_one_in_use(tmp_path: Path) -> None:
    uri = str(tmp_path / "i")
    made = [publish(tmp_path, seed) for seed in range(5)]
    versions.rollback(uri, made[0])
    assert versions.collect(uri, keep=2) == []  # all too young
    assert len(versions.collect(uri, keep=2, grace_s=0)) == 2
    assert [manifest.version for manifest in versions.history(uri)] == [made[0], made[3], made[4]]
    for manifest in versions.history(uri):
        artifacts.verify(uri, manifest)
    left = {path.name for path in (tmp_path / "i").iterdir() if path.name.startswith("v-")}
    assert left == {manifest.root for manifest in versions.history(uri)}


def test_the_version_that_a_rollback_leads_to_outlives_a_newer_one(tmp_path: Path) -> None:
    uri = str(tmp_path / "i")
    good, bad = publish(tmp_path, 0), publish(tmp_path, 1)
    versions.rollback(uri)
    new = publish(tmp_path, 2)
    assert versions.collect(uri, keep=2, grace_s=0) == []
    assert versions.rollback(uri).version == good
    versions.rollback(uri, new)
    newest = publish(tmp_path, 3)
    assert len(versions.collect(uri, keep=2, grace_s=0)) == 2
    assert [manifest.version for manifest in versions.history(uri)] == [new, newest]
    assert bad != versions.rollback(uri).version == new


def test_collect_removes_what_was_being_written_as_a_publisher_was_killed(tmp_path: Path) -> None:
    publish(tmp_path, 0)
    folder, aside = tmp_path / "i", f"{'0' * 32}.tmp"
    (folder / "history").mkdir(exist_ok=True)
    left = [
        folder / f"manifest.json.{aside}",
        folder / f"log.json.{aside}",
        folder / "history" / f"0123456789abcdef.json.{aside}",
    ]
    other = folder / "notes.tmp"
    for path in [*left, other]:
        path.write_text("{")
    versions.collect(str(folder), keep=1)
    assert all(path.exists() for path in left)  # they may be being written
    versions.collect(str(folder), keep=1, grace_s=0)
    assert not any(path.exists() for path in left)
    assert other.exists()
    Index.open(str(folder))


def test_equal_contents_published_again_can_be_collected(tmp_path: Path) -> None:
    uri = str(tmp_path / "i")
    assert publish(tmp_path, 0) == publish(tmp_path, 0)
    assert len(versions.history(uri)) == 1
    assert len(versions.collect(uri, keep=1, grace_s=0)) == 1
    assert len(Index.open(uri)) == 30


@pytest.mark.parametrize(
    "step",
    [
        "rec.retrieval.shards.Shard.write",
        "rec.retrieval.versions.upload",
        "rec.artifacts.describe",
        "rec.retrieval.versions._use",
        "os.replace",
    ],
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_publisher_killed_at_each_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, when: str
) -> None:
    uri = str(tmp_path / "i")
    first = publish(tmp_path, 0)
    embeddings(tmp_path / "e-1", clustered(30, seed=1))
    with monkeypatch.context() as patch:
        # what a dying process does not do either: clear up behind it
        patch.setattr("rec.retrieval.versions.discard", lambda _uri, _root: None)
        patch.setattr(step, _dying(step, when))
        with pytest.raises(Killed):
            publish(tmp_path, 1)
    used = Index.open(uri)
    assert versions.history(uri)[0].version == first
    # after the swap itself the new version is whole and in use, before it nothing has changed
    swapped = step.endswith("_use") and when == "after"
    assert (used.version != first) == swapped
    assert len(used.search(clustered(2), 5).ids) == 2
    second = publish(tmp_path, 1)
    assert Index.open(uri).version == second
    versions.collect(uri, keep=1, grace_s=0)
    assert len([p for p in (tmp_path / "i").iterdir() if p.name.startswith("v-")]) == 1
    assert Index.open(uri).version == second


@pytest.mark.parametrize("file", ["history", "manifest"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_publisher_killed_at_a_rename_leaves_no_version_that_was_never_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, when: str
) -> None:
    uri = str(tmp_path / "i")
    first = publish(tmp_path, 0)
    embeddings(tmp_path / "e-1", clustered(30, seed=1))
    real = os.replace

    def replace(source: str, target: str) -> None:
        mine = str(tmp_path / "i" / file) in target
        if mine and when == "before":
            raise Killed
        real(source, target)
        if mine:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", replace)
        with pytest.raises(Killed):
            publish(tmp_path, 1)
    swapped = (file, when) == ("manifest", "after")
    assert (versions.current(uri) == first) != swapped
    assert len(versions.history(uri)) == 1 + swapped
    third = publish(tmp_path, 2)
    assert versions.rollback(uri).version != third
    assert (versions.current(uri) == first) != swapped


def test_files_are_on_disk_before_the_manifest_and_its_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, replace = os.fsync, os.replace

    def synced(number: int) -> None:
        sync(number)
        done.append(os.readlink(f"/proc/self/fd/{number}"))

    def replaced(source: str, target: str) -> None:
        replace(source, target)
        done.append(f"{target} in place")

    embeddings(tmp_path / "e-0", clustered(30))
    monkeypatch.setattr("os.fsync", synced)
    monkeypatch.setattr("os.replace", replaced)
    publish(tmp_path, 0)
    folder = tmp_path / "i"
    root = folder / artifacts.read_manifest(folder, "index").root
    swap = done.index(f"{folder / 'manifest.json'} in place")
    assert {str(path) for path in [folder, root, *root.rglob("*")]} <= set(done[:swap])
    assert str(folder) in done[swap:]


def test_a_build_that_takes_longer_than_the_grace_is_not_collected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, folder = str(tmp_path / "i"), tmp_path / "i"
    first = publish(tmp_path, 0)
    removed: list[list[str]] = []
    real = merge_shards

    def slow(*arguments: Any) -> Any:
        for path in folder.rglob("*"):
            with suppress(FileNotFoundError):  # a marker that has its name by now
                os.utime(path, (0, 0))  # its shards were finished long ago
        while not list(folder.glob("v-*/building.tmp")):
            time.sleep(0.01)
        time.sleep(0.2)  # it is written again
        removed.append(versions.collect(uri, keep=1))
        return real(*arguments)

    monkeypatch.setattr(versions, "_MARK_S", 0.05)
    monkeypatch.setattr("rec.retrieval.build.merge_shards", slow)
    table = embeddings(tmp_path / "e-1", clustered(30, seed=1))
    second = build_index(table, uri, IndexConfig(num_shards=2, merge=True))
    assert removed == [[]]
    assert Index.open(uri).version == second.version != first
    assert not any("building" in name for name in second.files)
    assert not list(folder.rglob("building*"))


def test_grace_counts_from_when_a_version_went_out_of_use(tmp_path: Path) -> None:
    uri = str(tmp_path / "i")
    publish(tmp_path, 0)
    for path in (tmp_path / "i").rglob("*"):
        os.utime(path, (0, 0))  # in use for long
    publish(tmp_path, 1)
    assert versions.collect(uri, keep=1) == []
    for path in (tmp_path / "i" / "history").iterdir():
        os.utime(path, (0, 0))
    assert len(versions.collect(uri, keep=1)) == 1


@pytest.mark.parametrize("step", ["describe", "verify"])
def test_files_are_read_while_others_may_publish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    uri = str(tmp_path / "i")
    publish(tmp_path, 0)
    real, others = getattr(artifacts, step), []

    def slow(*places: Any, **about: Any) -> Any:
        with versions.one_publisher(uri, wait_s=0):
            others.append(1)
        return real(*places, **about)

    monkeypatch.setattr(artifacts, step, slow)
    publish(tmp_path, 1)
    versions.rollback(uri)
    assert others


def _dying(step: str, when: str) -> Callable[..., Any]:
    module, _, name = step.rpartition(".")
    owner: Any = _resolve(module)
    real = getattr(owner, name)

    def work(*arguments: Any, **about: Any) -> Any:
        if when == "before":
            raise Killed
        real(*arguments, **about)
        raise Killed

    return staticmethod(work) if isinstance(owner, type) else work


def _resolve(path: str) -> Any:
    import importlib

    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        return getattr(importlib.import_module(module), name)


def test_publishing_on_a_stale_version_is_refused(tmp_path: Path) -> None:
    uri = str(tmp_path / "i")
    first = publish(tmp_path, 0)
    second = publish(tmp_path, 1)
    (tmp_path / "i" / "v-new").mkdir()
    (tmp_path / "i" / "v-new" / "file").write_text("x")
    with pytest.raises(StaleError, match=f"version {second} is in use, not {first}"):
        versions.publish(uri, "v-new", expect=first)
    assert versions.current(uri) == second
    assert not (tmp_path / "i" / "v-new").exists()


def test_a_publisher_that_waits_in_vain_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = str(tmp_path / "i")
    first = publish(tmp_path, 0)
    real = versions.one_publisher
    with real(uri), monkeypatch.context() as patch:
        patch.setattr(versions, "one_publisher", lambda uri: real(uri, wait_s=0.1))
        with pytest.raises(ArtifactError, match=r"has been publishing for 0\.1 s"):
            publish(tmp_path, 1)
    assert len(list((tmp_path / "i").glob("v-*"))) == 1
    assert Index.open(uri).version == first


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupted_swap_removes_nothing_that_may_be_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    first = publish(tmp_path, 0)
    with monkeypatch.context() as patch:
        patch.setattr("rec.retrieval.versions._use", _dying("rec.retrieval.versions._use", when))
        with pytest.raises(Killed):
            publish(tmp_path, 1)
    index = Index.open(str(tmp_path / "i"))
    assert (index.version == first) == (when == "before")
    assert len(index) == 30


def test_full_disk_is_typed_and_names_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = publish(tmp_path, 0)
    embeddings(tmp_path / "e-1", clustered(30, seed=1))

    def full(*arguments: Any, **about: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rec.retrieval.versions.pafs.copy_files", full)
    with pytest.raises(ArtifactError, match=r"v-.*shard-00000: cannot be written: .*No space"):
        publish(tmp_path, 1)
    monkeypatch.undo()
    assert Index.open(str(tmp_path / "i")).version == first
    assert len(list((tmp_path / "i").glob("v-*"))) == 1  # nothing half written is left


def test_full_disk_at_the_manifest_leaves_no_file_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = publish(tmp_path, 0)
    embeddings(tmp_path / "e-1", clustered(30, seed=1))

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    real = versions._use
    with monkeypatch.context() as patch:

        def use(*arguments: Any) -> None:
            patch.setattr("os.fsync", full)
            real(*arguments)

        patch.setattr(versions, "_use", use)
        with pytest.raises(ArtifactError, match=r"cannot be published: .*No space"):
            publish(tmp_path, 1)
    assert versions.current(str(tmp_path / "i")) == first
    assert not list((tmp_path / "i").rglob("*.tmp"))


def test_a_history_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    publish(tmp_path, 0)
    (tmp_path / "i" / "history").mkdir(exist_ok=True)
    (tmp_path / "i" / "history" / "0.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"history/0\.json: not a manifest"):
        versions.history(str(tmp_path / "i"))


def test_a_damaged_version_is_in_the_way_of_no_other(tmp_path: Path) -> None:
    uri = str(tmp_path / "i")
    first, second, _third = (publish(tmp_path, seed) for seed in range(3))
    damaged = tmp_path / "i" / "history" / f"{second}.json"
    damaged.write_text("{")
    with pytest.raises(ArtifactError, match=f"history/{second}.json: damaged, so that .* again"):
        versions.rollback(uri)
    assert versions.rollback(uri, first).version == first
