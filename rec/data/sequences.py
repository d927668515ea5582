"""Per-user sequences, one for each domain, new rows added to those of earlier days."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from rec.config import Config
from rec.data.log_rows import USER_ROWS
from rec.data.logs import LogError
from rec.data.shuffle import codes, stable_order, starts
from rec.data.user_rows import UserRows, sort_rows
from rec.schema import SEQUENCES, TIMESTAMP

CUT = "beyond the user's latest"  # the ledger's reason


class SequenceConfig(Config):
    """What is kept of a user in each domain."""

    max_length: int = Field(default=512, ge=1)  # the latest events; all cut ones are counted


def extend_sequences(old: pa.Table, new: UserRows, config: SequenceConfig) -> tuple[pa.Table, int]:
    """Sequences of one bucket's users, and how many events were cut from them.

    Cutting what was cut before gives what cutting once would: the latest of all are the latest
    of earlier latest ones and the new.

    Args:
        old: SEQUENCES of all earlier days.
        new: filtered rows of later days.
        config: the length to cut at.

    Returns:
        SEQUENCES by user and domain, each in order of time, of equal times in the log's order.
    """
    rows = new
    if old.num_rows:
        rows = sort_rows(pa.concat_tables([_rows_of(old), _narrow(new)]))
    domain, domains = np.zeros(len(rows), np.int64), pc.unique(rows.table.column("domain"))
    if len(domains) > 1:  # else the rows are in order
        domain, domains = codes(pa.chunked_array([rows.column("domain")], pa.string()))
        order = stable_order(rows.user, domain)
        rows, domain = rows.take(order), domain[order]
    runs = starts(rows.user, domain)
    sizes = np.diff(runs)
    left = np.repeat(runs[1:], sizes) - np.arange(len(rows))  # events to the last, with it
    keep = left <= config.max_length
    kept, domain = rows.where(keep), domain[keep]
    runs = starts(kept.user, domain)
    offsets = pa.array(runs, pa.int32())
    table = pa.Table.from_arrays(
        [
            kept.users.take(pa.array(kept.user[runs[:-1]])),
            domains.take(pa.array(domain[runs[:-1]])),
            pa.ListArray.from_arrays(offsets, kept.column("item")),
            pa.ListArray.from_arrays(offsets, pa.array(kept.time).cast(TIMESTAMP)),
            pa.ListArray.from_arrays(offsets, kept.column("weight")),
        ],
        schema=SEQUENCES,
    )
    return table, len(rows) - len(kept)


def check_order(rows: UserRows, place: str) -> None:
    """Raise LogError where two events of a user have the same position."""
    runs = starts(rows.user, rows.time)
    if len(runs) - 1 < len(rows):
        user = rows.users[int(rows.user[runs[np.argmax(np.diff(runs) > 1)]])].as_py()
        raise LogError(
            f"{place}: user {user!r} is on two lines, and nothing tells which items came first; "
            "write all items of a user on one line"
        )


_COLUMNS = ["user", "domain", "item", "time", "weight"]


def _rows_of(sequences: pa.Table) -> pa.Table:
    sequences = sequences.combine_chunks()
    items = sequences.column("item_ids").combine_chunks()
    parent = pc.list_parent_indices(items)
    columns = [
        sequences.column("user_id").take(parent),
        sequences.column("domain").take(parent),
        pc.list_flatten(items),
        pc.list_flatten(sequences.column("event_times")).cast(pa.int64()),
        pc.list_flatten(sequences.column("weights")),
    ]
    return pa.Table.from_arrays(columns, names=_COLUMNS).cast(_schema())


def _narrow(rows: UserRows) -> pa.Table:
    return rows.table.select(_COLUMNS).take(pa.array(rows.order)).cast(_schema())


def _schema() -> pa.Schema:
    return pa.schema([USER_ROWS.field(name) for name in _COLUMNS])
