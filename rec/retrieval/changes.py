"""Changes of a live index: put (add or replace) and delete; checked, and as bytes for the log."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, cast

import numpy as np
import pyarrow as pa

from rec.retrieval.errors import ChangeError
from rec.retrieval.filters import DAY, nanoseconds
from rec.retrieval.queries import as_floats, unfit

_LENGTH = struct.Struct("<I")
_MAX_INTEREST = 2**31 - 1


@dataclass(frozen=True, eq=False)
class Put:
    """Add an item, or replace all that is held of it."""

    item_id: str
    vectors: np.ndarray  # (D,) or (n, D)
    # of all of them, or one dictionary for each (boxes of regions, say); absent ones are empty
    attributes: Mapping[str, Any] | Sequence[Mapping[str, Any]] = field(default_factory=dict)
    interests: Sequence[int] | None = None  # which is which, a number for each; None = 0, 1, 2, ...


@dataclass(frozen=True)
class Delete:
    """Remove an item; one that is not there is no error, so that changes can be sent again."""

    item_id: str


Change = Put | Delete


def check(changes: Sequence[Change], dim: int, schema: pa.Schema) -> list[Change]:
    """The changes with (n, D) float32 vectors, exactly as the log gives them back.

    Raises:
        ChangeError: an id, a vector or an attribute is not as the index needs it.
    """
    if isinstance(changes, Change) or not hasattr(changes, "__len__"):
        raise ChangeError(f"{changes!r} in place of a list of changes")
    fit = [_checked(change, place, dim, schema) for place, change in enumerate(changes)]
    # what is taken is what a restart makes of the log: checked in that form as well
    again = decode(encode(fit), dim)
    return [_checked(change, place, dim, schema) for place, change in enumerate(again)]


def _checked(change: Change, place: int, dim: int, schema: pa.Schema) -> Change:
    if not isinstance(change, Change):
        raise ChangeError(f"change {place} is {change!r}, expected Put or Delete")
    name = f"change {place} (item {change.item_id!r})"
    if not isinstance(change.item_id, str) or not change.item_id:
        raise ChangeError(f"{name}: expected a text that is not empty as id")
    try:
        change.item_id.encode()
    except UnicodeEncodeError as error:
        raise ChangeError(f"{name}: the id is no Unicode text: {error}") from error
    if isinstance(change, Delete):
        return change
    try:
        vectors = np.array(as_floats(change.vectors), ndmin=2, order="C")
    except (TypeError, ValueError) as error:
        raise ChangeError(f"{name}: the vector is not numbers: {error}") from error
    if vectors.ndim != 2 or vectors.shape[1] != dim or not len(vectors):
        raise ChangeError(
            f"{name}: vectors of shape {np.shape(change.vectors)}, expected ({dim},) or (n, {dim})"
        )
    if (found := unfit(vectors)) is not None:
        raise ChangeError(f"{name}: the vector has {found[1]}")
    attributes, interests = change.attributes, change.interests
    table(attributes, len(vectors), schema, name, strict=True)
    if interests is not None:
        order = _order(interests, len(vectors), name)
        vectors, interests = vectors[order], [int(interests[place]) for place in order]
        if not isinstance(attributes, Mapping):
            attributes = [attributes[place] for place in order]
    return Put(change.item_id, vectors, attributes, interests)


def _order(interests: Any, num_vectors: int, name: str) -> list[int]:
    """The places of the interests from the least on."""
    is_one_each = hasattr(interests, "__getitem__") and len(interests) == num_vectors
    whole = is_one_each and all(
        isinstance(number, int | np.integer)
        and not isinstance(number, bool)
        and 0 <= number <= _MAX_INTEREST
        for number in interests
    )
    if not whole or len(set(interests)) < num_vectors:
        raise ChangeError(
            f"{name}: interests are {interests!r}, expected {num_vectors} different whole numbers "
            f"from 0 on"
        )
    return sorted(range(num_vectors), key=lambda place: interests[place])


def table(
    attributes: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    num_rows: int,
    schema: pa.Schema,
    name: str,
    strict: bool = False,
) -> pa.Table:
    """`num_rows` rows of attributes, equal ones of one dictionary; times may be ISO 8601.

    Args:
        strict: a date takes no number, nor a time of the day; logs may have such of before.

    Raises:
        ChangeError: an attribute is not one of the index's, or of another type; or there are
            several dictionaries, but not as many as rows.
    """
    alike = isinstance(attributes, Mapping)
    rows = [attributes] if alike else attributes
    fits = isinstance(rows, list | tuple) and all(isinstance(row, Mapping) for row in rows)
    if not fits or (not alike and len(rows) != num_rows):
        raise ChangeError(
            f"{name}: attributes are {attributes!r}, expected a dictionary, or a list of one for "
            f"each of {num_rows} vectors"
        )
    if unknown := {key for row in rows for key in row} - set(schema.names):
        raise ChangeError(
            f"{name}: no attributes {sorted(unknown, key=str)}; there are {schema.names}"
        )
    columns = []
    for column in schema:
        value: Any = None
        try:
            values = []
            for row in rows:
                value = row.get(column.name)
                values.append(_parsed(value, column.type, strict))
            columns.append(pa.array(values * num_rows if alike else values, column.type))
        except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
            raise ChangeError(
                f"{name}: attribute {column.name!r} is {value!r}, expected {column.type}: {error}"
            ) from error
    if not columns:
        return pa.table({"_": pa.nulls(num_rows)}).select([])
    return pa.Table.from_arrays(columns, schema=schema)


def _parsed(value: Any, kind: pa.DataType, strict: bool) -> Any:
    """`value` with texts for times and dates, in lists too, as what they say."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        if value is None:
            return None
        if not isinstance(value, list | tuple | np.ndarray):  # Arrow would split a text
            raise ValueError("not a list")
        return [_parsed(member, kind.value_type, strict) for member in value]
    if isinstance(value, np.datetime64) and pa.types.is_date(kind):
        value = str(value)  # Arrow takes none of its days
    if strict and pa.types.is_date(kind):
        _check_day(value)
    if isinstance(value, str) and pa.types.is_temporal(kind):
        if str(getattr(kind, "unit", "")) == "ns":  # which datetime has no place for
            return nanoseconds(value)
        moment = datetime.fromisoformat(value)
        return moment.date() if pa.types.is_date(kind) else moment
    is_fraction = isinstance(value, float | np.floating) and not float(value).is_integer()
    if is_fraction and (pa.types.is_integer(kind) or pa.types.is_temporal(kind)):
        # Arrow would cut it off
        raise ValueError("not a whole number")
    return value


