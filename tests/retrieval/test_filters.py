"""Filters: every expression against a plain loop, parsing, and what is refused."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rec.retrieval.errors import FilterError
from rec.retrieval.filters import MAX_DEPTH, Equal, Filter, In, Not, Range, mask, parse

START = datetime(2026, 1, 1, tzinfo=UTC)
ROWS: list[dict[str, Any]] = [
    {"n": n, "f": f, "s": s, "b": b, "t": None if d is None else START + timedelta(days=d), "l": x}
    for n, f, s, b, d, x in [
        (1, 0.5, "x", True, 0, ["p", "q"]),
        (2, 1.5, "y", False, 1, []),
        (None, None, None, None, None, None),
        (-4, float("nan"), "x", True, 9, ["q"]),
        (7, -2.0, "", False, 3, ["p", None]),
    ]
]
TABLE = pa.Table.from_pylist(
    ROWS,
    schema=pa.schema(
        [
            ("n", pa.int64()),
            ("f", pa.float64()),
            ("s", pa.string()),
            ("b", pa.bool_()),
            ("t", pa.timestamp("us", "UTC")),
            ("l", pa.list_(pa.string())),
        ]
    ),
)


def fits(data: dict[str, Any], row: dict[str, Any]) -> bool:
    """The plain reading of an expression."""
    if data["op"] == "all":
        return all(fits(part, row) for part in data["of"])
    if data["op"] == "any":
        return any(fits(part, row) for part in data["of"])
    if data["op"] == "not":
        return not fits(data["of"], row)
    held = row[data["column"]]
    members = held if isinstance(held, list) else [held]
    return any(_member_fits(data, value) for value in members if value is not None)


def _member_fits(data: dict[str, Any], value: Any) -> bool:
    def typed(given: Any) -> Any:
        return datetime.fromisoformat(given) if isinstance(value, datetime) else given

    if data["op"] == "equal":
        return value == typed(data["value"])
    if data["op"] == "in":
        return value in [typed(given) for given in data["values"]]
    least, below = data.get("least"), data.get("below")
    return (least is None or value >= typed(least)) and (below is None or value < typed(below))


def _day(number: int) -> str:
    return (START + timedelta(days=number)).isoformat()


VALUES = {
    "n": st.integers(-5, 8),
    "f": st.sampled_from([-2, 0.5, 1, 1.5]),
    "s": st.sampled_from(["", "x", "y", "z"]),
    "b": st.booleans(),
    "t": st.integers(-1, 10).map(_day),
    "l": st.sampled_from(["p", "q", "r"]),
}


@st.composite
def comparisons(draw: st.DrawFn) -> dict[str, Any]:
    column = draw(st.sampled_from(sorted(VALUES)))
    value = VALUES[column]
    op = draw(st.sampled_from(["equal", "in"] if column == "b" else ["equal", "in", "range"]))
    data: dict[str, Any] = {"op": op, "column": column}
    if op == "equal":
        return data | {"value": draw(value)}
    if op == "in":
        return data | {"values": draw(st.lists(value, max_size=3))}
    return data | {"least": draw(st.none() | value), "below": draw(st.none() | value)}


EXPRESSIONS = st.recursive(
    comparisons(),
    lambda inner: st.one_of(
        st.builds(lambda of: {"op": "not", "of": of}, inner),
        st.builds(
            lambda op, of: {"op": op, "of": of},
            st.sampled_from(["all", "any"]),
            st.lists(inner, max_size=3),
        ),
    ),
    max_leaves=6,
)


def _depth(data: dict[str, Any]) -> int:
    of = data.get("of", [])
    return 1 + max((_depth(part) for part in (of if isinstance(of, list) else [of])), default=0)


@given(EXPRESSIONS)
def test_every_expression_against_a_plain_loop(data: dict[str, Any]) -> None:
    if _depth(data) > MAX_DEPTH:
        return
    parsed: Filter = parse(json.loads(json.dumps(data)))
    assert mask(parsed, TABLE).tolist() == [fits(data, row) for row in ROWS]
    assert parse(json.loads(parsed.model_dump_json())) == parsed


@pytest.mark.parametrize("shift", [0, 2**62 - 2**53])
def test_numbers_of_numpy_are_what_they_are(shift: int) -> None:
    """Next to what a float can tell apart."""
    number = np.int64(2**53 + 1 + shift)
    table = pa.table({"n": pa.array([int(number) - 1, int(number), int(number) + 1])})
    for where, fits in (
        (Equal(column="n", value=number), [1]),
        (Equal(column="n", value=np.array(number)), [1]),
        (In(column="n", values=[number, np.uint64(number + 1)]), [1, 2]),
        (In(column="n", values=np.array([number])), [1]),
        (Range(column="n", least=number, below=number + 1), [1]),
    ):
        assert np.flatnonzero(mask(where, table)).tolist() == fits
    assert mask(Equal(column="b", value=np.bool_(True)), TABLE).tolist() == [1, 0, 0, 1, 0]
    assert mask(Equal(column="f", value=np.float32(1.5)), TABLE).tolist() == [0, 1, 0, 0, 0]
    second = Range(column="t", least=np.datetime64("2026-01-02"))
    assert mask(second, TABLE).tolist() == [0, 1, 0, 1, 1]


@pytest.mark.parametrize("value", [Decimal(2**53 + 1), Fraction(1, 3), 1j, b"x", [1]])
def test_what_no_column_holds_is_refused(value: Any) -> None:
    with pytest.raises(FilterError, match="expected a text, a number"):
        Equal(column="n", value=value)
    with pytest.raises(FilterError, match="expected a text, a number"):
        In(column="n", values=(value,))
    with pytest.raises(FilterError, match="values: Input should be a valid tuple"):
        In(column="n", values=value if value != [1] else np.array(1))


def test_fractions_between_integers() -> None:
    assert mask(Range(column="n", least=1.5), TABLE).tolist() == [False, True, False, False, True]
    assert mask(Range(column="n", below=1.5), TABLE).tolist() == [True, False, False, True, False]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"op": "equal", "column": "missing", "value": 1}, "no attribute 'missing'; .*'n'"),
        ({"op": "equal", "column": "n", "value": "1"}, "'1' cannot be compared with 'n'"),
        ({"op": "equal", "column": "n", "value": True}, "True cannot be compared"),
        ({"op": "equal", "column": "n", "value": 1.5}, "1.5 cannot be compared"),
        ({"op": "equal", "column": "n", "value": 2**70}, "is no int64"),
        ({"op": "equal", "column": "s", "value": 5}, "5 cannot be compared with 's'"),
        ({"op": "equal", "column": "f", "value": float("nan")}, "nan cannot be compared"),
        ({"op": "range", "column": "t", "least": "soon"}, "'soon' is no timestamp"),
        ({"op": "equals", "column": "n", "value": 1}, "does not match any of the expected tags"),
        ({"op": "equal", "column": "n"}, "value"),
        ({"op": "equal", "column": "n", "value": 1, "or": 2}, "Extra inputs"),
        ({"op": "not", "of": [1]}, "filter"),
        ([], "filter"),
    ],
)
def test_what_is_refused(data: Any, message: str) -> None:
    with pytest.raises(FilterError, match=message):
        mask(parse(data), TABLE)


def test_depth_and_size_are_bounded() -> None:
    deep: dict[str, Any] = {"op": "all", "of": []}
    for _ in range(5000):
        deep = {"op": "not", "of": deep}
    with pytest.raises(FilterError, match="8 inside each other"):
        parse(deep)
    with pytest.raises(FilterError, match="at most 64 expressions"):
        parse({"op": "any", "of": [{"op": "all", "of": []}] * 100})


def test_days_as_texts() -> None:
    table = pa.table({"day": pa.array([date(2026, 1, 1), date(2026, 1, 3), None])})
    where = Range(column="day", least="2026-01-02")
    assert mask(where, table).tolist() == [False, True, False]
    with pytest.raises(FilterError, match="'soon' is no date32"):
        mask(Range(column="day", least="soon"), table)


@pytest.mark.parametrize("kind", [pa.date32(), pa.date64()])
def test_a_date_is_its_midnight(kind: pa.DataType) -> None:
    days = [date(1969, 12, 30), date(2020, 1, 1), date(2020, 1, 2), None]
    table = pa.table({"day": pa.array(days, kind)})
    noon, midnight = datetime(2020, 1, 1, 12), datetime(2020, 1, 1)
    before = datetime(1969, 12, 29, 23, tzinfo=UTC)
    for where, expected in [
        (Range(column="day", below=noon), [0, 1]),
        (Range(column="day", least=noon), [2]),
        (Range(column="day", below=midnight), [0]),
        (Range(column="day", least=midnight), [1, 2]),
        (Range(column="day", below="2020-01-01T23:00+00:00"), [0, 1]),
        (Range(column="day", below="2020-01-02T01:00+02:00"), [0, 1]),
        (Range(column="day", least="2020-01-01T00:00:00.000001Z"), [2]),
        (Range(column="day", least=before), [0, 1, 2]),
        (Range(column="day", below=before), []),
        (Range(column="day", below=datetime.max), [0, 1, 2]),
        (Equal(column="day", value=noon), []),
        (Equal(column="day", value=midnight), [1]),
        (Not(of=Equal(column="day", value=noon)), [0, 1, 2, 3]),
        (In(column="day", values=(noon, datetime(2020, 1, 2))), [2]),
        (In(column="day", values=(noon,)), []),
    ]:
        assert np.flatnonzero(mask(where, table)).tolist() == expected, where


@pytest.mark.parametrize("zone", [None, "Europe/Paris"])
def test_times_between_those_that_a_column_can_have(zone: str | None) -> None:
    moments = [START, START + timedelta(seconds=1), None]
    table = pa.table({"t": pa.array(moments, pa.timestamp("s", zone))})
    between = START + timedelta(milliseconds=1)
    assert mask(Range(column="t", below=between), table).tolist() == [True, False, False]
    assert mask(Range(column="t", least=between), table).tolist() == [False, True, False]
    assert not mask(Equal(column="t", value=between), table).any()
    assert mask(Equal(column="t", value=START), table).tolist() == [True, False, False]


def test_no_rows() -> None:
    empty = TABLE.slice(0, 0)
    for data in ({"op": "all", "of": []}, {"op": "equal", "column": "l", "value": "p"}):
        assert mask(parse(data), empty).shape == (0,)
    assert np.array_equal(mask(parse({"op": "any", "of": []}), TABLE), np.zeros(5, bool))
