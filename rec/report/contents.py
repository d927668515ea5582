"""What a report says, as plain data. Texts may hold anything: rendering escapes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

Series = Sequence[tuple[float, float]]  # (step, value)


@dataclass(frozen=True)
class Curve:
    """One quantity over training steps."""

    name: str
    train: Series
    validation: Series = ()


@dataclass(frozen=True)
class LedgerRow:
    """One stage: rows_in = rows_out + what was dropped, by reason."""

    stage: str
    rows_in: int
    rows_out: int
    dropped: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Value:
    """A figure with the ends of its interval, None where there is none."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class ResultRow:
    """One method's figures, by column; a column it has no figure for is absent."""

    method: str
    values: dict[str, Value]
    ours: bool = False  # set apart from the baselines


@dataclass(frozen=True)
class ResultTable:
    """Methods beside each other on one task."""

    title: str
    note: str  # what was asked, over how many queries
    rows: Sequence[ResultRow]
    lower_is_better: frozenset[str] = frozenset()  # of the columns
    gains: Sequence[str] = ()  # sentences below the table

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(name for row in self.rows for name in row.values))

    def best(self, column: str) -> float | None:
        """The best value of a column, None where there is none."""
        found = [v.value for r in self.rows if (v := r.values.get(column)) and v.value is not None]
        if not found:
            return None
        return min(found) if column in self.lower_is_better else max(found)


@dataclass(frozen=True)
class Item:
    """An item to look at."""

    title: str
    picture: bytes | None  # as compressed; it is made small when rendered
    labels: Sequence[str]  # genres and tags
    similarity: float | None = None  # to the query, for a neighbour
    heldout: bool = False


@dataclass(frozen=True)
class Neighbourhood:
    """A query item and its nearest items, nearest first."""

    query: Item
    neighbours: Sequence[Item]


@dataclass(frozen=True)
class Point:
    """An item on the map."""

    x: float
    y: float
    group: str  # what its colour stands for; "" is none of the large groups
    title: str
    heldout: bool = False


@dataclass(frozen=True)
class Problem:
    """Something that was left out or went wrong, how often, and examples."""

    what: str
    count: int
    examples: Sequence[str] = ()


@dataclass(frozen=True)
class Report:
    """Everything on the page. Empty parts are left out, with a line that says so."""

    title: str
    created_at: str
    summary: Sequence[tuple[str, str]]
    ledger: Sequence[LedgerRow] = ()
    curves: Sequence[Curve] = ()
    tables: Sequence[ResultTable] = ()
    neighbourhoods: Sequence[Neighbourhood] = ()
    points: Sequence[Point] = ()
    problems: Sequence[Problem] = ()
    notes: Sequence[str] = ()
