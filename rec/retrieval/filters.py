"""Filters on an index's attributes: small typed expressions that also parse from JSON.

    {"op": "all", "of": [{"op": "equal", "column": "language", "value": "en"},
                         {"op": "range", "column": "published_at", "least": "2026-01-01T00:00:00Z"},
                         {"op": "not", "of": {"op": "in", "column": "tag", "values": ["x", "y"]}}]}

On a column of lists (tags) a comparison holds where it holds for any member. An empty value fits
no comparison; `not` is every other row, rows with an empty value among them. A date is its
midnight, and a time without a zone is in UTC.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import (
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    TypeAdapter,
    ValidationError,
    field_validator,
)

from rec.config import Config, one_line
from rec.retrieval.errors import FilterError

MAX_DEPTH, MAX_NODES, MAX_VALUES = 8, 64, 10_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNITS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}  # nanoseconds
DAY = 86_400 * 10**9  # nanoseconds
_FAR = 1e30  # beyond all integers of columns
_BEYOND_MICRO = re.compile(r":\d\d[.,]\d{6}(\d{1,3})")  # digits that datetime has no place for
Value = StrictBool | StrictInt | StrictFloat | StrictStr | datetime


def _plain(value: Any) -> bool | float | str | date:
    """`value` without NumPy. Raises ValueError where it is nothing that columns hold: Pydantic
    would make a float of whatever can be one, and large integers of NumPy's would become others."""
    if isinstance(value, np.ndarray) and not value.ndim:
        value = value[()]
    if isinstance(value, np.datetime64):
        value = str(value)  # `item` makes a number of one of nanoseconds
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, bool | int | float | str | date):
        raise ValueError(
            f"{value!r} is of type {type(value).__name__}, expected a text, a number, true or "
            f"false, a date or a time"
        )
    return value


class _Expression(Config):
    """Raises FilterError where a field cannot be what it is given."""

    if not TYPE_CHECKING:  # a type checker goes by the fields

        def __init__(self, /, **fields: Any) -> None:
            try:
                super().__init__(**fields)
            except ValidationError as error:
                raise FilterError(f"filter {type(self).__name__}: {one_line(error)}") from error

        # so Pydantic leaves it alone where it makes a whole filter of JSON: `parse` names the place
        __init__.__pydantic_base_init__ = True

    @field_validator("value", "least", "below", mode="before", check_fields=False)
    @classmethod
    def _exact(cls, value: Any) -> Any:
        return None if value is None else _plain(value)

    @field_validator("values", mode="before", check_fields=False)
    @classmethod
    def _all_exact(cls, values: Any) -> Any:
        listed = isinstance(values, list | tuple | set | frozenset | Iterator)
        return tuple(map(_plain, values)) if listed or np.ndim(values) > 0 else values


class Equal(_Expression):
    """Rows whose value is this one."""

    op: Literal["equal"] = "equal"
    column: str
    value: Value


class In(_Expression):
    """Rows whose value is one of these."""

    op: Literal["in"] = "in"
    column: str
    values: tuple[Value, ...] = Field(max_length=MAX_VALUES)


class Range(_Expression):
    """Rows whose value is at least `least` and below `below`; times as ISO 8601 or datetime."""

    op: Literal["range"] = "range"
    column: str
    least: Value | None = None
    below: Value | None = None


class All(_Expression):
    """Rows that fit every one of these; of none, every row."""

    op: Literal["all"] = "all"
    of: tuple[Filter, ...]


class AnyOf(_Expression):
    """Rows that fit at least one of these; of none, no row."""

    op: Literal["any"] = "any"
    of: tuple[Filter, ...]


class Not(_Expression):
    """Rows that do not fit this."""

    op: Literal["not"] = "not"
    of: Filter


Filter = Annotated[Equal | In | Range | All | AnyOf | Not, Field(discriminator="op")]
for _kind in (All, AnyOf, Not):
    _kind.model_rebuild()
_ADAPTER: TypeAdapter[Any] = TypeAdapter(Filter)


def parse(data: Any) -> Filter:
    """The filter of decoded JSON.

    Raises:
        FilterError: it is no filter, or deeper or larger than the limits.
    """
    _measure(data, 1, [0])
    try:
        return _ADAPTER.validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise FilterError(f"filter {place or '(top)'}: {first['msg']}") from error


def check(where: Any) -> None:
    """Raises FilterError where it is no expression (JSON that was not parsed, say), or deeper or
    larger than the limits."""
    if not isinstance(where, Equal | In | Range | All | AnyOf | Not):
        raise FilterError(
            f"where is of type {type(where).__name__}, expected a filter; `parse` makes one of "
            f"decoded JSON"
        )
    _measure(where, 1, [0])


def _measure(data: Any, depth: int, nodes: list[int]) -> None:
    nodes[0] += 1
    if depth > MAX_DEPTH or nodes[0] > MAX_NODES:
        raise FilterError(
            f"filter: expected at most {MAX_NODES} expressions, {MAX_DEPTH} inside each other"
        )
    if isinstance(data, dict):
        inner = data.get("of", ())
    else:
        inner = getattr(data, "of", ()) if isinstance(data, _Expression) else ()
    for part in inner if isinstance(inner, list | tuple) else [inner]:
        _measure(part, depth + 1, nodes)


