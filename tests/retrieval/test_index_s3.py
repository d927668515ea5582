"""Index, versions and live changes on S3, against a server on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tables import clustered, embeddings

from rec import copies
from rec.artifacts import ArtifactError
from rec.retrieval import versions
from rec.retrieval.build import build_index
from rec.retrieval.changes import Delete, Put
from rec.retrieval.index import Index
from rec.retrieval.live import LiveIndex
from rec.retrieval.spec import IndexConfig


@pytest.mark.slow
def test_build_change_compact_roll_back_and_clear_away(s3: str, tmp_path: Path) -> None:
    table = embeddings(tmp_path / "e", clustered(400))
    uri = f"{s3}/index"
    config = IndexConfig(factory="IVF8,SQ8", num_shards=2, num_queries=50)
    first = build_index(table, uri, config)
    live = LiveIndex(uri, tmp_path / "log", compact_at=None)
    live.apply([Put("new", clustered(1, seed=1)[0]), Delete("item-3")])
    second = live.compact()
    assert second is not None
    assert versions.current(uri) == second.version == live.index.version
    assert ("new" in live.index, "item-3" in live.index) == (True, False)
    live.close()
    assert versions.rollback(uri).version == first.version == Index.open(uri).version
    versions.rollback(uri, second.version)
    assert versions.collect(uri, keep=1, grace_s=0) == [first.root]
    assert len(Index.open(uri)) == 400
    with pytest.raises(ArtifactError, match="no version before"):
        versions.rollback(uri)
    merged = build_index(table, uri, config.model_copy(update={"merge": True}))
    assert merged.config["num_shards"] == 1
    assert len(Index.open(uri)) == 400


@pytest.mark.slow
def test_copies_of_versions_no_longer_used_are_dropped(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, uri = embeddings(tmp_path / "e", clustered(60)), f"{s3}/index"
    build_index(table, uri)
    live = LiveIndex(uri, tmp_path / "log", compact_at=None, keep=3, grace_s=0)
    place = copies.place("0").parent
    for number in range(4):
        live.apply([Delete(f"item-{number}")])
        live.compact()
        assert [path.name for path in place.iterdir()] == [live.index.version]
    live.close()
    # one that another process is reading stays until it is done, and nobody wants it for a day
    before = versions.history(uri)[-2]
    older = place / before.version
    code = "import sys; from pathlib import Path; from rec import copies\n"
    code += "assert copies.hold(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    Index.open(uri, manifest=before)
    with subprocess.Popen(
        [sys.executable, "-c", code, str(older)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        os.utime(older, (0, 0))
        Index.open(uri)
        assert older.exists()
        assert other.stdin is not None
        other.stdin.close()
    Index.open(uri)
    assert [path.name for path in place.iterdir()] == [versions.current(uri)]
    (place / f"{'0' * 16}.{'1' * 32}.tmp").mkdir()  # of a process that was killed
    os.utime(place / f"{'0' * 16}.{'1' * 32}.tmp", (0, 0))
    (place / "folders").mkdir()  # of others
    os.utime(place / "folders", (0, 0))
    Index.open(uri)
    assert {path.name for path in place.iterdir()} == {versions.current(uri), "folders"}
