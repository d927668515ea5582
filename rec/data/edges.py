"""Edges of what users did: counted by bucket, summed over days, the strongest of each node kept.

    user  interacted  item      user  commented  item      user  searched  query
    item  next        item      item  co_watched item      query clicked   item
    item  tagged      tag       user  prefers    tag

`next` is directed: the target came after the source, at most `window` events later in the same
session; `co_watched` is the same both ways. A session ends after a pause and at the day's end.
`prefers` says how often the user met an item with the tag.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from rec.config import Config
from rec.data.log_rows import day_of
from rec.data.logs import LogFiles
from rec.data.shuffle import codes, hash_strings, mix, starts
from rec.data.user_rows import UserRows
from rec.graphs.csr import NO_TIME
from rec.schema import EDGES, TIMESTAMP


class Kind(NamedTuple):
    """What an edge joins."""

    source_type: str
    relation: str
    target_type: str


KINDS = (
    Kind("user", "interacted", "item"),
    Kind("user", "commented", "item"),
    Kind("user", "searched", "query"),
    Kind("item", "next", "item"),
    Kind("item", "co_watched", "item"),
    Kind("query", "clicked", "item"),
    Kind("item", "tagged", "tag"),
    Kind("user", "prefers", "tag"),
)
INTERACTED, COMMENTED, SEARCHED, NEXT, CO_WATCHED, CLICKED, TAGGED, PREFERS = range(len(KINDS))

COUNTS = pa.schema(
    [
        ("kind", pa.int8()),  # position in KINDS
        ("source", pa.string()),
        ("target", pa.string()),
        ("num", pa.int64()),  # events; whole numbers add up the same in any order
        ("last", pa.int64()),  # microseconds of the latest of them; NO_TIME without
    ]
)


class EdgeConfig(Config):
    """Which edges are made and how many are kept."""

    session_gap_minutes: float = Field(default=30.0, gt=0)  # a longer pause ends a session
    window: int = Field(default=3, ge=1)  # events after an item that are its neighbours
    min_pairs: int = Field(
        default=1, ge=1
    )  # of two items, else `next` and `co_watched` are dropped
    max_degree: int = Field(default=1000, ge=1)  # the strongest edges of a node and relation
    max_tags: int = Field(default=50, ge=1)  # of an item, the first ones


def counts_of(
    kind: int,
    source: pa.Array | pa.ChunkedArray,
    target: pa.Array | pa.ChunkedArray,
    num: NDArray[np.int64],
    last: NDArray[np.int64],
) -> pa.Table:
    """Rows of COUNTS of one kind."""
    kinds = np.full(len(num), kind, np.int8)
    return pa.table([kinds, source, target, num, last], schema=COUNTS)


def edges_of(table: str, rows: UserRows, log: LogFiles, config: EdgeConfig) -> pa.Table:
    """COUNTS of one bucket's filtered rows of a log, summed within the bucket."""
    ones = np.ones(len(rows), np.int64)
    users = rows.users.take(pa.array(rows.user))
    items = rows.column("item")
    if table == "comments":
        return sum_counts(counts_of(COMMENTED, users, items, ones, rows.time))
    if table == "searches":
        queries = rows.column("query")
        found = [
            counts_of(SEARCHED, users, queries, ones, rows.time),
            counts_of(CLICKED, queries, items, ones, rows.time),
        ]
        return sum_counts(pa.concat_tables(found))
    seen = sum_counts(counts_of(INTERACTED, users, items, ones, rows.time))
    item, names = codes(pa.chunked_array([items]))
    first, second, num, last = _pairs(item, _sessions(rows, log, config), rows.time, config.window)
    before, after = names.take(pa.array(first)), names.take(pa.array(second))
    both = pa.concat_arrays([before, after]), pa.concat_arrays([after, before])
    twice = np.concatenate([num, num]), np.concatenate([last, last])
    pairs = [
        counts_of(NEXT, before, after, num, last),
        sum_counts(counts_of(CO_WATCHED, *both, *twice)),
    ]
    return pa.concat_tables([seen, *pairs])


def _sessions(rows: UserRows, log: LogFiles, config: EdgeConfig) -> NDArray[np.int64]:
    """(n,) number of each row's session."""
    gap = int(config.session_gap_minutes * 60_000_000)
    pauses = np.cumsum(np.diff(rows.time, prepend=rows.time[:1]) > gap).astype(np.int64)
    bounds = starts(rows.user, day_of(rows.time, log), pauses)
    return np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))