def _check_day(value: Any) -> None:
    """Raises ValueError where Arrow would make another day of it than it says."""
    if isinstance(value, int | np.integer | np.bool_):
        raise ValueError("a number")
    if isinstance(value, str | datetime) and nanoseconds(value) % DAY:
        raise ValueError("not a whole day (of UTC)")


def encode(changes: Sequence[Change]) -> bytes:
    """Checked changes as bytes: JSON, then the vectors."""
    heads, vectors = [], []
    for change in changes:
        if isinstance(change, Put):
            of_all, interests = change.attributes, change.interests
            told = dict(of_all) if isinstance(of_all, Mapping) else [dict(one) for one in of_all]
            numbers = [] if interests is None else [list(interests)]
            heads.append([change.item_id, len(change.vectors), told, *numbers])
            vectors.append(change.vectors.tobytes())
        else:
            heads.append([change.item_id, 0, {}])
    try:
        head = json.dumps(heads, default=_plain).encode()
    except (TypeError, ValueError) as error:
        raise ChangeError(f"an attribute cannot be kept in the log: {error}") from error
    return b"".join([_LENGTH.pack(len(head)), head, *vectors])


def decode(payload: bytes, dim: int) -> list[Change]:
    (length,) = _LENGTH.unpack_from(payload)
    heads = json.loads(payload[_LENGTH.size : _LENGTH.size + length])
    values = np.frombuffer(payload, np.float32, offset=_LENGTH.size + length).reshape(-1, dim)
    changes: list[Change] = []
    first = 0
    for item_id, num_vectors, attributes, *interests in heads:
        if num_vectors:
            vectors = values[first : first + num_vectors]
            changes.append(Put(item_id, vectors, attributes, *interests))
        else:
            changes.append(Delete(item_id))
        first += num_vectors
    return changes


def _plain(value: Any) -> Any:
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, np.generic | np.ndarray):
        is_time = value.dtype.kind == "M"
        times = cast("np.datetime64", value)
        return np.datetime_as_string(times).tolist() if is_time else value.tolist()
    raise TypeError(f"{value!r} is {type(value).__name__}")
