from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs as pafs

from rec.data import log_read
from rec.data.log_check import conform
from rec.data.log_read import Batch, read_batches
from rec.data.logs import LOG_TABLES, LogError, LogFiles, Piece, list_days, pack
from rec.schema import SchemaError

SCHEMA, ITEMS = LOG_TABLES["interactions"], LOG_TABLES["items"]
WANTED = {field.name: field.type for field in SCHEMA}
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
GOOD = {
    "user_id": "u1",
    "item_id": "i1",
    "event": "click",
    "value": None,
    "dwell_ms": 10,
    "event_time": "2026-01-02T12:00:00Z",
}


def read(path: Path, log: LogFiles | None = None) -> tuple[list[dict], list[tuple[int, str]]]:
    """All good rows of a file, and the number and reason of all bad ones."""
    return read_as(path, SCHEMA, log)


def read_as(
    path: Path, schema: pa.Schema, log: LogFiles | None = None
) -> tuple[list[dict], list[tuple[int, str]]]:
    log = log or LogFiles()
    columns = {log.columns.get(field.name, field.name): field.type for field in schema}
    good: list[dict] = []
    bad: list[tuple[int, str]] = []
    for batch in read_batches(pafs.LocalFileSystem(), Piece(str(path), None, 1), columns):
        checked = conform(batch, schema, log, "here")
        good += checked.table.to_pylist()
        bad += [(row["row"], row["reason"]) for row in checked.problems.to_pylist()]
        assert sum(checked.dropped.values()) == checked.problems.num_rows
        assert len(checked.rows) == checked.table.num_rows
        total = batch.table.num_rows + len(batch.broken)
        assert checked.table.num_rows + checked.problems.num_rows == total
    return good, sorted(bad)


