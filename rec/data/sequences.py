"""Per-user sequences, new rows added to those of earlier days."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from rec.config import Config
from rec.data.log_rows import USER_ROWS
from rec.data.shuffle import starts
from rec.data.user_rows import UserRows, sort_rows
from rec.schema import SEQUENCES, TIMESTAMP


class SequenceConfig(Config):
    """What is kept of a user."""

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
        SEQUENCES by user, each in order of time, of equal times in the log's order.
    """
    rows = new
    if old.num_rows:
        rows = sort_rows(pa.concat_tables([_rows_of(old), _narrow(new)]))
    runs = starts(rows.user)
    sizes = np.diff(runs)
    left = np.repeat(runs[1:], sizes) - np.arange(len(rows))  # events to the user's last, with it
    kept = rows.where(left <= config.max_length)
    runs = starts(kept.user)
    offsets = pa.array(runs, pa.int32())
    table = pa.Table.from_arrays(
        [
            kept.users.take(pa.array(kept.user[runs[:-1]])),
            pa.ListArray.from_arrays(offsets, kept.column("item")),
            pa.ListArray.from_arrays(offsets, pa.array(kept.time).cast(TIMESTAMP)),
            pa.ListArray.from_arrays(offsets, kept.column("weight")),
        ],
        schema=SEQUENCES,
    )
    return table, len(rows) - len(kept)


_COLUMNS = ["user", "item", "time", "weight"]


def _rows_of(sequences: pa.Table) -> pa.Table:
    sequences = sequences.combine_chunks()
    items = sequences.column("item_ids").combine_chunks()
    columns = [
        sequences.column("user_id").take(pc.list_parent_indices(items)),
        pc.list_flatten(items),
        pc.list_flatten(sequences.column("event_times")).cast(pa.int64()),
        pc.list_flatten(sequences.column("weights")),
    ]
    return pa.Table.from_arrays(columns, names=_COLUMNS).cast(_schema())


def _narrow(rows: UserRows) -> pa.Table:
    return rows.table.select(_COLUMNS).take(pa.array(rows.order)).cast(_schema())


def _schema() -> pa.Schema:
    return pa.schema([USER_ROWS.field(name) for name in _COLUMNS])
