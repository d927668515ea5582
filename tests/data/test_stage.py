from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rec.data.ledger import MAX_PROBLEMS, Ledger, LedgerError, StageCounts
from rec.data.stage import Staged, StageError, run_stages

TABLE = pa.table({"value": [1, 2, 3, 4]})


@dataclass(frozen=True)
class KeepEven:
    reason: str = "odd"
    name: ClassVar[str] = "keep even"
    inputs: ClassVar[tuple[str, ...]] = ("value",)
    outputs: ClassVar[tuple[str, ...]] = ()

    def __call__(self, table: pa.Table) -> Staged:
        even = pc.equal(pc.bit_wise_and(table.column("value"), 1), 0)
        kept = table.filter(even)
        dropped = {self.reason: table.num_rows - kept.num_rows} if self.reason else {}
        return Staged(kept, dropped, ("3 is odd",))


@dataclass(frozen=True)
class Rename:
    gives: str
    name: ClassVar[str] = "rename"
    inputs: ClassVar[tuple[str, ...]] = ("value",)
    outputs: ClassVar[tuple[str, ...]] = ("double",)

    def __call__(self, table: pa.Table) -> Staged:
        return Staged(table.append_column(self.gives, pc.multiply(table.column("value"), 2)))


def test_counts_rows_in_out_and_dropped() -> None:
    table, ledger, _ = run_stages([KeepEven(), Rename("double")], TABLE)
    assert table.to_pydict() == {"value": [2, 4], "double": [4, 8]}
    assert ledger.stages["keep even"] == StageCounts(rows_in=4, rows_out=2, dropped={"odd": 2})
    assert ledger.stages["rename"] == StageCounts(rows_in=2, rows_out=2)
    assert ledger.problems == ("3 is odd",)
    _, twice, _ = run_stages([KeepEven()], TABLE, ledger)
    assert twice.stages["keep even"].dropped == {"odd": 4}
    assert twice.num_problems == 2
    assert "4 odd" in twice.table()


def test_a_row_lost_without_a_reason_is_an_error() -> None:
    with pytest.raises(LedgerError, match=r"'keep even': 4 rows in, 2 out .* leave 2 unaccounted"):
        run_stages([KeepEven(reason="")], TABLE)


def test_stages_are_held_to_their_columns() -> None:
    with pytest.raises(StageError, match=r"'rename' needs columns \['value'\]; got \['other'\]"):
        run_stages([Rename("double")], pa.table({"other": [1]}))
    with pytest.raises(StageError, match=r"'rename' gave no columns \['double'\]"):
        run_stages([Rename("treble")], TABLE)

    @dataclass(frozen=True)
    class Extra(Rename):
        outputs: ClassVar[tuple[str, ...]] = ()

    with pytest.raises(StageError, match=r"gave undeclared columns \['double'\]"):
        run_stages([Extra("double")], TABLE)


counts = st.tuples(
    st.sampled_from(["a", "b"]), st.integers(0, 9), st.dictionaries(st.text(max_size=2), st.just(3))
)


@given(st.lists(counts, max_size=6), st.integers(0, 6))
def test_merging_is_the_same_in_any_cut_and_survives_json(
    runs: list[tuple[str, int, dict[str, int]]], cut: int
) -> None:
    def recorded(part: list[tuple[str, int, dict[str, int]]]) -> Ledger:
        ledger = Ledger()
        for stage, rows_out, dropped in part:
            ledger = ledger.record(stage, rows_out + sum(dropped.values()), rows_out, dropped)
        return ledger

    whole = recorded(runs)
    assert recorded(runs[:cut]).merge(recorded(runs[cut:])) == whole
    assert Ledger.from_json(whole.to_json()) == whole
    for stage in whole.stages.values():
        assert stage.rows_in == stage.rows_out + sum(stage.dropped.values())


def test_keeps_few_ids_but_counts_all() -> None:
    ids = tuple(map(str, range(MAX_PROBLEMS - 1)))
    ledger = Ledger().record("empty", len(ids), 0, {"empty": len(ids)}, dropped_ids={"empty": ids})
    twice = ledger.merge(ledger).stages["empty"]
    assert twice.dropped == {"empty": 2 * len(ids)}
    assert twice.dropped_ids == {"empty": (*ids, "0")}
    assert "empty, the first of them: 0, 1, 2, 3, 4" in ledger.table()


def test_keeps_few_problems_but_counts_all() -> None:
    ledger = Ledger().record("sound", 1, 1, problems=tuple(map(str, range(MAX_PROBLEMS + 50))))
    assert ledger.merge(ledger).num_problems == 2 * (MAX_PROBLEMS + 50)
    assert len(ledger.merge(ledger).problems) == MAX_PROBLEMS