def write_lines(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def test_json_lines_with_every_kind_of_bad_row(tmp_path: Path) -> None:
    lines = [
        json.dumps(GOOD),
        '{"user_id": "u1", "item_id"',
        json.dumps({**GOOD, "user_id": ""}),
        json.dumps({**GOOD, "item_id": None}),
        "",
        json.dumps({**GOOD, "dwell_ms": "long"}),
        json.dumps({**GOOD, "event_time": "yesterday"}),
        json.dumps({**GOOD, "dwell_ms": -1}),
        json.dumps(GOOD) + json.dumps(GOOD),
        json.dumps({**GOOD, "item_id": "i2"}),
    ]
    good, bad = read(write_lines(tmp_path / "a.jsonl", lines))
    assert [row["item_id"] for row in good] == ["i1", "i2"]
    assert good[0]["event_time"] == NOON
    assert [number for number, _ in bad] == [2, 3, 4, 6, 7, 8, 9]
    reasons = [reason for _, reason in bad]
    assert reasons[0].startswith("not one JSON object (Expecting ':' delimiter")
    assert reasons[1] == "user_id: empty, found "
    assert reasons[2] == "item_id: empty, found nothing"
    assert reasons[3] == "dwell_ms: not a whole number, found long"
    assert reasons[4] == "event_time: not a time, found yesterday"
    assert reasons[5] == "dwell_ms: negative, found -1"
    assert reasons[6].startswith("not one JSON object (Extra data")


def test_the_last_ending_tells_the_format(tmp_path: Path) -> None:
    good, bad = read(write_lines(tmp_path / "a.csv.jsonl", [json.dumps(GOOD)]))
    assert len(good) == 1
    assert not bad


def test_json_ids_and_times_may_be_numbers(tmp_path: Path) -> None:
    row = {"user_id": 7, "item_id": 8, "what": "click", "event_time": 1767355200.0}
    path = tmp_path / "a.ndjson.gz"
    path.write_bytes(gzip.compress((json.dumps(row) + "\n" + json.dumps(row)).encode()))
    log = LogFiles(columns={"event": "what"}, time_unit="s")
    good, bad = read(path, log)
    assert not bad
    assert [r["user_id"] for r in good] == ["7", "7"]
    assert good[0]["event_time"] == NOON


def test_json_values_may_be_numbers_in_one_line_and_text_in_another(tmp_path: Path) -> None:
    rows = [
        {**GOOD, "user_id": 7, "item_id": 9007199254740993},
        {**GOOD, "user_id": "u8", "dwell_ms": "10", "event_time": 1767355200000000},
        {**GOOD, "user_id": 7.5, "event_time": 1767355200000000.0},
        {**GOOD, "user_id": ["u9"]},
        {**GOOD, "user_id": True, "value": 2, "dwell_ms": 1.5},
    ]
    good, bad = read(write_lines(tmp_path / "a.jsonl", [json.dumps(row) for row in rows]))
    assert [row["user_id"] for row in good] == ["7", "u8", "7.5"]
    assert good[0]["item_id"] == "9007199254740993"
    assert {(row["dwell_ms"], row["event_time"]) for row in good} == {(10, NOON)}
    assert bad == [
        (4, "not one JSON object (user_id: not a single value)"),
        (5, "dwell_ms: not a whole number, found 1.5"),
    ]


def test_json_flags_may_be_numbers_and_tags_numbers(tmp_path: Path) -> None:
    row = {"user_id": "u", "query": "q", "item_id": "i", "event_time": "2026-01-02"}
    lines = [json.dumps({**row, "clicked": flag}) for flag in (True, 1, 0, "false", "perhaps")]
    path = write_lines(tmp_path / "a.jsonl", lines)
    schema = LOG_TABLES["searches"]
    found, problems = read_as(path, schema)
    assert [r["clicked"] for r in found] == [True, True, False, False]
    assert problems == [(5, "clicked: not true or false, found perhaps")]
    lines = [json.dumps({"item_id": n, "tags": tags}) for n, tags in enumerate([["a"], [1], "b"])]
    found, problems = read_as(write_lines(path, lines), LOG_TABLES["items"])
    assert [r["tags"] for r in found] == [["a"], ["1"]]
    assert problems == [(3, "not one JSON object (tags: not a list)")]


def test_a_json_file_full_of_bad_rows_costs_two_readings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lines(tmp_path / "a.jsonl", [json.dumps(GOOD), "{"] * 2000)
    calls: list[int] = []
    whole = log_read.pajson.read_json

    def counted(data: io.BytesIO, *options: object) -> pa.Table:
        calls.append(len(data.getvalue()))
        return whole(data, *options)

    monkeypatch.setattr(log_read.pajson, "read_json", counted)
    good, bad = read(path)
    assert len(good) == len(bad) == 2000
    assert sum(calls) <= 2 * path.stat().st_size


@pytest.mark.parametrize("ending", ["\n", ""])
def test_a_json_line_without_end_is_one_bad_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr(log_read, "_BLOCK_BYTES", 200)
    held: list[int] = []
    parse = log_read._parse

    def measured(lines: list[bytes], schema: pa.Schema, row: int) -> Iterator[Batch]:
        held.append(sum(map(len, lines)))
        return parse(lines, schema, row)

    monkeypatch.setattr(log_read, "_parse", measured)
    long = json.dumps({**GOOD, "user_id": "u" * 2000})
    good = json.dumps(GOOD)
    path = tmp_path / "a.jsonl"
    path.write_text(f"{good}\n{long}\n{good}\n{long}{ending}")
    found, bad = read(path)
    assert len(found) == 2
    assert bad == [(2, "a line longer than 8 MB"), (4, "a line longer than 8 MB")]
    assert max(held) <= 400


def test_csv_rows_keep_their_numbers_past_ragged_ones(tmp_path: Path) -> None:
    head = "extra,event_time,user_id,item_id,event,dwell_ms"
    lines = [
        head,
        "x,2026-01-02 12:00:00,u1,i1,click,",
        "x,2026-01-02 12:00:00,u1,i1",
        'x,2026-01-02 12:00:00,"u\n1",i2,click,5',
        "x,2026-01-02 12:00:00,u1,i3,click,many",
        "x,2026-01-02 12:00:00,u1,,click,1",
        "x,2026-01-02 12:00:00,u1,i4,click,1,2",
    ]
    good, bad = read(write_lines(tmp_path / "a.csv", lines))
    assert [(row["item_id"], row["user_id"]) for row in good] == [("i1", "u1"), ("i2", "u\n1")]
    assert good[0]["event_time"] == NOON
    assert bad == [
        (2, "4 cells, expected 6"),
        (4, "dwell_ms: not a whole number, found many"),
        (5, "item_id: empty, found nothing"),
        (6, "7 cells, expected 6"),
    ]


def test_csv_in_many_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_read, "_BLOCK_BYTES", 256)
    lines = ["user_id,item_id,event,event_time"]
    for i in range(1, 101):
        lines.append(f"u{i},i{i},click,1767355200000000" + (",ragged" if i % 9 == 0 else ""))
    lines[50] = ",i50,click,1767355200000000"
    good, bad = read(write_lines(tmp_path / "a.csv", lines))
    assert [row["user_id"] for row in good] == [f"u{i}" for i in range(1, 101) if i % 9 and i != 50]
    assert [number for number, _ in bad] == sorted([*range(9, 101, 9), 50])
    assert {row["event_time"] for row in good} == {NOON}


