"""Columns that an index keeps to filter by: which types can be, and as what they are kept."""

from __future__ import annotations

import pyarrow as pa

from rec.retrieval.errors import IndexBuildError


def kept(table: pa.Table, place: str) -> pa.Table:
    """`table` as an index keeps it: dictionaries as their values, lists of a fixed size as lists,
    half floats as floats.

    Args:
        place: where it comes from, for errors.

    Raises:
        IndexBuildError: a column is of a type that no filter compares.
    """
    for number, field in enumerate(table.schema):
        kind = _kept(field.type)
        if kind is None:
            raise IndexBuildError(
                f"{place}: attribute {field.name!r} is of type {field.type}, which no filter "
                f"compares; make it text, a number, true or false, a date, a timestamp, or a list "
                f"of such{_advice(field.type)}"
            )
        if kind != field.type:
            table = table.set_column(number, field.name, table[number].cast(kind))
    return table


def _kept(kind: pa.DataType) -> pa.DataType | None:
    """The type that columns of this one are kept as; None where no filter compares it."""
    if pa.types.is_fixed_size_list(kind):
        kind = pa.list_(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        member = _kept_alone(kind.value_type)
        make = pa.list_ if pa.types.is_list(kind) else pa.large_list
        return None if member is None else kind if member == kind.value_type else make(member)
    return _kept_alone(kind)


def _kept_alone(kind: pa.DataType) -> pa.DataType | None:
    types = pa.types
    if types.is_dictionary(kind):
        return _kept_alone(kind.value_type)
    if types.is_float16(kind):
        return pa.float32()
    fits = (
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_boolean(kind)
        or types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_date(kind)
        or types.is_timestamp(kind)
        or types.is_null(kind)
    )
    return kind if fits else None


def _advice(kind: pa.DataType) -> str:
    types = pa.types
    if types.is_decimal(kind):
        return " (cast it to float64, or to an integer of the smallest unit)"
    if types.is_duration(kind) or types.is_time(kind):
        return " (cast it to an integer)"
    return " (cast it to string)" if str(kind).endswith("string_view") else ""
