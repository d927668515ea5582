"""Artifacts: published whole or not at all, altered files refused by name, local and on S3."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from pathlib import Path

import pytest

from rec import artifacts
from rec.artifacts import (
    ArtifactError,
    Manifest,
    join,
    open_artifact,
    publish,
    read_manifest,
    seal,
    verify,
)


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "runs")
    return request.getfixturevalue("s3")


def staged(folder: Path, text: str = "one") -> Path:
    (folder / "inner").mkdir(parents=True)
    (folder / "a.bin").write_bytes(text.encode() * 1000)
    (folder / "inner" / "b.bin").write_bytes(b"\x00\xff")
    (folder / "empty").write_bytes(b"")
    return folder


def put(uri: str, data: bytes) -> None:
    files, path = artifacts.filesystem(uri)
    with files.open_output_stream(path) as stream:
        stream.write(data)


def test_round_trip(place: str, tmp_path: Path) -> None:
    uri = join(place, "thing")
    manifest = publish(
        staged(tmp_path / "s"),
        uri,
        "tables",
        lineage={"rows": "v1"},
        config={"seed": 1},
        metrics={"x": 0.5},
    )
    found, folder = open_artifact(uri, "tables")
    assert found == manifest
    assert (found.lineage, found.config, found.metrics) == (
        {"rows": "v1"},
        {"seed": 1},
        {"x": 0.5},
    )
    assert set(found.files) == {"a.bin", "inner/b.bin", "empty"}
    assert (folder / "a.bin").read_bytes() == b"one" * 1000
    assert (folder / "inner" / "b.bin").read_bytes() == b"\x00\xff"
    assert (folder / "empty").read_bytes() == b""
    assert open_artifact(uri, "tables")[1] == folder  # a second time, from the cache on S3


def test_version_is_a_function_of_the_contents(place: str, tmp_path: Path) -> None:
    one = publish(staged(tmp_path / "a"), join(place, "one"), "tables")
    same = publish(tmp_path / "a", join(place, "two"), "tables", metrics={"x": 1})
    other = publish(staged(tmp_path / "b", "two"), join(place, "three"), "tables")
    kind = publish(tmp_path / "a", join(place, "four"), "index")
    assert one.version == same.version
    assert len({one.version, other.version, kind.version}) == 3
    assert one.root != same.root


def test_a_new_version_leaves_the_old_files(place: str, tmp_path: Path) -> None:
    uri = join(place, "thing")
    old = publish(staged(tmp_path / "a"), uri, "tables")
    new = publish(staged(tmp_path / "b", "two"), uri, "tables")
    assert artifacts.read_manifest(uri, "tables") == new
    verify(uri, old)  # a reader that holds the old manifest goes on reading it
    assert (open_artifact(uri, "tables")[1] / "a.bin").read_bytes() == b"two" * 1000


def test_another_kind_is_not_published_over_an_artifact(tmp_path: Path, place: str) -> None:
    uri = join(place, "thing")
    held = publish(staged(tmp_path / "a"), uri, "index")
    with pytest.raises(ArtifactError, match="kind 'index', which one of kind 'embedding-table'"):
        publish(staged(tmp_path / "b"), uri, "embedding-table")
    with pytest.raises(ArtifactError, match="kind 'index', which one of kind 'embedding-table'"):
        seal(uri, held.root, "embedding-table")
    assert read_manifest(uri, "index") == held
    assert {name.split("/")[0] for name in artifacts.file_sizes(uri)} == {
        held.root,
        "manifest.json",
    }


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_altered_file_is_refused_by_name(place: str, tmp_path: Path, damage: str) -> None:
    uri = join(place, "thing")
    manifest = publish(staged(tmp_path / "s"), uri, "tables")
    victim = join(uri, manifest.root, "a.bin")
    if damage == "flip":
        put(victim, b"onE" + b"one" * 999)
    elif damage == "truncate":
        put(victim, b"one" * 10)
    else:
        files, path = artifacts.filesystem(victim)
        files.delete_file(path)
    with pytest.raises(ArtifactError, match=r"a\.bin.*publish again"):
        open_artifact(uri, "tables")


def test_altered_copy_in_the_cache_is_fetched_again(s3: str, tmp_path: Path) -> None:
    uri = join(s3, "thing")
    publish(staged(tmp_path / "s"), uri, "tables")
    _, folder = open_artifact(uri, "tables")
    (folder / "a.bin").write_bytes(b"scribble")
    _, again = open_artifact(uri, "tables")
    assert (again / "a.bin").read_bytes() == b"one" * 1000


def test_many_readers_fill_one_cache(s3: str, tmp_path: Path) -> None:
    uri = join(s3, "thing")
    publish(staged(tmp_path / "s"), uri, "tables")
    found: list[bytes] = []

    def read() -> None:
        found.append((open_artifact(uri, "tables")[1] / "a.bin").read_bytes())

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [b"one" * 1000] * 6
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["raycall"]


def test_absent_wrong_kind_and_unreadable_manifests(place: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"nowhere/manifest\.json: not found.*'index'"):
        artifacts.read_manifest(join(place, "nowhere"), "index")
    publish(staged(tmp_path / "s"), join(place, "thing"), "tables")
    with pytest.raises(ArtifactError, match="a 'tables' artifact, expected 'index'"):
        open_artifact(join(place, "thing"), "index")
    for text in (b"{", b"[]", b'{"kind": "tables"}', b"\xff\xfe"):
        artifacts.write_atomic(join(place, "broken", "manifest.json"), text)
        with pytest.raises(ArtifactError, match=r"broken/manifest\.json: not a manifest") as told:
            artifacts.read_manifest(join(place, "broken"), "tables")
        assert "\n" not in str(told.value)
        assert str(told.value).endswith(
            "; restore it, or remove it and run the job that made it again"
        )


def test_a_manifest_that_is_cut_short_is_told_in_a_line(tmp_path: Path) -> None:
    publish(staged(tmp_path / "s"), str(tmp_path / "thing"), "tables")
    manifest = tmp_path / "thing" / "manifest.json"
    whole = manifest.read_bytes()
    for size in (0, 1, 40, len(whole) - 2):
        manifest.write_bytes(whole[:size])
        with pytest.raises(ArtifactError) as told:
            open_artifact(str(tmp_path / "thing"), "tables")
        said = str(told.value)
        assert said.startswith(f"{manifest}: not a manifest (Invalid JSON: EOF while parsing")
        assert "\n" not in said


@pytest.mark.parametrize("uri", ["s3x://a/b", "FILE:///a"])
def test_a_place_of_no_known_kind(uri: str) -> None:
    with pytest.raises(ArtifactError, match=r"give a local path or s3://BUCKET/FOLDER"):
        artifacts.filesystem(uri)


def test_nothing_to_publish(place: str, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    with pytest.raises(ArtifactError, match="no files to publish"):
        publish(tmp_path / "s", join(place, "thing"), "tables")
    assert not artifacts.exists(join(place, "thing", "manifest.json"))
    with pytest.raises(ArtifactError, match="no files to publish"):
        seal(join(place, "other"), "root", "tables")


def test_seal_takes_parts_in_place_and_leaves_out_what_is_half_written(place: str) -> None:
    uri = join(place, "table")
    artifacts.write_atomic(join(uri, "r", "part-1"), b"1")
    artifacts.write_atomic(join(uri, "r", "deep", "part-2"), b"2")
    put(join(uri, "r", "part-3.0123.tmp"), b"half")
    manifest = seal(uri, "r", "embedding-table")
    assert list(manifest.files) == ["deep/part-2", "part-1"]
    verify(uri, manifest)


def test_write_atomic_replaces_whole_files(place: str) -> None:
    uri = join(place, "deep", "er", "file")
    assert not artifacts.exists(uri)
    artifacts.write_atomic(uri, b"old" * 100)
    artifacts.write_atomic(uri, b"new")
    assert artifacts.exists(uri)
    assert artifacts.read_bytes(uri) == b"new"


def test_publisher_that_dies_leaves_the_old_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At whatever call of the file system it dies, readers see the old version or the new one."""
    uri = str(tmp_path / "thing")
    old = publish(staged(tmp_path / "a"), uri, "tables")
    staged(tmp_path / "b", "two")
    for name in ("fsync", "replace"):

        def dies(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(os, name, dies)
            with pytest.raises(KeyboardInterrupt):
                publish(tmp_path / "b", uri, "tables")
        assert open_artifact(uri, "tables")[0] == old
    assert publish(tmp_path / "b", uri, "tables").version != old.version
    assert (open_artifact(uri, "tables")[1] / "a.bin").read_bytes() == b"two" * 1000


def test_an_artifact_can_be_moved(tmp_path: Path) -> None:
    publish(staged(tmp_path / "s"), tmp_path / "here", "tables")
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert (open_artifact(tmp_path / "there", "tables")[1] / "a.bin").exists()


def test_manifest_round_trip() -> None:
    manifest = Manifest(kind="index", version="0" * 16, root="r", files={})
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_no_flipped_bit_of_a_manifest_goes_unnoticed() -> None:
    manifest = Manifest(
        kind="index",
        version="0" * 16,
        root="r",
        files={},
        config={"log_seq": 1},
        metrics={"x": 0.1},
    )
    data = manifest.to_json().encode()
    for place in range(len(data)):
        for bit in range(8):
            altered = bytearray(data)
            altered[place] ^= 1 << bit
            with contextlib.suppress(ValueError):
                assert Manifest.from_json(altered.decode()) == manifest
    with pytest.raises(ValueError, match="altered since it was written"):
        Manifest.from_json(data.decode().replace('"log_seq": 1', '"log_seq": 5'))


def test_a_manifest_from_before_they_told_their_own_sha256_is_read() -> None:
    manifest = Manifest(kind="index", version="0" * 16, root="r", files={})
    told = json.loads(manifest.to_json())
    del told["sha256"]
    assert Manifest.from_json(json.dumps(told)) == manifest


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (("a", "b"), "a/b"),
        (("a/", "b", "c"), "a/b/c"),
        (("s3://bucket/x/", "y"), "s3://bucket/x/y"),
        (("a",), "a"),
    ],
)
def test_join(parts: tuple[str, ...], expected: str) -> None:
    assert join(*parts) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"version": "../../elsewhere"},
        {"version": "/etc"},
        {"root": ".."},
        {"root": "a/../.."},
        {"files": {"../x": {"sha256": "0", "num_bytes": 1}}},
        {"files": {"/x": {"sha256": "0", "num_bytes": 1}}},
    ],
)
def test_a_manifest_that_leads_out_of_its_folder_is_refused(
    tmp_path: Path, change: dict[str, object]
) -> None:
    good = {"kind": "index", "version": "0" * 16, "root": "v-1", "files": {}}
    (tmp_path / "manifest.json").write_text(json.dumps({**good, **change}))
    with pytest.raises(ArtifactError, match="not a manifest"):
        read_manifest(tmp_path, "index")
