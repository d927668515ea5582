"""Log rows held to their table's types: good rows typed, bad ones with number and reason."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rec.data.log_read import Batch
from rec.data.logs import LogFiles
from rec.schema import PROBLEMS, TIMESTAMP, SchemaError

_MICROS = {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}  # in one of each unit
_ERRORS = (pa.ArrowInvalid, pa.ArrowNotImplementedError)


class Checked(NamedTuple):
    """Rows that fit, and for all others a row of PROBLEMS and a count by kind of reason."""

    table: pa.Table
    rows: NDArray[np.int64]  # (table.num_rows,) their numbers in the file
    problems: pa.Table
    dropped: dict[str, int]


def conform(batch: Batch, schema: pa.Schema, log: LogFiles, place: str) -> Checked:
    """The rows of `batch` as columns of `schema`.

    Args:
        batch: rows of one file.
        schema: a value of `LOG_TABLES`.
        log: says what the columns are called, and what those are that the log has not.
        place: the file, for messages.

    Raises:
        SchemaError: a column that is required, or named by `log`, is absent from the file or of a
            type that nothing is made of, which no row can be blamed for.
    """
    num_rows = batch.table.num_rows
    columns: list[pa.ChunkedArray] = []
    bad = np.zeros(num_rows, bool)
    listed: list[pa.Table] = []
    dropped: dict[str, int] = {}
    for field in schema:
        found = _column(batch.table, field, log, place)
        _castable(found, field, log, place)
        column, failed = _typed(found, field, log)
        tests = [(failed, f"{field.name}: not {_said(field.type)}")]
        tests += _value_tests(column, field)
        for mask, reason in tests:
            fresh = mask & ~bad
            if count := int(fresh.sum()):
                listed.append(
                    _list(place, batch.rows[fresh], reason, found.filter(pa.array(fresh)))
                )
                dropped[reason] = dropped.get(reason, 0) + count
                bad |= fresh
        columns.append(column)
    if batch.broken:
        dropped["not a row"] = len(batch.broken)
        numbers, reasons = zip(*batch.broken, strict=True)
        listed.append(_problems(place, np.array(numbers), pa.array(reasons, pa.string())))
    table = pa.Table.from_arrays(columns, schema=pa.schema(f.with_nullable(True) for f in schema))
    if bad.any():
        table = table.filter(pa.array(~bad))
    problems = pa.concat_tables(listed) if listed else PROBLEMS.empty_table()
    return Checked(table.cast(schema), batch.rows[~bad], problems, dropped)


def _column(table: pa.Table, field: pa.Field, log: LogFiles, place: str) -> pa.ChunkedArray:
    name = log.columns.get(field.name, field.name)
    if field.name in log.constants:
        value = pa.scalar(log.constants[field.name])
        return pa.chunked_array([pa.repeat(value, table.num_rows)])
    if name in table.column_names:
        return table.column(name)
    if not field.nullable or field.name in log.columns:
        raise SchemaError(
            f"{place}: column '{name}' is missing; it should hold {field.name} ({field.type}); "
            f"found of the wanted ones {table.column_names}; name it in columns.{field.name} or "
            f"give all rows one value in constants.{field.name}"
        )
    return pa.chunked_array([pa.nulls(table.num_rows, field.type)])


def _castable(column: pa.ChunkedArray, field: pa.Field, log: LogFiles, place: str) -> None:
    """Raise SchemaError where no value of the column's type could be what is wanted."""
    try:
        _cast(column.slice(0, 0), field.type, log)
    except pa.ArrowNotImplementedError as error:
        raise SchemaError(
            f"{place}: {field.name} should be {_said(field.type)}, but column "
            f"'{log.columns.get(field.name, field.name)}' is {column.type}"
        ) from error


def _said(kind: pa.DataType) -> str:
    names = {TIMESTAMP: "a time", pa.int64(): "a whole number", pa.bool_(): "true or false"}
    return names.get(kind, "a number" if pa.types.is_floating(kind) else f"of type {kind}")


def _value_tests(column: pa.ChunkedArray, field: pa.Field) -> list[tuple[NDArray[np.bool_], str]]:
    """Masks of values that are of the type and yet make no sense, with reasons."""
    tests: list[tuple[NDArray[np.bool_], str]] = []
    if not field.nullable:
        if column.null_count:
            tests.append((_mask(pc.is_null(column)), f"{field.name}: empty"))
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            tests.append((_mask(pc.equal(pc.binary_length(column), 0)), f"{field.name}: empty"))
    if pa.types.is_floating(field.type):
        tests.append((_mask(pc.invert(pc.is_finite(column))), f"{field.name}: not finite"))
    if field.name == "dwell_ms":
        tests.append((_mask(pc.less(column, 0)), "dwell_ms: negative"))
    return tests


