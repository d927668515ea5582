from __future__ import annotations

from collections import defaultdict
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rec.data.log_rows import LONG, SHORT, UNKNOWN, USER_ROWS, Filters, LogTask, micros, scatter
from rec.data.logs import LogFiles, Piece
from rec.data.sequences import SequenceConfig, extend_sequences
from rec.data.shuffle import read_bucket
from rec.data.user_rows import UserRows, filter_rows, sort_rows
from rec.schema import SEQUENCES

DAY = 86_400_000_000
LOG = LogFiles()
DOMAINS = {"a": "", "b": "film", "c": "film"}  # of items
Row = tuple[str, str, int, int, int]  # user, item, time, event, dwell

rows_strategy = st.lists(
    st.tuples(
        st.sampled_from("uvw"),
        st.sampled_from("abc"),
        st.integers(0, 12).map(lambda n: n * DAY // 5),
        st.integers(0, 1),
        st.sampled_from([UNKNOWN, SHORT, LONG]),
    ),
    max_size=40,
)


def table_of(rows: list[Row]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) if rows else [[]] * 5
    user, item, time, event, dwell = columns
    weight = np.arange(len(rows), dtype=np.float32)  # tells rows apart
    arrays = [
        pa.array(user, pa.string()),
        pa.array(item, pa.string()),
        pa.array([DOMAINS[i] for i in item], pa.string()),
        pa.nulls(len(rows), pa.string()),
        pa.array(time, pa.int64()),
        pa.array(weight),
        pa.array(event, pa.int8()),
        pa.array(dwell, pa.int8()),
    ]
    return pa.Table.from_arrays(arrays, schema=USER_ROWS)


def numbers(rows: UserRows) -> list[int]:
    return [int(number) for number in rows.column("weight").to_pylist()]


def plain_filter(rows: list[Row], limit: int, gap: int) -> tuple[list[int], dict[str, int]]:
    """The same by loops: positions of rows in the order of user, time and place."""
    order = sorted(range(len(rows)), key=lambda i: (rows[i][0], rows[i][2], i))
    days: dict[tuple[str, int], set[tuple[str, int, int]]] = defaultdict(set)
    for user, item, time, event, _ in rows:
        days[user, time // DAY].add((item, time, event))
    dropped = dict.fromkeys(["bot", "duplicate", "short dwell", "immediate return"], 0)
    seen: set[tuple[str, str, int, int]] = set()
    kept: list[int] = []
    for i in order:
        user, item, time, event, dwell = rows[i]
        again = (user, item, time, event) in seen
        seen.add((user, item, time, event))
        if again:
            dropped["duplicate"] += 1
        elif len(days[user, time // DAY]) > limit:
            dropped["bot"] += 1
        elif dwell == SHORT:
            dropped["short dwell"] += 1
        else:
            kept.append(i)
    stayed = []
    for place, i in enumerate(kept):
        after = kept[place + 1] if place + 1 < len(kept) else None
        same = after is not None and rows[after][0] == rows[i][0]
        same = same and rows[after or 0][2] // DAY == rows[i][2] // DAY
        soon = same and rows[after or 0][2] - rows[i][2] < gap * 1000
        if soon and rows[i][4] == UNKNOWN:
            dropped["immediate return"] += 1
        else:
            stayed.append(i)
    return stayed, dropped


@given(rows_strategy, st.integers(1, 9), st.sampled_from([1, DAY // 4000]))
@settings(max_examples=150, deadline=None)
def test_filters_agree_with_plain_loops(rows: list[Row], limit: int, gap: int) -> None:
    filters = Filters(max_events_a_day=limit, min_gap_ms=gap)
    kept, dropped = filter_rows(sort_rows(table_of(rows)), filters, LOG)
    expected, counts = plain_filter(rows, limit, gap)
    assert numbers(kept) == expected
    assert dropped == counts
    assert len(kept) + sum(dropped.values()) == len(rows)


def plain_sequences(
    rows: list[Row], places: list[int], length: int
) -> dict[tuple[str, str], list[int]]:
    users: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i in places:
        users[rows[i][0], DOMAINS[rows[i][1]]].append(i)
    return {user: found[-length:] for user, found in sorted(users.items())}


@given(rows_strategy, st.integers(1, 6), st.integers(0, 12))
@settings(max_examples=150, deadline=None)
def test_sequences_extended_are_sequences_at_once(rows: list[Row], length: int, cut: int) -> None:
    rows.sort(key=lambda row: row[2])  # days come in order
    config = SequenceConfig(max_length=length)
    whole, num_cut = extend_sequences(SEQUENCES.empty_table(), sort_rows(table_of(rows)), config)
    order = sorted(range(len(rows)), key=lambda i: (rows[i][0], rows[i][2], i))
    expected = plain_sequences(rows, order, length)
    found = {(r["user_id"], r["domain"]): list(map(int, r["weights"])) for r in whole.to_pylist()}
    assert found == expected
    assert list(found) == list(expected)
    for row in whole.to_pylist():
        assert row["item_ids"] == [rows[int(w)][1] for w in row["weights"]]
        assert [micros(t) for t in row["event_times"]] == [rows[int(w)][2] for w in row["weights"]]
    assert num_cut == len(rows) - sum(map(len, expected.values()))
    middle = sum(row[2] < cut * DAY // 5 for row in rows)
    table = table_of(rows)
    first, cut_one = extend_sequences(
        SEQUENCES.empty_table(), sort_rows(table.slice(0, middle)), config
    )
    both, cut_two = extend_sequences(first, sort_rows(table.slice(middle)), config)
    assert both.equals(whole)
    assert cut_one + cut_two == num_cut


def write_log(path: Path, users: list[str], times: list[int], **columns: object) -> Piece:
    data: dict[str, object] = {
        "user_id": users,
        "item_id": ["i"] * len(users),
        "event": ["click"] * len(users),
        "event_time": pa.array(times, pa.timestamp("us", "UTC")),
    }
    pq.write_table(pa.table({**data, **columns}), path)
    return Piece(str(path), date(1970, 1, 3), path.stat().st_size)


def scattered(
    tmp_path: Path, piece: Piece, filters: Filters, cutoff: int, table: str = "interactions"
) -> tuple[list[dict], dict]:
    task = LogTask(table, LogFiles(path=str(tmp_path)), (piece,))
    place = str(tmp_path / "rows.arrow")
    ledger = scatter(task, place, str(tmp_path / "p.parquet"), 3, filters, cutoff)
    rows = [r for b in range(3) for r in read_bucket([place], b, 3, USER_ROWS).to_pylist()]
    told = {"rows_in", "rows_out", "dropped"}
    return rows, {name: counts.model_dump(include=told) for name, counts in ledger.stages.items()}


def test_rows_of_other_days_late_rows_and_other_events_are_counted(tmp_path: Path) -> None:
    times = [2 * DAY, 2 * DAY - 1, 3 * DAY, 3 * DAY - 1, 2 * DAY + 5, 2 * DAY + 6]
    events = ["click", "click", "click", "click", "impression", "buy"]
    users = ["a", "b", "c", "d", "e", ""]
    piece = write_log(tmp_path / "a.parquet", users, times, event=events)
    rows, stages = scattered(tmp_path, piece, Filters(), 3 * DAY - 2)
    assert [row["user"] for row in rows] == ["a"]
    assert stages == {
        "read interactions": {
            "rows_in": 6,
            "rows_out": 1,
            "dropped": {
                "user_id: empty": 1,
                "of another day than its file": 2,
                "after the cut-off": 1,
                "event not wanted": 1,
            },
        }
    }
    (problem,) = pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert problem == {"place": piece.path, "row": 6, "reason": "user_id: empty, found "}


def test_a_bot_s_million_rows_are_cut_on_the_way_and_all_counted(tmp_path: Path) -> None:
    users = ["bot"] * 200 + ["human"] * 5
    piece = write_log(tmp_path / "a.parquet", users, [2 * DAY + i for i in range(205)])
    filters = Filters(max_events_a_day=10)
    rows, stages = scattered(tmp_path, piece, filters, 9 * DAY)
    assert len(rows) == 11 + 5
    kept, dropped = filter_rows(sort_rows(pa.Table.from_pylist(rows, USER_ROWS)), filters, LOG)
    assert len(kept) == 5
    assert dropped["bot"] + stages["filter interactions"]["dropped"]["bot"] == 200


def test_who_is_delivered_three_times_is_no_bot(tmp_path: Path) -> None:
    times = [2 * DAY + i for i in range(8)] * 3
    piece = write_log(tmp_path / "a.parquet", ["human"] * 24, times)
    filters = Filters(max_events_a_day=10)
    rows, stages = scattered(tmp_path, piece, filters, 9 * DAY)
    assert [row["time"] for row in rows] == times[:8]
    assert stages["filter interactions"]["dropped"] == {"duplicate": 16}
    kept, _ = filter_rows(sort_rows(pa.Table.from_pylist(rows * 2, USER_ROWS)), filters, LOG)
    assert len(kept) == 8


def test_searches_keep_clicks_that_stayed(tmp_path: Path) -> None:
    piece = write_log(
        tmp_path / "a.parquet",
        ["a", "b", "c", "d", "e"],
        [2 * DAY] * 5,
        query=["#Sci-Fi", "x", "x", "!!", "x"],
        item_id=["i", None, "i", "i", "i"],
        clicked=[True, True, False, True, True],
        returned=[None, False, False, False, True],
        dwell_ms=[10, None, None, None, None],
    )
    rows, stages = scattered(tmp_path, piece, Filters(), 9 * DAY, "searches")
    assert [(row["user"], row["query"], row["dwell"]) for row in rows] == [("a", "sci fi", SHORT)]
    assert stages["read searches"]["dropped"] == {
        "no click": 2,
        "no letter in the query": 1,
        "immediate return": 1,
    }


def test_the_clock_of_days_may_have_an_offset() -> None:
    rows = [("u", "a", 2 * DAY + hour * DAY // 24, 0, LONG) for hour in (1, 3)]
    filters = Filters(max_events_a_day=1)
    kept, _ = filter_rows(sort_rows(table_of(rows)), filters, LogFiles())
    assert not len(kept)
    kept, _ = filter_rows(sort_rows(table_of(rows)), filters, LogFiles(utc_offset_hours=-2))
    assert len(kept) == 2


@pytest.mark.parametrize("zone", [None, UTC])
def test_a_time_without_zone_is_utc(zone: type[UTC] | None) -> None:  # type: ignore[valid-type]
    assert micros(datetime(1970, 1, 2, tzinfo=zone)) == DAY  # type: ignore[arg-type]
