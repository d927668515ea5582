from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from rec.data import ingest
from rec.data.media import MediaConfig
from rec.data.rows import RowsConfig, RowsError, build_rows
from rec.sources import FolderSource, SyntheticSource


def no_work(*_: object) -> Iterator[dict[str, object]]:
    """The summary of a shard that was finished before there was a media_index."""
    yield {
        "index": 0,
        "sizes": {"items": [1, 2], "media": [1, 2], "problems": [0, 9]},
        "sample": [],
    }


def test_tables_of_sources_without_files_keep_their_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "with_markers", no_work)
    source = SyntheticSource(num_items=4, num_shards=1)
    before = hashlib.sha256(json.dumps(source.model_dump(mode="json"), sort_keys=True).encode())
    tables = ingest.write_tables(source, str(tmp_path), media=MediaConfig(frame_side=64))
    state = json.loads((tmp_path / "state" / "source.json").read_text())
    assert state["digest"] == before.hexdigest()[:16]
    assert set(tables.tables) == {"items", "media"}
    with pytest.raises(RowsError, match="no media_index"):
        build_rows(str(tmp_path), str(tmp_path / "rows"), RowsConfig(duplicate_distance=4))


def test_tables_of_files_are_of_their_media_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "with_markers", no_work)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "items.csv").write_text("item_id\na")
    digests = set()
    for side in (64, 128):
        out = tmp_path / str(side)
        ingest.write_tables(
            FolderSource(path=str(tmp_path / "mine")), str(out), media=MediaConfig(frame_side=side)
        )
        digests.add(json.loads((out / "state" / "source.json").read_text())["digest"])
    assert len(digests) == 2
