"""Only rows that changed are embedded again, and a table carries on the vectors of all others."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from rec import artifacts
from rec.data import carried
from rec.data.content_stages import CONTENT_ROWS
from rec.runtime import changed
from rec.runtime.changed import (
    HASH,
    TABLE,
    any_rows,
    carry,
    changed_rows,
    content_hashes,
    no_vectors,
)
from rec.runtime.embed import list_partitions
from rec.runtime.partition import EmbedError
from rec.schema import EMBEDDINGS

pytestmark = pytest.mark.ray

Rows = dict[str, tuple[list[int], list[bytes], bytes | None]]


def row_table(rows: Rows) -> pa.Table:
    columns = dict(
        zip(("token_ids", "frames", "log_mel"), zip(*rows.values(), strict=True), strict=True)
    )
    nothing = {name: [None] * len(rows) for name in CONTENT_ROWS.names}
    return pa.table({**nothing, **columns, "item_id": list(rows)}, schema=CONTENT_ROWS)


def publish_rows(folder: Path, files: list[Rows]) -> str:
    place = folder / "rows" / "r"
    (place / "train").mkdir(parents=True)
    (place / "tokenizer").mkdir()
    (place / "tokenizer" / "tokenizer.json").write_text("words")
    for number, rows in enumerate(files):
        pq.write_table(
            row_table(rows), place / "train" / f"shard-{number:05d}.parquet", row_group_size=2
        )
    artifacts.seal(place.parent, "r", "content-rows", metrics={"cutoff": "then"})
    return str(place.parent)


def publish_vectors(folder: Path, rows: str, night: int, encoder: str = "e") -> str:
    """As embed does: a part for each file of rows; a vector tells the night it was made in."""
    place = folder / "vectors" / "e"
    place.mkdir(parents=True)
    for one in list_partitions(rows)[1]:
        ids = pq.read_table(f"{one.folder}/{one.name}", columns=["item_id"]).column(0).to_pylist()
        columns = [ids, [0] * len(ids), [1.0] * len(ids), [[float(night), 1.0]] * len(ids)]
        pq.write_table(
            pa.table([pa.array(c, f.type) for c, f in zip(columns, EMBEDDINGS, strict=True)],
                     schema=EMBEDDINGS),
            place / one.part_name,
        )  # fmt: skip
    artifacts.seal(place.parent, "e", "embedding-table", lineage={"encoder": encoder})
    return str(place.parent)


def nights_of(table: str) -> dict[str, int]:
    manifest = artifacts.read_manifest(table)
    found = pq.read_table(f"{table}/{manifest.root}", schema=TABLE)
    assert found.num_rows == manifest.metrics["num_rows"]
    nights = [int(vector[0]) for vector in found.column("vector").to_pylist()]
    ids = found.column("id").to_pylist()
    assert len(set(ids)) == len(ids)
    return dict(zip(ids, nights, strict=True))


def test_a_hash_is_of_all_that_an_encoder_reads() -> None:
    rows: Rows = {
        "as it is": ([5, 6], [b"ab", b"c"], b"x"),
        "again": ([5, 6], [b"ab", b"c"], b"x"),
        "cut elsewhere": ([5, 6], [b"a", b"bc"], b"x"),
        "one frame": ([5, 6], [b"abc"], b"x"),
        "other words": ([6, 5], [b"ab", b"c"], b"x"),
        "other sound": ([5, 6], [b"ab", b"c"], b"y"),
        "no sound": ([5, 6], [b"ab", b"c"], None),
        "no text": ([], [b"ab", b"c"], b"x"),
    }
    hashes = content_hashes(row_table(rows)).to_pylist()
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == len(rows) - 1
    other = row_table(rows).set_column(1, CONTENT_ROWS.field(1), pa.nulls(8, CONTENT_ROWS[1].type))
    labelled = pa.array([[1]] * 8, CONTENT_ROWS.field("label_ids").type)
    other = other.set_column(5, CONTENT_ROWS.field(5), labelled)
    assert content_hashes(other).to_pylist() == hashes


def test_nights_in_a_row(ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carried, "_PART_ROWS", 5)
    first = publish_rows(
        tmp_path / "1",
        [{f"i{n}": ([n], [], None) for n in range(4)}, {"p": ([1], [b"p"], None)}],
    )
    table = str(tmp_path / "1" / "table")
    carry(first, publish_vectors(tmp_path / "1", first, 1), table, None)
    assert nights_of(table) == dict.fromkeys(["i0", "i1", "i2", "i3", "p"], 1)

    second = publish_rows(
        tmp_path / "2",
        [
            {"i0": ([0], [], None), "i2": ([2, 2], [], None), "j": ([0], [], None)},
            {"p": ([1], [b"p"], None)},
            {"i3": ([3], [b"a picture now"], None)},
        ],
    )
    rows = str(tmp_path / "2" / "changed")
    found = changed_rows(second, table, rows)
    assert {name: found.metrics[name] for name in ("delivered", "new", "altered", "unchanged")} == {
        "delivered": 5, "new": 1, "altered": 2, "unchanged": 2,
    }  # fmt: skip
    assert found.metrics["cutoff"] == "then"
    assert (
        found.files["tokenizer/tokenizer.json"]
        == (artifacts.read_manifest(second).files["tokenizer/tokenizer.json"])
    )
    kept = [pq.read_table(f"{p.folder}/{p.name}") for p in list_partitions(rows)[1]]
    assert [one.column("item_id").to_pylist() for one in kept] == [["i2", "j"], ["i3"]]
    assert kept[1].schema.equals(CONTENT_ROWS)
    next_table = str(tmp_path / "2" / "table")
    made = carry(rows, publish_vectors(tmp_path / "2", rows, 2), next_table, table)
    assert nights_of(next_table) == {"i0": 1, "i1": 1, "p": 1, "i2": 2, "i3": 2, "j": 2}
    counts = {name: made.metrics[name] for name in ("embedded", "replaced", "carried", "num_rows")}
    assert counts == {"embedded": 3, "replaced": 2, "carried": 3, "num_rows": 6}
    assert made.lineage == {"encoder": "e"}
    assert len([name for name in made.files if name.endswith(".parquet")]) == 3  # 4 + 1 together

    again = changed_rows(second, next_table, str(tmp_path / "again"))
    assert again.metrics["unchanged"] == 5
    assert not any(name.endswith(".parquet") for name in again.files)
    # what the second table says of its rows is what they hold
    whole = pq.read_table(f"{next_table}/{made.root}")
    row = pc.index(whole.column("id"), "j").as_py()
    wanted = content_hashes(kept[0].slice(1))[0]
    assert whole.column(HASH)[row].as_py() == wanted.as_py()


@pytest.mark.parametrize("tasks", [1, 64])
def test_what_a_whole_delivery_lacks_leaves(
    ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tasks: int
) -> None:
    monkeypatch.setattr(carried, "_PART_ROWS", 1)  # files stay as they are
    monkeypatch.setattr(changed, "_CARRYING", tasks)
    first = publish_rows(tmp_path / "1", [{n: ([1], [], None) for n in "abcd"}])
    table = str(tmp_path / "1" / "table")
    assert (
        "left" not in carry(first, publish_vectors(tmp_path / "1", first, 1), table, None).metrics
    )
    second = publish_rows(tmp_path / "2", [{"a": ([2], [], None), "b": ([1], [], None)},
                                           {"e": ([1], [], None)}])  # fmt: skip
    rows, out = str(tmp_path / "2" / "changed"), str(tmp_path / "2" / "table")
    assert changed_rows(second, table, rows).metrics["absent"] == 2
    vectors = publish_vectors(tmp_path / "2", rows, 2)
    carry(rows, vectors, str(tmp_path / "2" / "all"), table)
    assert set(nights_of(str(tmp_path / "2" / "all"))) == set("abcde")
    made = carry(rows, vectors, out, table, second)
    assert nights_of(out) == {"a": 2, "e": 2, "b": 1}
    assert len([name for name in made.files if name.endswith(".parquet")]) == 3
    counts = {name: made.metrics[name] for name in ("embedded", "replaced", "carried", "left")}
    assert counts == {"embedded": 2, "replaced": 1, "carried": 1, "left": 2}

    # nothing but an item that left
    third = publish_rows(tmp_path / "3", [{"a": ([2], [], None), "b": ([1], [], None)}])
    rows, none = str(tmp_path / "3" / "changed"), str(tmp_path / "3" / "none")
    assert changed_rows(third, out, rows).metrics["absent"] == 1
    assert any_rows(third)
    assert not any_rows(rows)
    no_vectors(rows, out, none)
    last = str(tmp_path / "3" / "table")
    assert carry(rows, none, last, out, third).metrics["left"] == 1
    assert nights_of(last) == {"a": 2, "b": 1}


def test_an_item_without_a_new_vector_keeps_its_old_one(ray_local: None, tmp_path: Path) -> None:
    first = publish_rows(tmp_path / "1", [{"a": ([1], [], None), "b": ([2], [], None)}])
    table = str(tmp_path / "1" / "table")
    carry(first, publish_vectors(tmp_path / "1", first, 1), table, None)
    second = publish_rows(tmp_path / "2", [{"a": ([3], [], None), "b": ([4], [], None)}])
    vectors = publish_vectors(tmp_path / "2", second, 2)
    part = next(Path(vectors).rglob("part-*"))
    only_a = pq.read_table(part).slice(0, 1)
    pq.write_table(only_a, part)
    artifacts.seal(vectors, "e", "embedding-table", lineage={"encoder": "e"})
    carry(second, vectors, out := str(tmp_path / "2" / "table"), table)
    assert nights_of(out) == {"a": 2, "b": 1}
    # and is tried again when it is delivered again
    assert changed_rows(second, out, str(tmp_path / "3")).metrics["altered"] == 1


def test_tables_that_do_not_go_on_from_each_other_are_refused(
    ray_local: None, tmp_path: Path
) -> None:
    rows = publish_rows(tmp_path / "1", [{"a": ([1], [], None)}])
    vectors = publish_vectors(tmp_path / "1", rows, 1)
    other = publish_vectors(tmp_path / "2", rows, 2, encoder="another")
    with pytest.raises(EmbedError, match=r"encoder e, but .* of another"):
        carry(rows, other, str(tmp_path / "out"), vectors)
    with pytest.raises(Exception, match=r"content.* missing.*made by jobs\.nightly"):
        changed_rows(rows, vectors, str(tmp_path / "changed"))
