"""Beside every output of data: rows in, out and dropped, schema, hashes, and where it is from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import behaviour, ingest, sequences
from rec.artifacts import describe, file_entry, join, read_bytes, read_manifest, verify
from rec.data import media
from rec.data.ingest import write_shard
from rec.data.ledger import Ledger, StageCounts
from rec.data.media import MediaConfig
from rec.data.tables import read_tables
from rec.sources import FolderSource, MovieLensSource

_LOGS = {"interactions", "searches", "comments", "items"}


@pytest.fixture(scope="module")
def run(ray_local: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Tables, rows of items, behaviour with a graph and rows of users, of one small platform."""
    out = str(tmp_path_factory.mktemp("run"))
    tables = join(out, "tables")
    small = ["source.num_items=40", "source.num_shards=2", "source.interactions_per_user=9"]
    assert ingest.main(["--out", out, "--set", *small]) == 0
    logs = ["--logs", tables, "--cutoff", "2030-01-01", "--out", join(out, "behaviour")]
    assert behaviour.main([*logs, "--set", "num_buckets=2", "edges={}"]) == 0
    split = ["--leave-one-out", "--set", "domain=video"]
    users = ["--behaviour", join(out, "behaviour"), "--out", join(out, "sequences")]
    assert sequences.main([*users, *split, "--items", join(tables, "items")]) == 0
    return out


def balances(ledger: Ledger) -> bool:
    stages = ledger.stages.values()
    return bool(stages) and all(s.rows_in == s.rows_out + sum(s.dropped.values()) for s in stages)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")
def test_every_output_has_ledger_schema_hashes_and_lineage(run: str) -> None:
    tables = read_tables(join(run, "tables"))
    assert balances(tables.ledger)
    assert {name: tables.ledger.stages[name].rows_out for name in tables.tables} == {
        name: size.num_rows for name, size in tables.tables.items()
    }
    assert tables.source["num_items"] == 40
    on_disk = {str(p.relative_to(f"{run}/tables")) for p in Path(run, "tables").rglob("*.parquet")}
    assert set(tables.files) == on_disk
    for name, entry in tables.files.items():
        assert file_entry(join(run, "tables", name)) == entry
        found = pq.read_schema(join(run, "tables", name))
        assert list(tables.schemas[name.split("/")[0]]) == found.names
    made_of = {"rows": {"tables"}, "behaviour": _LOGS, "sequences": {"behaviour", "items"}}
    for name, lineage in made_of.items():
        manifest = read_manifest(join(run, name))
        verify(join(run, name), manifest)
        assert set(manifest.lineage) == lineage
        assert manifest.ledger is not None
        text = read_bytes(join(run, name, manifest.root, manifest.ledger)).decode()
        assert balances(Ledger.from_json(text))
        for file in manifest.files:
            is_told = re.sub(r"\d+", "*", file) in manifest.schemas
            assert is_told == file.endswith((".parquet", ".safetensors"))


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")
def test_a_manifest_tells_columns_and_arrays(run: str) -> None:
    schemas = read_manifest(join(run, "behaviour")).schemas
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
