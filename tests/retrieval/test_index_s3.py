"""Index, versions and live changes on S3, against a server on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
from tables import clustered, embeddings

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
