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
from rec.retrieval.filters import nanoseconds
from rec.retrieval.queries import as_floats, unfit

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, eq=False)
class Put:
    """Add an item, or replace all that is held of it."""

    item_id: str
    vectors: np.ndarray  # (D,) or (n, D)
    attributes: Mapping[str, Any] = field(default_factory=dict)  # absent ones are empty


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
    table(change.attributes, 1, schema, name)
    return Put(change.item_id, vectors, change.attributes)


def table(attributes: Mapping[str, Any], num_rows: int, schema: pa.Schema, name: str) -> pa.Table:
    """`num_rows` equal rows of attributes; times may be ISO 8601.

    Raises:
        ChangeError: an attribute is not one of the index's, or of another type.
    """
    if not isinstance(attributes, Mapping):
        raise ChangeError(f"{name}: attributes are {attributes!r}, expected a dictionary")
    if unknown := set(attributes) - set(schema.names):
        raise ChangeError(
            f"{name}: no attributes {sorted(unknown, key=str)}; there are {schema.names}"
        )
    columns = []
    for column in schema:
        value = attributes.get(column.name)
        try:
            columns.append(pa.array([_parsed(value, column.type)] * num_rows, column.type))
        except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
            raise ChangeError(
                f"{name}: attribute {column.name!r} is {value!r}, expected {column.type}: {error}"
            ) from error
    if not columns:
        return pa.table({"_": pa.nulls(num_rows)}).select([])
    return pa.Table.from_arrays(columns, schema=schema)


def _parsed(value: Any, kind: pa.DataType) -> Any:
    """`value` with texts for times and dates, in lists too, as what they say."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        if value is None:
            return None
        if not isinstance(value, list | tuple | np.ndarray):  # Arrow would split a text
            raise ValueError("not a list")
        return [_parsed(member, kind.value_type) for member in value]
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


def encode(changes: Sequence[Change]) -> bytes:
    """Checked changes as bytes: JSON, then the vectors."""
    heads, vectors = [], []
    for change in changes:
        if isinstance(change, Put):
            heads.append([change.item_id, len(change.vectors), dict(change.attributes)])
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
    for item_id, num_vectors, attributes in heads:
        if num_vectors:
            changes.append(Put(item_id, values[first : first + num_vectors], attributes))
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
