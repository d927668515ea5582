"""Deliveries of several days as one set of tables: of an item the newest counts."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rec.artifacts import file_entry
from rec.data.ingest import write_tables
from rec.data.item_facts import FACTS, carry_facts
from rec.data.merge import merge_tables
from rec.data.tables import IngestError, Tables, read_tables
from rec.sources import FolderSource, SyntheticSource

pytestmark = pytest.mark.ray


def deliver(folder: Path, titles: dict[str, str]) -> str:
    """Tables, in two shards, of items with a title and a picture that belongs to it."""
    raw = folder / "raw"
    raw.mkdir(parents=True)
    lines = ["item_id,title,files"]
    for number, (item_id, title) in enumerate(titles.items()):
        pixels = np.random.default_rng(len(title) * 1000 + number).integers(
            0, 256, (24, 24, 3), np.uint8
        )
        cv2.imwrite(str(raw / f"{item_id}.png"), pixels)
        lines.append(f"{item_id},{title},{item_id}.png")
    (raw / "items.csv").write_text("\n".join(lines))
    place = str(folder / "tables")
    write_tables(FolderSource(path=str(raw), num_shards=2), place)
    return place


def titles_of(place: str) -> dict[str, str]:
    found = pq.read_table(f"{place}/items").select(["item_id", "title"])
    return dict(zip(*(column.to_pylist() for column in found.columns), strict=True))


def media_by_item(place: str, tables: Tables) -> dict[str, bytes]:
    """Where media_index says that they are."""
    found: dict[str, bytes] = {}
    for shard in range(tables.num_shards):
        name = f"shard-{shard:05d}.parquet"
        media = pq.read_table(f"{place}/media/{name}")
        for row in pq.read_table(f"{place}/media_index/{name}").to_pylist():
            assert row["shard"] == shard
            assert media["item_id"][row["row"]].as_py() == row["item_id"]
            assert row["item_id"] not in found
            found[row["item_id"]] = media["data"][row["row"]].as_py()
    assert len(found) == tables.tables["media"].num_rows
    return found


def test_an_item_is_as_it_was_delivered_last(ray_local: None, tmp_path: Path) -> None:
    days = [
        deliver(tmp_path / "1", {name: f"first {name}" for name in "abcdef"}),
        deliver(tmp_path / "2", {"b": "second b", "g": "second g"}),
        deliver(tmp_path / "3", {"g": "third g", "a": "third a", "h": "third h"}),
    ]
    out = str(tmp_path / "all")
    merged = merge_tables(days, out)
    assert titles_of(out) == {
        **{name: f"first {name}" for name in "cdef"},
        "b": "second b",
        **{name: f"third {name}" for name in "gah"},
    }
    media = media_by_item(out, merged)
    for place, names in zip(days, ("cdef", "b", "gah"), strict=True):
        theirs = media_by_item(place, read_tables(place))
        assert {name: media[name] for name in names} == {name: theirs[name] for name in names}
    items = merged.ledger.stages["items"]
    assert (items.rows_in, items.rows_out) == (11, 8)
    assert items.dropped == {"delivered again later": 3}
    assert merged.num_shards == 6
    for name, entry in merged.files.items():
        assert file_entry(f"{out}/{name}") == entry
    assert read_tables(out) == merged

    stood = {path: path.stat().st_mtime_ns for path in Path(out).rglob("*.parquet")}
    assert merge_tables(days, out) == merged
    assert {path: path.stat().st_mtime_ns for path in stood} == stood
    assert merge_tables(days[:2], out).num_shards == 4  # of others nothing is left
    assert set(titles_of(out)) == set("abcdefg")


def test_what_happened_is_all_kept(ray_local: None, tmp_path: Path) -> None:
    places = []
    for seed in range(2):
        place = str(tmp_path / str(seed))
        write_tables(SyntheticSource(num_items=12, num_users=5, num_shards=1, seed=seed), place)
        places.append(place)
    out = str(tmp_path / "all")
    merged = merge_tables(places, out)
    for name, size in merged.tables.items():
        both = [pq.read_table(f"{place}/{name}") for place in places]
        if name in ("items", "media", "media_index"):  # equal ids: the second's alone are left
            both = both[1:]
        assert size.num_rows == sum(table.num_rows for table in both)
        if name == "interactions":
            found = pq.read_table(f"{out}/{name}")
            assert found.equals(pa.concat_tables(both))


def test_deliveries_that_do_not_fit_together_are_refused(ray_local: None, tmp_path: Path) -> None:
    one = deliver(tmp_path / "1", {"a": "a", "b": "b"})
    write_tables(SyntheticSource(num_items=4, num_users=3), str(tmp_path / "2"))
    with pytest.raises(IngestError, match="different sources"):
        merge_tables([one, str(tmp_path / "2")], str(tmp_path / "all"))
    with pytest.raises(IngestError, match="not found"):
        merge_tables([one, str(tmp_path / "3")], str(tmp_path / "all"))


def test_tables_of_another_origin_are_not_written_over(ray_local: None, tmp_path: Path) -> None:
    one, other = (deliver(tmp_path / name, {name: name}) for name in "ab")
    before = {file: file.read_bytes() for file in Path(other).rglob("*") if file.is_file()}
    with pytest.raises(IngestError, match="merge to another place"):
        merge_tables([one], other)
    assert {file: file.read_bytes() for file in before} == before


def test_facts_are_those_of_the_last_delivery(ray_local: None, tmp_path: Path) -> None:
    first = deliver(tmp_path / "1", {name: name for name in "abcd"})
    second = deliver(tmp_path / "2", {"b": "b", "e": "e"})
    facts = [str(tmp_path / "facts" / day) for day in "12"]
    carry_facts(first, facts[0], None)
    made = carry_facts(second, facts[1], facts[0])
    assert made.metrics == {"delivered": 2, "carried": 3, "replaced": 1}
    found = pq.read_table(f"{facts[1]}/{made.root}")
    assert found.schema.names == FACTS.names
    assert sorted(found.column("item_id").to_pylist()) == list("abcde")