def _mask(values: pa.ChunkedArray) -> NDArray[np.bool_]:
    return values.fill_null(False).to_numpy()


def _typed(
    column: pa.ChunkedArray, field: pa.Field, log: LogFiles
) -> tuple[pa.ChunkedArray, NDArray[np.bool_]]:
    """The column cast, null where a value cannot be, and a mask of those.

    What casts as a whole, which is nearly always, costs one cast; else halves are tried, so that
    a bad value costs as many casts as its position has bits.
    """
    none = np.zeros(len(column), bool)
    try:
        return _cast(column, field.type, log), none
    except _ERRORS:
        parts: list[pa.ChunkedArray] = []
        todo = [(0, len(column))]
    while todo:
        low, high = todo.pop()
        try:
            parts.append(_cast(column.slice(low, high - low), field.type, log))
        except _ERRORS:
            if high - low == 1:
                none[low] = True
                parts.append(pa.chunked_array([pa.nulls(1, field.type)]))
                continue
            middle = (low + high) // 2
            todo += [(middle, high), (low, middle)]
    return pa.chunked_array([c for p in parts for c in p.chunks], field.type), none


def _cast(column: pa.ChunkedArray, kind: pa.DataType, log: LogFiles) -> pa.ChunkedArray:
    if column.type == kind:
        return column
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        column = column.cast(pa.string())  # refuses what is not UTF-8
    if pa.types.is_list(kind) and (
        pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    ):
        column = pc.split_pattern(column, log.list_separator)
    return column.cast(kind) if kind != TIMESTAMP else _times(column, log)


def _times(column: pa.ChunkedArray, log: LogFiles) -> pa.ChunkedArray:
    """As TIMESTAMP; what is finer than a microsecond is cut off."""
    numbers = pa.timestamp(log.time_unit, "UTC")
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        if _all_match(column, r"^-?\d+$"):  # as times in CSV files often are
            return _micros(column.cast(pa.int64()).cast(numbers))
        if not _all_match(column, r"^-?\d+(\.\d*)?([eE][+-]?\d+)?$"):
            return _written(column)
        column = column.cast(pa.float64())
    if pa.types.is_floating(column.type):
        # to the nearest: of seconds, a double holds no more than quarters of a microsecond
        scaled = pc.round(pc.multiply(column.cast(pa.float64()), _MICROS[log.time_unit]))
        return scaled.cast(pa.int64()).cast(TIMESTAMP)
    if pa.types.is_integer(column.type):
        return _micros(column.cast(numbers))
    return _micros(column.cast(pa.timestamp("us")) if pa.types.is_date(column.type) else column)


def _written(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Dates and times as text; without a zone: UTC."""
    for unit in ("us", "ns"):  # nanoseconds reach from 1677 to 2262 only
        for zone in ("UTC", None):
            with contextlib.suppress(pa.ArrowInvalid):
                return _micros(column.cast(pa.timestamp(unit, zone)))
    raise pa.ArrowInvalid("not a time")


def _micros(times: pa.ChunkedArray) -> pa.ChunkedArray:
    return times.cast(options=pc.CastOptions(TIMESTAMP, allow_time_truncate=True))


def _all_match(column: pa.ChunkedArray, pattern: str) -> bool:
    return pc.all(pc.match_substring_regex(column, pattern)).as_py() is not False


def _list(place: str, rows: NDArray[np.int64], reason: str, values: pa.ChunkedArray) -> pa.Table:
    """Problems with the values that were found, where they can be shown."""
    reasons: pa.Array | pa.ChunkedArray = pa.repeat(pa.scalar(reason), len(rows))
    try:
        shown = values.cast(pa.string()).fill_null("nothing")
        shown = pc.utf8_slice_codeunits(shown, 0, 80)
        reasons = pc.binary_join_element_wise(reasons, shown, ", found ")
    except _ERRORS:  # bytes that are no text, or lists: the place alone is told
        return _problems(place, rows, reasons)
    return _problems(place, rows, reasons)


def _problems(place: str, rows: NDArray[np.int64], reasons: pa.Array | pa.ChunkedArray) -> pa.Table:
    places = pa.repeat(pa.scalar(place), len(rows))
    return pa.Table.from_arrays([places, pa.array(rows, pa.int64()), reasons], schema=PROBLEMS)
