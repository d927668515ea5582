"""Raw logs: where they are, which day each file is of, how their columns are called.

A log is a folder of files, flat or in folders by day, or one file; local or s3://. What it holds is
mapped onto columns of `rec.schema` and held to their types row by row. The ending of a file's name
says how it is read:

    .parquet
    .jsonl .ndjson   an object a line
    .csv             with a header
    .inter .item     RecBole's: parted by tabs, no quotes, a header of name:type
    .txt             `user item item ...` a line, oldest item first
    .json            of items: one object, `{"item": ["tag", ...], ...}`

All but Parquet may also be compressed (.gz, .bz2, .zst). Files of the form .txt tell the order of
events and no times: an event at position p stands at minute p of 1970.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Sequence
from datetime import date
from typing import Annotated, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs
from pydantic import AfterValidator, Field

from rec.artifacts import filesystem, join
from rec.config import Config
from rec.schema import COMMENTS, INTERACTIONS, ITEMS, SEARCHES

TASK_BYTES = 128 << 20  # of log files that a task reads
_LEAST_BYTES = 4 << 20  # below that a task starts longer than it reads
UNTIMED = "txt"  # the format that tells no times
_NOT_USED = {"position", "text", "likes"}  # a log need not have what nobody reads


def _used(schema: pa.Schema) -> pa.Schema:
    fields = [field for field in schema if field.name not in _NOT_USED]
    # a log need not tell domains apart either: it is of one then, called ""
    return pa.schema(
        [field.with_nullable(True) if field.name == "domain" else field for field in fields]
    )


_WHOLE = {"interactions": INTERACTIONS, "searches": SEARCHES, "comments": COMMENTS, "items": ITEMS}
LOG_TABLES: dict[str, pa.Schema] = {
    "interactions": _used(INTERACTIONS),
    "searches": _used(SEARCHES),
    "comments": _used(COMMENTS),
    "items": pa.schema(
        [
            ITEMS.field(name)
            for name in ("item_id", "tags", "categories", "uploader_id", "published_at")
        ]
    ),
}
_ENDING = re.compile(r"\.(?:(parquet)|(jsonl|ndjson|csv|inter|item|txt|json)(\.gz|\.bz2|\.zst)?)$")


class LogError(ValueError):
    """A log cannot be read as its settings say. Names the file and what was expected."""


def _pattern(text: str) -> str:
    try:
        groups = re.compile(text).groups
    except re.error as error:
        raise ValueError(f"{text!r} is no regular expression: {error}") from error
    if groups not in (1, 3):
        raise ValueError(f"{text!r}: expected one group (a date) or three (year, month, day)")
    return text


class LogFiles(Config):
    """One log and how to read it."""

    path: str = ""  # its folder, or its one file
    # finds a file's day in its path below the folder: one group (2026-01-02 or 20260102) or
    # three; None where files are not by day. Rows of another day are dropped and counted.
    day: Annotated[str, AfterValidator(_pattern)] | None = None
    columns: dict[str, str] = {}  # column of the table -> the log's name of it, where they differ
    constants: dict[str, str | float | bool] = {}  # column that the log has not -> its value
    time_unit: Literal["s", "ms", "us", "ns"] = "us"  # of times that are numbers, since 1970
    utc_offset_hours: float = Field(default=0.0, ge=-14, le=14)  # of the clock that days are by
    list_separator: str = Field(default="|", min_length=1)  # of tags that are one text


def check_names(log: LogFiles, table: str) -> None:
    """Raise LogError where `columns` or `constants` name a column that the table has not."""
    for where, given in (("columns", log.columns), ("constants", log.constants)):
        if wrong := sorted(set(given) - set(_WHOLE[table].names)):
            raise LogError(
                f"{log.path}: {where} name {wrong[0]!r}, which is no column of ours; of {table} "
                f"there are: {', '.join(_WHOLE[table].names)}"
            )


def format_of(name: str) -> str | None:
    """A file's format, which is its name's ending; None where it is no log file."""
    match = _ENDING.search(name)
    return match and (match.group(1) or match.group(2))


class Piece(NamedTuple):
    """A file, or a range of row groups of a large Parquet file."""

    path: str  # within the file system
    day: date | None
    num_bytes: int
    groups: tuple[int, int] | None = None  # first row group and one past the last
    first_row: int = 1  # number of the first row, for messages
    written_ns: int = 0  # when, as the file system tells it


class Day(NamedTuple):
    """The files of a log that are of one day, or all of one that is not by day."""

    pieces: tuple[Piece, ...]
    # of their names and sizes, and of the times they were written; contents are not read for it
    fingerprint: str


ALL_DAYS = "all"  # the one day of a log that is not by day


def list_days(log: LogFiles) -> dict[str, Day]:
    """The files of a log by day (ISO dates, ascending), each day's in the order of their names.

    Names that begin with "_" or ".", what a killed worker was writing aside (.tmp) and empty files
    are no part of a log.

    Raises:
        LogError: there is no such place, it has no file, a name has an unknown ending or no
            day in it, or only some files tell times.
    """
    folder, root, found = _find(log)
    days: dict[str, list[Piece]] = {}
    for info in sorted(found, key=lambda info: info.path):
        name = info.path[len(root) :].lstrip("/")
        hidden = any(part.startswith(("_", ".")) for part in name.split("/"))
        if info.type != pafs.FileType.File or hidden or name.endswith(".tmp") or not info.size:
            continue
        if not format_of(name):
            raise LogError(
                f"{join(folder, name)}: expected a name that ends in .parquet, .jsonl, .ndjson, "
                ".csv, .inter, .item, .txt or .json, all but the first also .gz, .bz2 or .zst"
            )
        day = _day(log, join(folder, name), name)
        key = day.isoformat() if day else ALL_DAYS
        days.setdefault(key, []).append(
            Piece(info.path, day, info.size, written_ns=info.mtime_ns or 0)
        )
    if not days:
        raise LogError(f"{log.path}: no log files there, or only empty ones")
    listed = {key: Day(tuple(days[key]), _fingerprint(root, days[key])) for key in sorted(days)}
    if not is_timed(listed):
        strange = [p.path for p in itertools.chain(*days.values()) if format_of(p.path) != UNTIMED]
        if strange or log.day is not None:
            of_days = f"`day` is {log.day!r}; set it to null"
            raise LogError(
                f"{log.path}: .txt files tell no times, but "
                + (f"{strange[0]} does; move them apart" if strange else of_days)
            )
    return listed


def is_timed(days: dict[str, Day]) -> bool:
    """Whether the files of a log tell times, and not the order of events alone."""
    pieces = itertools.chain.from_iterable(day.pieces for day in days.values())
    return all(format_of(piece.path) != UNTIMED for piece in pieces)


def _find(log: LogFiles) -> tuple[str, str, list[pafs.FileInfo]]:
    """The folder of a log, its path within the file system, and what is in it."""
    files, path = filesystem(log.path)
    try:
        info = files.get_file_info(path)
        if info.type == pafs.FileType.File:
            return log.path.rpartition("/")[0], path.rpartition("/")[0], [info]
        return log.path, path, files.get_file_info(pafs.FileSelector(path, recursive=True))
    except OSError as error:
        raise LogError(f"{log.path}: not a folder of log files ({error})") from error


def _day(log: LogFiles, place: str, name: str) -> date | None:
    if log.day is None:
        return None
    match = re.search(log.day, name)
    try:
        if match and len(match.groups()) == 3:
            year, month, day = (int(part) for part in match.groups())
            return date(year, month, day)
        if match:
            return date.fromisoformat(match.group(1))
    except ValueError as error:
        raise LogError(f"{place}: {match and match.group()!r}: {error}") from error
    raise LogError(
        f"{place}: no day in this name; the pattern is {log.day!r}; set `day` to "
        "one that fits, or to null"
    )


def _fingerprint(root: str, pieces: Sequence[Piece]) -> str:
    listing = "\n".join(f"{p.path[len(root) :].lstrip('/')} {p.num_bytes}" for p in pieces)
    times = " ".join(str(p.written_ns) for p in pieces)
    return "-".join(hashlib.sha256(text.encode()).hexdigest()[:16] for text in (listing, times))


def changed(before: str, now: str) -> str | None:
    """What two fingerprints of a day's files say against each other, or None."""
    (files, _, times), (files_now, _, times_now) = before.partition("-"), now.partition("-")
    if files != files_now:
        return "has other files than when it was read"
    if times and times != times_now:  # what earlier releases published tells none
        return (
            "has files that were written again since it was read (their names and sizes are the "
            "same, their times are not; give a copy the times of what it was copied from)"
        )
    return None


