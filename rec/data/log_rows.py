"""Raw log files to narrow rows of the users' buckets: checked, of their day, before the cut-off.

What can be decided of a row alone is decided here; what needs the user's other rows, in
`rec.data.user_rows`.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from rec.artifacts import filesystem
from rec.config import Config
from rec.data.ledger import Ledger
from rec.data.log_check import Checked, conform
from rec.data.log_read import BATCH_ROWS, read_batches
from rec.data.logs import LOG_TABLES, LogFiles, Piece
from rec.data.parquet import ParquetFile
from rec.data.shuffle import (
    BucketWriter,
    bucket_of,
    codes,
    hash_distinct,
    stable_order,
    starts,
)
from rec.features.tags import normalise
from rec.schema import PROBLEMS

USER_ROWS = pa.schema(
    [
        ("user", pa.string()),
        ("item", pa.string()),
        ("domain", pa.string()),  # "" where the log tells none apart
        ("query", pa.string()),  # of a search; null elsewhere
        ("time", pa.int64()),  # microseconds since 1970
        ("weight", pa.float32()),
        ("event", pa.int8()),  # position in Filters.events
        ("dwell", pa.int8()),  # UNKNOWN, SHORT or LONG
    ]
)
UNKNOWN, SHORT, LONG = 0, 1, 2
_HELD_ROWS = BATCH_ROWS // 2  # so a batch whose rows are mostly wanted is not joined to another
DAY_MICROS = 86_400_000_000
LATE = "after the cut-off"  # the ledger's reason
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Filters(Config):
    """Which rows of a log tell something about a user's interests."""

    events: tuple[str, ...] = ("click", "watch", "rating", "buy")  # an impression alone is none
    min_dwell_ms: int = Field(default=3000, ge=0)  # where the dwell is known
    # a row of unknown dwell after which the user went on sooner than this is an immediate return;
    # 0 where times are coarse, or many ratings are given at once
    min_gap_ms: int = Field(default=0, ge=0)
    # a user with more in a log's day, those that are there twice counted once, is a bot
    max_events_a_day: int = Field(default=5000, ge=1)


class LogTask(NamedTuple):
    """Files that one task reads."""

    table: str  # a key of LOG_TABLES
    log: LogFiles
    pieces: tuple[Piece, ...]


def micros(time: datetime) -> int:
    """Microseconds since 1970; UTC where the time has no zone."""
    aware = time if time.tzinfo else time.replace(tzinfo=UTC)
    return (aware - _EPOCH) // timedelta(microseconds=1)


def day_start(day: date, log: LogFiles) -> int:
    """Microseconds at which a day of the log begins."""
    return (day - _EPOCH.date()).days * DAY_MICROS - _offset(log)


def _offset(log: LogFiles) -> int:
    return int(log.utc_offset_hours * 3_600_000_000)


def day_of(times: NDArray[np.int64], log: LogFiles) -> NDArray[np.int64]:
    """(n,) days since 1970 by the clock that the log's days are by."""
    return (times + _offset(log)) // DAY_MICROS


def checked_batches(task: LogTask, problems: ParquetFile) -> Iterator[tuple[Piece, Checked]]:
    """Rows of the task's files that fit their table; the others go to `problems`."""
    schema = LOG_TABLES[task.table]
    names = task.log.columns
    wanted: list[str] = [name for name in schema.names if name not in task.log.constants]
    columns = {names.get(name, name): schema.field(name).type for name in wanted}
    files, _ = filesystem(task.log.path)
    for piece in task.pieces:
        for batch in read_batches(files, piece, columns):
            checked = conform(batch, schema, task.log, piece.path)
            problems.write(checked.problems)
            yield piece, checked


def scatter(
    task: LogTask, rows_uri: str, problems_uri: str, num_buckets: int, filters: Filters, cutoff: int
) -> Ledger:
    """Write the task's rows to their users' buckets, and the bad ones to a list.

    Args:
        task: files of a log of interactions, searches or comments.
        rows_uri: file for the rows, by bucket.
        problems_uri: file for PROBLEMS.
        num_buckets: of users.
        filters: of rows.
        cutoff: microseconds since 1970; later rows are dropped.
    """
    ledger = Ledger()
    held: list[pa.Table] = []
    num_held = 0
    with (
        ParquetFile(problems_uri, PROBLEMS) as problems,
        BucketWriter(rows_uri, USER_ROWS, num_buckets) as writer,
    ):
        for piece, checked in checked_batches(task, problems):
            rows, dropped = _wanted(checked.table, piece, task, filters, cutoff)
            read = checked.table.num_rows + checked.problems.num_rows
            ledger = ledger.record(
                f"read {task.table}", read, rows.num_rows, {**checked.dropped, **dropped}
            )
            held.append(rows)
            num_held += rows.num_rows
            if num_held >= _HELD_ROWS:
                ledger = ledger.merge(_write(held, writer, task, filters))
                held, num_held = [], 0
        return ledger.merge(_write(held, writer, task, filters))


