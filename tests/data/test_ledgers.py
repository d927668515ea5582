"""Beside every output of data: rows in, out and dropped, schema, hashes, and where it is from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rec.artifacts import describe
from rec.data import media
from rec.data.behaviour import build_behaviour
from rec.data.behaviour_config import BehaviourConfig
from rec.data.edges import EdgeConfig
from rec.data.ingest import write_shard
from rec.data.ledger import Ledger, StageCounts
from rec.data.logs import LogFiles
from rec.data.media import MediaConfig
from rec.schema import TIMESTAMP
from rec.sources import FolderSource, MovieLensSource


def in_a_loop(
    work: Callable[[int], dict[str, object]], indices: Sequence[int], *_: object
) -> Iterator[dict[str, object]]:
    return (work(index) for index in indices)


def test_a_manifest_tells_columns_arrays_and_the_logs_it_is_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rec.data.tasks.map_shards", in_a_loop)
    times = pa.array([1000 * n for n in range(6)], TIMESTAMP)
    log = {"user_id": ["u", "v"] * 3, "item_id": list("aabbcc"), "event": ["click"] * 6}
    (tmp_path / "log").mkdir()
    pq.write_table(pa.table({**log, "event_time": times}), tmp_path / "log" / "a.parquet")
    logs = LogFiles(path=str(tmp_path / "log"))
    config = BehaviourConfig(interactions=logs, edges=EdgeConfig(), num_buckets=2)
    manifest = build_behaviour(str(tmp_path / "out"), config, datetime(2030, 1, 1, tzinfo=UTC))
    assert manifest.ledger == "ledger.json"
    assert set(manifest.lineage) == {"interactions"}
    schemas = manifest.schemas
    assert schemas["sequences/shard-*.parquet"]["user_id"] == "string not null"
    assert schemas["edges/shard-*.parquet"]["weight"] == "float not null"
    graph = schemas["graph/item-co_watched-item/shard-*.safetensors"]
    assert graph["indptr"] == "I64 of 1 dimensions"
    assert graph["weights"] == "F32 of 1 dimensions"


def test_rows_of_unknown_films_are_in_the_ledger(tmp_path: Path) -> None:
    (tmp_path / "posters").mkdir()
    for name, lines in {
        "movies": ["movieId,title,genres", "1,One (1999),Drama"],
        "descriptions": ["movieId,overview,keywords", "1,text,a|b"],
        "ratings": ["userId,movieId,rating,timestamp", "1,1,4,9", "1,2,4,9", "2,3,4,9"],
        "tags": ["userId,movieId,tag,timestamp", "1,1,good,9"],
        "relations": ["movieId,relation,entity", "1,directed_by,x"],
    }.items():
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "posters" / "1.jpg").write_bytes(b"broken")
    source = MovieLensSource(path=str(tmp_path), num_shards=1)
    told = write_shard(source, source.shards()[0], str(tmp_path / "out"), MediaConfig())
    stages = Ledger.from_json(told["ledger"]).stages
    dropped = {"listed in problems": 2}
    assert stages["interactions"] == StageCounts(rows_in=3, rows_out=1, dropped=dropped)
    assert stages["media"].dropped == {"listed in problems": 1}
    assert stages["items"] == StageCounts(rows_in=1, rows_out=1)


def test_a_file_of_two_items_that_is_unreadable_once_is_counted_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "both.png"), np.full((8, 8, 3), 9, np.uint8))
    (tmp_path / "in" / "items.csv").write_text("item_id,files\na,both.png\nb,both.png\n")
    tries: list[str] = []
    read = media._read

    def fails_once(*arguments: Any) -> bytes:
        tries.append(arguments[1])
        if len(tries) == 1:
            raise OSError("the connection was closed")
        return read(*arguments)

    monkeypatch.setattr(media, "_read", fails_once)
    source = FolderSource(path=str(tmp_path / "in"), num_shards=1)
    told = write_shard(source, source.shards()[0], str(tmp_path / "out"), MediaConfig())
    stages = Ledger.from_json(told["ledger"]).stages
    lost = {"cannot be read": 1}
    assert stages["files"] == StageCounts(rows_in=2, rows_out=1, dropped=lost)
    assert told["sizes"]["problems"][0] == 1


def test_files_that_differ_in_numbers_alone_are_one_table(tmp_path: Path) -> None:
    for name, column in {
        "part-00000": "vector",
        "part-00001": "vector",
        "shard-00000/ids": "key",
        "shard-00001/ids": "key",
        "shard-00000/attributes": "genre",
    }.items():
        place = tmp_path / "v" / f"{name}.parquet"
        place.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({column: ["a"]}), place)
    assert describe(str(tmp_path), "v", "test").schemas == {
        "part-*.parquet": {"vector": "string"},
        "shard-*/ids.parquet": {"key": "string"},
        "shard-*/attributes.parquet": {"genre": "string"},
    }
    (tmp_path / "other").mkdir()
    for name in ("a.parquet", "b.safetensors", "c.txt"):
        (tmp_path / "other" / name).write_bytes(b"of another kind")
    assert describe(str(tmp_path), "other", "test").schemas == {}