def pack(
    log: LogFiles, pieces: Sequence[Piece], task_bytes: int, num_cpus: int = 1
) -> list[list[Piece]]:
    """Consecutive pieces for each task, in about equal shares; large Parquet files are cut.

    Other formats cannot be read from their middle: such a file is one task, in flat memory.

    Args:
        task_bytes: of a share, at most; whole files may take it over that.
        num_cpus: for each of these there is a share, unless they would be very small.
    """
    total = sum(piece.num_bytes for piece in pieces)
    shares = max(-(-total // task_bytes), min(num_cpus, total // _LEAST_BYTES), 1)
    tasks: dict[int, list[Piece]] = {}
    before = 0
    for whole in pieces:
        large = whole.num_bytes * shares >= 2 * total and whole.path.endswith(".parquet")
        for piece in _cut(log, whole, -(-total // shares)) if large else [whole]:
            middle = 2 * before + piece.num_bytes  # twice that, of all bytes in a row
            tasks.setdefault(middle * shares // (2 * total), []).append(piece)
            before += piece.num_bytes
    return list(tasks.values())


def _cut(log: LogFiles, piece: Piece, task_bytes: int) -> list[Piece]:
    files, _ = filesystem(log.path)
    try:
        with files.open_input_file(piece.path) as stream:
            meta = pq.read_metadata(stream)
    except (OSError, pa.ArrowInvalid) as error:
        raise LogError(
            f"{piece.path}: not a Parquet file ({error}); remove or replace it"
        ) from error
    sizes = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
    weight = piece.num_bytes / max(1, sum(sizes))
    cut: list[Piece] = []
    first, rows, row = 0, 0, piece.first_row
    for i, size in enumerate(sizes):
        rows += size
        if rows * weight >= task_bytes or i == len(sizes) - 1:
            bounds = (first, i + 1)
            cut.append(Piece(piece.path, piece.day, int(rows * weight), bounds, row))
            first, row, rows = i + 1, row + rows, 0
    return cut
