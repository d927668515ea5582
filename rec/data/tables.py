"""Tables that `rec.data.ingest` has written: where their shards are, and their ledger.

Apart from the writing, which needs the codecs of all media and every source.
"""

from __future__ import annotations

from typing import Any

from rec.artifacts import LEDGER, FileEntry, exists, join, read_bytes
from rec.config import Config, one_line
from rec.data.ledger import Ledger


class IngestError(ValueError):
    """Tables cannot be written to or read from a folder. Says which and what to do."""


class TableSize(Config):
    num_rows: int = 0
    num_bytes: int = 0


class Tables(Config):
    """What a folder of tables holds: its ledger.json, which is ledger and manifest in one."""

    version: str  # names source, config and sizes; lineage of what is made from the tables
    kind: str
    source: dict[str, Any]  # config and fingerprint of the source: what they are made of
    num_shards: int
    tables: dict[str, TableSize]
    schemas: dict[str, dict[str, str]] = {}  # table -> column -> type
    # both are empty where a release that did not keep them has written some of the shards
    ledger: Ledger = Ledger()  # rows by table, and files by whether they could be read
    files: dict[str, FileEntry] = {}
    num_alike: int = 0  # frames of videos left out because another one looks the same
    num_problems: int  # what was left out, each a row of problems/
    problems: tuple[str, ...]  # the first of them


def shard_name(table: str, index: int) -> str:
    """Of a shard below the tables' address."""
    return f"{table}/shard-{index:05d}.parquet"


def shard_file(uri: str, table: str, index: int) -> str:
    return join(uri, shard_name(table, index))


def read_tables(uri: str) -> Tables:
    """The ledger of finished tables.

    Raises:
        IngestError: there is none, or it is cut short.
    """
    place = join(uri, LEDGER)
    if not exists(place):
        raise IngestError(f"{place}: not found; run jobs.ingest to write tables there")
    try:
        return Tables.from_json(read_bytes(place).decode())
    except ValueError as error:
        raise IngestError(
            f"{place}: not the ledger of tables ({one_line(error)}); restore it, or remove it and "
            "run jobs.ingest again, which keeps the shards that are finished"
        ) from error


def changes(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> str:
    """The fields in which two configs differ, with both values, for messages."""
    found: list[str] = []
    for name in sorted(set(old) | set(new)):
        was, now = old.get(name), new.get(name)
        if isinstance(was, dict) and isinstance(now, dict):
            inner = changes(was, now, f"{prefix}{name}.")
            found += [inner] if inner else []
        elif was != now:
            found.append(f"{prefix}{name}: {was!r} there, {now!r} now")
    return "; ".join(found)