def test_json_in_many_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_read, "_BLOCK_BYTES", 200)
    lines = [json.dumps({**GOOD, "user_id": f"u{i}"}) if i % 7 else "{" for i in range(1, 60)]
    good, bad = read(write_lines(tmp_path / "a.jsonl", lines))
    assert [row["user_id"] for row in good] == [f"u{i}" for i in range(1, 60) if i % 7]
    assert [number for number, _ in bad] == [i for i in range(1, 60) if not i % 7]


def test_parquet_pieces_of_row_groups(tmp_path: Path) -> None:
    rows = [{**GOOD, "user_id": f"u{i}", "event_time": NOON} for i in range(100)]
    rows[73]["item_id"] = ""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=10)
    log = LogFiles(path=str(tmp_path))
    (day,) = list_days(log).values()
    tasks = pack(log, day.pieces, task_bytes=day.pieces[0].num_bytes // 4)
    assert len(tasks) > 3
    users: list[str] = []
    for task in tasks:
        for piece in task:
            for batch in read_batches(pafs.LocalFileSystem(), piece, WANTED):
                checked = conform(batch, SCHEMA, log, piece.path)
                users += checked.table.column("user_id").to_pylist()
                assert checked.problems.column("row").to_pylist() in ([], [74])
    assert users == [f"u{i}" for i in range(100) if i != 73]


def test_an_absent_column_is_the_file_s_fault(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.csv", ["user_id,item,event_time", "u,i,2026-01-02"])
    with pytest.raises(SchemaError, match=r"'item_id' is missing.*columns\.item_id"):
        read(path, LogFiles(constants={"event": "click"}))
    good, _ = read(path, LogFiles(columns={"item_id": "item"}, constants={"event": "click"}))
    assert good[0]["event"] == "click"
    assert good[0]["event_time"] == datetime(2026, 1, 2, tzinfo=UTC)


def test_an_optional_column_that_is_asked_for_by_name_is_there(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.csv", ["user_id,item_id,event,event_time", "u,i,click,1"])
    with pytest.raises(SchemaError, match=r"'stars' is missing; it should hold value"):
        read(path, LogFiles(columns={"value": "stars"}))
    assert read(path)[0][0]["value"] is None


def test_a_column_of_another_kind_is_the_file_s_fault(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist([{**GOOD, "item_id": ["i1"]}] * 3), path)
    with pytest.raises(SchemaError, match=r"item_id should be of type string.*'item_id' is list"):
        read(path)


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.gz", "a.csv.gz"])
def test_a_broken_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no such format")
    with pytest.raises(LogError, match=name):
        read(tmp_path / name)


def test_bytes_that_are_no_text_cost_their_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"user_id,item_id,event,event_time\nu1,i,c,2026-01-02\n\xff,i,c,2026-01-02\n")
    good, bad = read(path)
    assert [row["user_id"] for row in good] == ["u1"]
    assert bad == [(2, "user_id: not of type string")]


def test_recbole_s_tables_are_read_by_the_names_before_their_types(tmp_path: Path) -> None:
    path = tmp_path / "toy.inter"
    path.write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        'u"1\ti1\t4.5\t1767355200.0\nu2\ti1\tx\t1767355200\nu3\ti2\t5\n'
    )
    log = LogFiles(
        columns={"value": "rating", "event_time": "timestamp"},
        constants={"event": "rating"},
        time_unit="s",
    )
    (row,), bad = read(path, log)
    assert row["user_id"] == 'u"1'
    assert (row["value"], row["event_time"]) == (4.5, NOON)
    assert bad == [(2, "value: not a number, found x"), (3, "3 cells, expected 4")]
    with pytest.raises(SchemaError, match="column 'event' is missing; it should hold"):
        read(path)
    path.write_text("film:token\tstars:float\ni1\t2\n")
    with pytest.raises(SchemaError, match="column 'user_id' is missing; it should hold"):
        read(path)
    path = tmp_path / "toy.item"
    path.write_text("item_id:token\tgenre:token_seq\ni1\tAction Drama\ni2\t\n")
    good, _ = read_as(path, ITEMS, LogFiles(columns={"tags": "genre"}, list_separator=" "))
    assert [(row["item_id"], row["tags"]) for row in good] == [
        ("i1", ["Action", "Drama"]),
        ("i2", None),
    ]


def test_lists_of_users_items_are_events_in_order(tmp_path: Path) -> None:
    path = tmp_path / "sequences.txt"
    path.write_bytes(b"u1 i3 i1\ti3\n\n  u2 i1 \r\nu3\n\xff i1\nu4 i9")
    good, bad = read(path)
    assert [(row["user_id"], row["item_id"], row["event_time"].minute) for row in good] == [
        ("u1", "i3", 0),
        ("u1", "i1", 1),
        ("u1", "i3", 2),
        ("u2", "i1", 0),
        ("u4", "i9", 0),
    ]
    assert {row["event"] for row in good} == {"click"}
    assert bad == [(4, "a user without items"), (5, "not UTF-8")]
    with pytest.raises(LogError, match="holds users' items, but no user_id is asked for"):
        read_as(path, ITEMS)
    path.write_text("\n")
    assert read(path) == ([], [])


_MARKED = {
    "a.txt": "u i\n",
    "a.txt.gz": "u i\n",
    "a.jsonl": json.dumps({**GOOD, "user_id": "u"}),
    "a.csv": "user_id,item_id,event,event_time\nu,i,click,1\n",
    "a.inter": "user_id:token\titem_id:token\tevent:token\tevent_time:float\nu\ti\tclick\t1\n",
}


@pytest.mark.parametrize("name", _MARKED)
def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path, name: str) -> None:
    data = _MARKED[name].encode("utf-8-sig")
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    good, bad = read(tmp_path / name)
    assert not bad
    assert [row["user_id"] for row in good] == ["u"]