def mask(expression: Filter, table: pa.Table) -> np.ndarray:
    """(rows,) bool: which rows of `table` fit.

    Raises:
        FilterError: a column is not there, or a value cannot be compared with its type.
    """
    if isinstance(expression, All):
        return _fold(np.logical_and, expression.of, table, True)
    if isinstance(expression, AnyOf):
        return _fold(np.logical_or, expression.of, table, False)
    if isinstance(expression, Not):
        return ~mask(expression.of, table)
    if expression.column not in table.column_names:
        raise FilterError(
            f"filter: no attribute {expression.column!r}; the index holds {table.column_names}"
        )
    column = table[expression.column]
    if not pa.types.is_list(column.type) and not pa.types.is_large_list(column.type):
        return _compare(expression, column)
    # the parents of the members that fit
    fits = np.zeros(table.num_rows, bool)
    parents = np.asarray(pc.list_parent_indices(column.combine_chunks()))
    fits[parents[_compare(expression, pc.list_flatten(column))]] = True
    return fits


def _fold(
    combine: Callable[..., np.ndarray], parts: tuple[Filter, ...], table: pa.Table, start: bool
) -> np.ndarray:
    result = np.full(table.num_rows, start)
    for part in parts:
        result = combine(result, mask(part, table))
    return result


def _compare(expression: Equal | In | Range, column: pa.ChunkedArray) -> np.ndarray:
    name = expression.column
    if isinstance(expression, Equal):
        fits = pc.equal(column, _scalar(expression.value, column.type, name))
    elif isinstance(expression, In):
        values = [_scalar(value, column.type, name) for value in expression.values]
        values = [value for value in values if value.is_valid]
        fits = pc.is_in(column, value_set=pa.array(values, column.type))
    else:
        fits = pc.is_valid(column)
        for value, compare, is_least in (
            (expression.least, pc.greater_equal, True),
            (expression.below, pc.less, False),
        ):
            if value is None:
                continue
            bound = _scalar(value, column.type, name, True)
            if isinstance(bound, pa.Scalar):
                fits = pc.and_kleene(fits, compare(column, bound))
            elif is_least == (bound > 0):  # beyond what the column can hold: no row fits
                return np.zeros(len(column), bool)
    return fits.fill_null(False).to_numpy(zero_copy_only=False).astype(bool, copy=False)


def _bound(value: Any, kind: pa.DataType) -> Any:
    """Among integers, at least 1.5 is at least 2, and below 1.5 is below 2."""
    if not pa.types.is_integer(kind) or not isinstance(value, float) or math.isnan(value):
        return value
    return math.ceil(max(-_FAR, min(_FAR, value)))


def nanoseconds(value: str | datetime) -> int:
    """Since 1970, of an ISO 8601 text or a datetime. Raises ValueError where the text is none."""
    rest = getattr(value, "nanosecond", 0)  # of a timestamp of pandas
    if isinstance(value, str):
        found = _BEYOND_MICRO.search(value)
        rest = int(found[1].ljust(3, "0")) if found else 0
        value = datetime.fromisoformat(value)
    since = (value.replace(tzinfo=UTC) if value.tzinfo is None else value) - _EPOCH
    return since // timedelta(microseconds=1) * 1000 + rest


def _moment(value: Any, kind: pa.DataType, is_bound: bool) -> int | None:
    """A time, as a text or not, as the column counts; between two of its steps the next as a bound,
    else none."""
    step = DAY if pa.types.is_date(kind) else _UNITS[kind.unit]
    count, rest = divmod(nanoseconds(value), step)
    if rest and not is_bound:
        return None
    return (count + bool(rest)) * (86_400_000 if pa.types.is_date64(kind) else 1)


def _beyond(value: int, kind: pa.DataType) -> int:
    """1 where it is greater than all that a column of integers or times holds, -1 where it is
    less, else 0."""
    is_signed = not pa.types.is_unsigned_integer(kind)
    high = (1 << (kind.bit_width - is_signed)) - 1
    return int(value > high) - int(value < (-high - 1 if is_signed else 0))


def _scalar(value: Any, kind: pa.DataType, column: str, is_bound: bool = False) -> Any:
    """`value` as the column's type; never across kinds (5 is no text, "5" no number). Null where
    no row can have it; of a bound that is beyond them all, on which side, as 1 or -1."""
    value = _bound(value, kind) if is_bound else value
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    comparable = (
        (is_text and isinstance(value, str))
        or (pa.types.is_boolean(kind) and isinstance(value, bool))
        or (pa.types.is_temporal(kind) and isinstance(value, str | datetime))
        or (
            (pa.types.is_integer(kind) or pa.types.is_floating(kind))
            and isinstance(value, int | float)
            and not isinstance(value, bool)
        )
    )
    if isinstance(value, float) and (
        math.isnan(value) or (pa.types.is_integer(kind) and not value.is_integer())
    ):
        comparable = False
    if not comparable:
        raise FilterError(f"filter: {value!r} cannot be compared with {column!r}, which is {kind}")
    try:
        if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
            assert isinstance(value, str | datetime)  # nothing else is comparable with one
            value = _moment(value, kind, is_bound)
        if is_bound and isinstance(value, int) and hasattr(kind, "bit_width"):
            whole = pa.types.is_integer(kind) or pa.types.is_temporal(kind)
            if whole and (side := _beyond(value, kind)):
                return side
        return pa.scalar(value, kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, ValueError) as error:
        raise FilterError(
            f"filter: {value!r} is no {kind}, the type of {column!r}: {error}; give one"
        ) from error
