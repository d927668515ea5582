"""Columns that an index keeps to filter by: where they are read, and as what they are kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from rec import artifacts
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


def num_without(uri: str, ids: pa.Array, columns: Sequence[str]) -> int:
    """How many of the items have no row in the Parquet files at `uri`; reads the ids alone.

    Args:
        ids: large_string, of rows; repeats allowed.
        columns: that should be there.

    Raises:
        IndexBuildError: as `attributes_of`; or none of the items has one.
    """
    data, key = _opened(uri, columns)
    wanted = pc.unique(ids)
    there = data.to_table(columns=[key])[key]
    try:
        known = pc.is_in(wanted, value_set=there.cast(pa.large_string()).combine_chunks())
    except pa.ArrowException as error:
        raise IndexBuildError(f"{uri}: column {key!r} is no column of ids: {error}") from error
    num = len(wanted) - pc.sum(known).as_py()
    if num == len(wanted):
        raise IndexBuildError(
            f"{uri}: none of the {num} items is there by {key} (one of them is "
            f"{wanted[0].as_py()!r}, {there[0].as_py() if len(there) else 'nothing'!r} is there)"
        )
    return num


def _opened(uri: str, columns: Sequence[str]) -> tuple[pads.Dataset, str]:
    """The Parquet files at `uri`, found to have the columns, and the name of the one of ids."""
    files, path = artifacts.filesystem(uri)
    try:
        data = pads.dataset(path, filesystem=files, format="parquet", exclude_invalid_files=False)
    except (OSError, pa.ArrowInvalid) as error:
        raise IndexBuildError(f"{uri}: attributes cannot be read: {error}") from error
    key = "item_id" if "item_id" in data.schema.names else "id"
    if missing := {key, *columns} - set(data.schema.names):
        raise IndexBuildError(
            f"{uri}: columns {sorted(missing)} are missing; found {data.schema.names}"
        )
    kept(data.schema.empty_table().select(list(columns)), uri)
    return data, key


def attributes_of(uri: str, ids: pa.Array, columns: Sequence[str]) -> pa.Table:
    """Columns of the Parquet files at `uri`, one row for each of `ids`; null where one is absent.

    Args:
        uri: file or folder, local or s3://, with a string column `item_id` (or `id`).
        ids: large_string, repeats allowed.
        columns: what to take.

    Raises:
        IndexBuildError: a column is missing or of a type that none can be filtered by, or an id
            repeats among the files.
    """
    data, key = _opened(uri, columns)
    wanted = pc.unique(ids)
    where = np.full(len(wanted), -1, np.int64)  # row of each wanted id among the rows picked
    picked, num_picked = [], 0
    for batch in data.to_batches(columns=[key, *columns]):
        place = pc.index_in(batch[key].cast(pa.large_string()), value_set=wanted)
        keep = np.flatnonzero(np.asarray(place.is_valid()))
        slots = np.asarray(place.drop_null())
        taken = where[slots] >= 0
        repeated = np.ones(len(slots), bool)
        repeated[np.unique(slots, return_index=True)[1]] = False
        if (taken | repeated).any():
            item_id = wanted[int(slots[(taken | repeated).argmax()])].as_py()
            raise IndexBuildError(f"{uri}: {key} {item_id!r} is there more than once")
        where[slots] = num_picked + np.arange(len(slots))
        num_picked += len(slots)
        picked.append(pa.Table.from_batches([batch]).select(list(columns)).take(keep))
    table = pa.concat_tables(picked) if picked else data.schema.empty_table().select(list(columns))
    rows = where[np.asarray(pc.index_in(ids, value_set=wanted))]
    return table.take(pa.array(rows, mask=rows < 0)).combine_chunks()