def _write(held: list[pa.Table], writer: BucketWriter, task: LogTask, filters: Filters) -> Ledger:
    """One round of the rows held; of a user with very many, what tells a bot or is not told."""
    ledger = Ledger()
    if not held or not sum(table.num_rows for table in held):
        return ledger
    table = pa.concat_tables(held).combine_chunks()
    users = table.column("user").combine_chunks().dictionary_encode()
    user = users.indices.to_numpy().astype(np.int64)
    again, excess = _excess(user, table, task.log, filters)
    bucket = bucket_of(hash_distinct(users.dictionary), writer.num_buckets)[user]
    if count := len(again) + len(excess):
        dropped = {"duplicate": len(again), "bot": len(excess)}
        ledger = ledger.record(f"filter {task.table}", count, 0, dropped)
        keep = np.ones(len(user), bool)
        keep[again] = keep[excess] = False
        table, bucket = table.filter(pa.array(keep)), bucket[keep]
    writer.write(table, bucket)
    return ledger


def _excess(
    user: NDArray[np.int64], table: pa.Table, log: LogFiles, filters: Filters
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of users with many rows, those that are there twice, and those of a day past the first
    max_events_a_day + 1 that differ: they are a bot's whatever follows.

    So a user with a million events a day costs the reader of a bucket a few thousand a round.
    """
    limit = filters.max_events_a_day + 1
    heavy = np.flatnonzero((np.bincount(user) > limit)[user])
    time = table.column("time").to_numpy()
    order = heavy[stable_order(user[heavy], time[heavy])]
    twice = repeated(table, order, user[order], time[order])
    first = order[~twice]
    runs = starts(user[first], day_of(time[first], log))
    rank = np.arange(len(first)) - np.repeat(runs[:-1], np.diff(runs))
    return order[twice], first[rank >= limit]


def repeated(
    table: pa.Table, order: NDArray[np.int64], user: NDArray[np.int64], time: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """(n,) rows that equal an earlier one; only rows of equal user and time are looked at.

    Args:
        table: USER_ROWS.
        order: (n,) rows of the table by user, then time, then place.
        user: (n,) codes of their users.
        time: (n,) their times.
    """
    mask = np.zeros(len(order), bool)
    sizes = np.diff(starts(user, time))
    tied = np.flatnonzero(np.repeat(sizes > 1, sizes))
    if not len(tied):
        return mask
    part = table.take(pa.array(order[tied]))
    run = np.repeat(np.arange(len(sizes)), sizes)[tied]
    item, _ = codes(part.column("item"))
    query, _ = codes(part.column("query").fill_null(""))
    event = part.column("event").to_numpy().astype(np.int64)
    ranked = np.lexsort((tied, query, event, item, run))
    keys = [key[ranked] for key in (run, item, event, query)]
    first = np.zeros(len(tied), bool)
    first[starts(*keys)[:-1]] = True
    mask[tied[ranked[~first]]] = True
    return mask


def _wanted(
    table: pa.Table, piece: Piece, task: LogTask, filters: Filters, cutoff: int
) -> tuple[pa.Table, dict[str, int]]:
    """Rows as USER_ROWS, those dropped that their own columns tell against."""
    time = table.column("event_time").cast(pa.int64()).to_numpy()
    tests: list[tuple[str, NDArray[np.bool_]]] = [(LATE, time > cutoff)]
    if piece.day is not None:
        number = (piece.day - _EPOCH.date()).days
        tests.insert(0, ("of another day than its file", day_of(time, task.log) != number))
    event = pa.repeat(pa.scalar(0, pa.int8()), table.num_rows)
    query: pa.Array = pa.nulls(table.num_rows, pa.string())
    if task.table == "interactions":
        known = pa.array(filters.events, pa.string())
        event = pc.index_in(table.column("event"), value_set=known).cast(pa.int8())
        tests.append(("event not wanted", _true(pc.is_null(event))))
    if task.table == "searches":
        query = normalise(table.column("query"))
        clicked = pc.and_(table.column("clicked"), pc.is_valid(table.column("item_id")))
        tests.append(("no click", ~_true(clicked)))
        tests.append(("no letter in the query", _true(pc.is_null(query))))
        tests.append(("immediate return", _true(table.column("returned"))))
    keep = np.ones(table.num_rows, bool)
    dropped: dict[str, int] = {}
    for reason, mask in tests:
        dropped[reason] = int((mask & keep).sum())
        keep &= ~mask
    columns = [
        table.column("user_id"),
        table.column("item_id"),
        _domain(table),
        query,
        pa.array(time),
        _weight(table),
        event,
        pa.array(_dwell(table, filters)),
    ]
    rows = pa.Table.from_arrays(columns, schema=USER_ROWS)
    return rows if keep.all() else rows.filter(pa.array(keep)), dropped


def _true(values: pa.ChunkedArray | pa.Array) -> NDArray[np.bool_]:
    return np.asarray(values.fill_null(False))


def _domain(table: pa.Table) -> pa.ChunkedArray | pa.Array:
    if "domain" in table.column_names:
        return table.column("domain").fill_null("")
    return pa.repeat("", table.num_rows)


def _weight(table: pa.Table) -> pa.ChunkedArray | pa.Array:
    if "value" in table.column_names:
        return table.column("value").fill_null(1.0)
    return pa.repeat(pa.scalar(1.0, pa.float32()), table.num_rows)


def _dwell(table: pa.Table, filters: Filters) -> NDArray[np.int8]:
    if "dwell_ms" not in table.column_names:
        return np.full(table.num_rows, UNKNOWN, np.int8)
    column = table.column("dwell_ms")
    dwell = np.where(_true(pc.less(column, filters.min_dwell_ms)), SHORT, LONG)
    return np.where(_true(pc.is_null(column)), UNKNOWN, dwell).astype(np.int8)