def test_a_line_of_items_may_be_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_read, "_BLOCK_BYTES", 16)
    path = tmp_path / "sequences.txt"
    path.write_text("u1 i1 i2\nu2" + " i" * 40 + "\nu3 i1\n")
    good, bad = read(path)
    assert [row["user_id"] for row in good] == ["u1", "u1", "u3"]
    assert bad == [(2, "a line longer than 8 MB")]


def test_one_object_of_items_tags(tmp_path: Path) -> None:
    path = tmp_path / "item_attributes.json"
    path.write_text('{"4": [1, "two"], "5": "one", "6": []}')
    good, bad = read_as(path, ITEMS)
    assert [(row["item_id"], row["tags"]) for row in good] == [("4", ["1", "two"]), ("6", [])]
    assert bad == [(2, "5: not a list of texts or whole numbers")]
    path.write_text('{"4": ["old"], "5": {}, "4": ["new"], "6": [true]}')
    good, bad = read_as(path, ITEMS)
    assert [(row["item_id"], row["tags"]) for row in good] == [("4", ["old"]), ("4", ["new"])]
    assert [row for row, _ in bad] == [2, 4]
    with pytest.raises(LogError, match="holds items' tags, but no tags is asked for"):
        read(path)
    path.write_text("[1]")
    with pytest.raises(LogError, match="expected one object"):
        read_as(path, ITEMS)
