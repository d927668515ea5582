"""Raw logs: where they are, which day each file is of, how their columns are called.

A log is a folder of Parquet, JSON-lines or CSV files (by their names' endings, the latter two
also compressed), local or s3://, flat or in folders by day. What it holds is mapped onto columns
of `rec.schema` and held to their types row by row.
"""

from __future__ import annotations

import hashlib
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
_NOT_USED = {"domain", "position", "text", "likes"}  # a log need not have what nobody reads


def _used(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field for field in schema if field.name not in _NOT_USED])


LOG_TABLES: dict[str, pa.Schema] = {
    "interactions": _used(INTERACTIONS),
    "searches": _used(SEARCHES),
    "comments": _used(COMMENTS),
    "items": pa.schema([ITEMS.field(name) for name in ("item_id", "tags", "published_at")]),
}
_ENDING = re.compile(r"\.(?:(parquet)|(jsonl|ndjson|csv)(\.gz|\.bz2|\.zst)?)$")


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

    path: str = ""  # its folder
    # finds a file's day in its path below the folder: one group (2026-01-02 or 20260102) or
    # three; None where files are not by day. Rows of another day are dropped and counted.
    day: Annotated[str, AfterValidator(_pattern)] | None = None
    columns: dict[str, str] = {}  # column of the table -> the log's name of it, where they differ
    constants: dict[str, str | float | bool] = {}  # column that the log has not -> its value
    time_unit: Literal["s", "ms", "us", "ns"] = "us"  # of times that are numbers, since 1970
    utc_offset_hours: float = Field(default=0.0, ge=-14, le=14)  # of the clock that days are by


def format_of(name: str) -> str | None:
    """A file's format by its name, parquet, jsonl, ndjson or csv; None where it is no log file."""
    match = _ENDING.search(name)
    return match and (match.group(1) or match.group(2))


class Piece(NamedTuple):
    """A file, or a range of row groups of a large Parquet file."""

    path: str  # within the file system
    day: date | None
    num_bytes: int
    groups: tuple[int, int] | None = None  # first row group and one past the last
    first_row: int = 1  # number of the first row, for messages


class Day(NamedTuple):
    """The files of a log that are of one day, or all of one that is not by day."""

    pieces: tuple[Piece, ...]
    fingerprint: str  # of their names and sizes; contents are not read for it


ALL_DAYS = "all"  # the one day of a log that is not by day


def list_days(log: LogFiles) -> dict[str, Day]:
    """The files of a log by day (ISO dates, ascending), each day's in the order of their names.

    Names that begin with "_" or "." and empty files are no part of a log.

    Raises:
        LogError: there is no such folder, it has no file, or a name has an unknown ending or no
            day in it.
    """
    files, root = filesystem(log.path)
    try:
        found = files.get_file_info(pafs.FileSelector(root, recursive=True))
    except OSError as error:
        raise LogError(f"{log.path}: not a folder of log files ({error})") from error
    days: dict[str, list[Piece]] = {}
    for info in sorted(found, key=lambda info: info.path):
        name = info.path[len(root) :].lstrip("/")
        hidden = any(part.startswith(("_", ".")) for part in name.split("/"))
        if info.type != pafs.FileType.File or hidden or not info.size:
            continue
        if not format_of(name):
            raise LogError(
                f"{join(log.path, name)}: expected a name that ends in .parquet, .jsonl, .ndjson "
                "or .csv, the last three also .gz, .bz2 or .zst"
            )
        day = _day(log, name)
        key = day.isoformat() if day else ALL_DAYS
        days.setdefault(key, []).append(Piece(info.path, day, info.size))
    if not days:
        raise LogError(f"{log.path}: no log files in this folder")
    return {key: Day(tuple(days[key]), _fingerprint(root, days[key])) for key in sorted(days)}


def _day(log: LogFiles, name: str) -> date | None:
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
        raise LogError(f"{join(log.path, name)}: {match and match.group()!r}: {error}") from error
    raise LogError(
        f"{join(log.path, name)}: no day in this name; the pattern is {log.day!r}; set `day` to "
        "one that fits, or to null"
    )


def _fingerprint(root: str, pieces: Sequence[Piece]) -> str:
    listing = "\n".join(f"{p.path[len(root) :].lstrip('/')} {p.num_bytes}" for p in pieces)
    return hashlib.sha256(listing.encode()).hexdigest()[:16]


def pack(log: LogFiles, pieces: Sequence[Piece], task_bytes: int) -> list[list[Piece]]:
    """Consecutive pieces for each task, about `task_bytes` of them; large Parquet files are cut.

    Other formats cannot be read from their middle: such a file is one task, in flat memory.
    """
    tasks: list[list[Piece]] = []
    held = 0
    for whole in pieces:
        large = whole.num_bytes > 2 * task_bytes and whole.path.endswith(".parquet")
        for piece in _cut(log, whole, task_bytes) if large else [whole]:
            if not tasks or held + piece.num_bytes > task_bytes:
                tasks.append([])
                held = 0
            tasks[-1].append(piece)
            held += piece.num_bytes
    return tasks


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
