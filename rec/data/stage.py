"""Stages: steps over tables that know nothing of Ray and declare the columns they need and give.

One adapter holds them to their word and counts their rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple, Protocol

import pyarrow as pa

from rec.data.ledger import MAX_PROBLEMS, Ledger


class StageError(ValueError):
    """A stage did not get or did not give the columns it declares. Names stage and columns."""


LEFT_OUT = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)


class Staged(NamedTuple):
    """What a stage returns."""

    table: pa.Table
    dropped: Mapping[str, int] = {}  # reason -> rows that are no longer in the table
    problems: tuple[str, ...] = ()  # parts of rows left out; the rows stay
    dropped_ids: Mapping[str, pa.Array] = {}  # reason -> items that are no longer in the table


class Stage(Protocol):
    """One step; an instance is immutable, so that running it twice gives the same."""

    name: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]]  # columns it reads
    outputs: ClassVar[tuple[str, ...]]  # columns it adds or replaces; all others pass through

    def __call__(self, table: pa.Table) -> Staged: ...


class Ran(NamedTuple):
    """What stages made of a table."""

    table: pa.Table
    ledger: Ledger
    left_out: pa.Table  # LEFT_OUT: all items that a stage dropped by their ids


def run_stages(stages: Sequence[Stage], table: pa.Table, ledger: Ledger | None = None) -> Ran:
    """The table after all stages, and the ledger with their rows.

    Raises:
        StageError: a declared column is missing before or after a stage, or another one went.
        LedgerError: a stage lost rows without a reason.
    """
    ledger, left_out = ledger or Ledger(), [LEFT_OUT.empty_table()]
    for stage in stages:
        missing = set(stage.inputs) - set(table.column_names)
        if missing:
            raise StageError(
                f"stage '{stage.name}' needs columns {sorted(missing)}; got {table.column_names}"
            )
        staged = stage(table)
        expected = set(table.column_names) | set(stage.outputs)
        if lost := expected - set(staged.table.column_names):
            raise StageError(f"stage '{stage.name}' gave no columns {sorted(lost)}")
        if extra := set(staged.table.column_names) - expected:
            raise StageError(f"stage '{stage.name}' gave undeclared columns {sorted(extra)}")
        ids = {reason: gone for reason, gone in staged.dropped_ids.items() if len(gone)}
        left_out += [
            pa.table([gone, pa.repeat(reason, len(gone))], schema=LEFT_OUT)
            for reason, gone in ids.items()
        ]
        ledger = ledger.record(
            stage.name,
            table.num_rows,
            staged.table.num_rows,
            staged.dropped,
            staged.problems,
            {reason: gone.slice(0, MAX_PROBLEMS).to_pylist() for reason, gone in ids.items()},
        )
        table = staged.table
    return Ran(table, ledger, pa.concat_tables(left_out))