def _pairs(
    item: NDArray[np.int64], session: NDArray[np.int64], time: NDArray[np.int64], window: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Distinct ordered pairs of unlike items at most `window` apart in a session: first, second,
    how often, and the time of the latest second.
    """
    size = int(item.max()) + 1 if len(item) else 1
    keys: list[NDArray[np.int64]] = []
    times: list[NDArray[np.int64]] = []
    for step in range(1, window + 1):
        near = (session[step:] == session[:-step]) & (item[step:] != item[:-step])
        keys.append((item[:-step] * size + item[step:])[near])
        times.append(time[step:][near])
    key, when = np.concatenate(keys), np.concatenate(times)
    order = np.argsort(key, kind="stable")
    runs = starts(key[order])
    key = key[order][runs[:-1]]
    last = np.maximum.reduceat(when[order], runs[:-1]) if len(key) else when
    return key // size, key % size, np.diff(runs), last


def sum_counts(table: pa.Table) -> pa.Table:
    """COUNTS with a row for each kind, source and target, in that order."""
    if not table.num_rows:
        return table
    table = table.combine_chunks()
    kind = table.column("kind").to_numpy().astype(np.int64)
    source, sources = codes(table.column("source"))
    target, targets = codes(table.column("target"))
    order = np.lexsort((target, source, kind))
    kind, source, target = kind[order], source[order], target[order]
    runs = starts(kind, source, target)[:-1]
    columns = [
        pa.array(kind[runs].astype(np.int8)),
        sources.take(pa.array(source[runs])),
        targets.take(pa.array(target[runs])),
        np.add.reduceat(table.column("num").to_numpy()[order], runs),
        np.maximum.reduceat(table.column("last").to_numpy()[order], runs),
    ]
    return pa.table(columns, schema=COUNTS)


def frequent(table: pa.Table, min_pairs: int) -> pa.Table:
    """COUNTS without pairs of items that met fewer times."""
    kind, num = table.column("kind").to_numpy(), table.column("num").to_numpy()
    return table.filter(pa.array((num >= min_pairs) | ~np.isin(kind, [NEXT, CO_WATCHED])))


def strongest(table: pa.Table, max_degree: int) -> pa.Table:
    """The `max_degree` edges with most events of every kind and source; then later, then by name.

    The strongest of parts' strongest are the strongest of all, so a node with edges in every
    bucket is never whole in one place.
    """
    if not table.num_rows:
        return table
    table = table.combine_chunks()
    kind = table.column("kind").to_numpy().astype(np.int64)
    source, _ = codes(table.column("source"))
    target, _ = codes(table.column("target"))
    num, last = table.column("num").to_numpy(), table.column("last").to_numpy()
    order = np.lexsort((target, ~last, -num, source, kind))
    runs = starts(kind[order], source[order])
    rank = np.arange(len(order)) - np.repeat(runs[:-1], np.diff(runs))
    return table.take(pa.array(order[rank < max_degree]))


def hash_edges(table: pa.Table) -> NDArray[np.uint64]:
    """(n,) by kind, source and target: a source with many edges is spread over all buckets."""
    return mix(hash_nodes(table) ^ mix(hash_strings(table.column("target"), salt=1)))


def hash_nodes(table: pa.Table) -> NDArray[np.uint64]:
    """(n,) by kind and source: all edges of a node in one bucket."""
    kind = table.column("kind").to_numpy().astype(np.uint64)
    return mix(hash_strings(table.column("source")) ^ kind)


def as_edges(counts: pa.Table) -> pa.Table:
    """COUNTS as EDGES; the weight is the number of events."""
    kinds = counts.column("kind").combine_chunks()

    def named(field: str) -> pa.Array:
        return pa.array([getattr(kind, field) for kind in KINDS]).take(kinds)

    last = counts.column("last").to_numpy()
    times = pa.array(last, mask=last == NO_TIME).cast(TIMESTAMP)
    columns = [
        named("source_type"),
        counts.column("source"),
        named("relation"),
        named("target_type"),
        counts.column("target"),
        counts.column("num").cast(pa.float32()),
        times,
    ]
    return pa.table(columns, schema=EDGES)
