"""A bucket's rows in order of user and time, without bots, duplicates and short visits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rec.data.log_rows import SHORT, UNKNOWN, Filters, day_of, repeated
from rec.data.logs import LogFiles
from rec.data.shuffle import codes, stable_order, starts


@dataclass(frozen=True)
class UserRows:
    """n rows in order of user, then time, then place in the log."""

    table: pa.Table  # USER_ROWS in any order
    order: NDArray[np.int64]  # (n,) rows of the table
    user: NDArray[np.int64]  # (n,) positions in `users`, ascending
    users: pa.Array  # distinct, ascending; some may have no row left
    time: NDArray[np.int64]  # (n,) microseconds

    def __len__(self) -> int:
        return len(self.order)

    def column(self, name: str) -> pa.Array:
        """(n,) a column of the table in the order of these rows."""
        return self.table.column(name).take(pa.array(self.order)).combine_chunks()

    def where(self, keep: NDArray[np.bool_]) -> UserRows:
        if keep.all():
            return self
        return self.take(np.flatnonzero(keep))

    def take(self, rows: NDArray[np.int64]) -> UserRows:
        """These rows in this order, which must keep users ascending."""
        return UserRows(self.table, self.order[rows], self.user[rows], self.users, self.time[rows])


def sort_rows(table: pa.Table) -> UserRows:
    """Rows of one bucket in order; of equal times the first in the table stays first."""
    table = table.combine_chunks()
    user, users = codes(table.column("user"))
    time = table.column("time").to_numpy()
    order = stable_order(user, time)
    return UserRows(table, order, user[order], users, time[order])


def filter_rows(rows: UserRows, filters: Filters, log: LogFiles) -> tuple[UserRows, dict[str, int]]:
    """Rows that tell something, and how many were dropped, by reason.

    Rows that are there twice go first (same user, item, query, event and time; the first stays),
    so that a file delivered again makes nobody a bot; then all rows of a bot's day, then those with
    a short dwell, then immediate returns.
    Nothing is told by another day's rows, which may not have come yet.
    """
    dropped: dict[str, int] = {}

    def drop(reason: str, mask: NDArray[np.bool_]) -> None:
        nonlocal rows
        dropped[reason] = int(mask.sum())
        rows = rows.where(~mask)

    drop("duplicate", repeated(rows.table, rows.order, rows.user, rows.time))
    sizes = np.diff(starts(rows.user, day_of(rows.time, log)))
    drop("bot", np.repeat(sizes > filters.max_events_a_day, sizes))
    dwell = rows.table.column("dwell").to_numpy()
    drop("short dwell", dwell[rows.order] == SHORT)
    if filters.min_gap_ms:
        left = np.zeros(len(rows), bool)
        day = day_of(rows.time, log)
        same = (rows.user[1:] == rows.user[:-1]) & (day[1:] == day[:-1])
        left[:-1] = same & (np.diff(rows.time) < filters.min_gap_ms * 1000)
        drop("immediate return", left & (dwell[rows.order] == UNKNOWN))
    return rows, dropped
