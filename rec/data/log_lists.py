"""Logs that are lists: a user's items on a line, items' tags in one object."""

from __future__ import annotations

import json
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

POSITION_MICROS = 60_000_000  # what stands between two events that are known by their order alone


class Rows(NamedTuple):
    """What a part of a file holds."""

    table: pa.Table
    rows: NDArray[np.int64]  # (table.num_rows,) numbers of the lines or members that they are of
    broken: list[tuple[int, str]]  # number and reason of those that hold none


def user_lines(lines: list[bytes], first: int) -> Rows:
    """Lines of `user item item ...` as a row an item, all clicks, at the minute of its position.

    Args:
        lines: whole ones; blank ones hold nothing.
        first: the number of the first.
    """
    broken: list[tuple[int, str]] = []
    try:
        texts = pa.array(lines, pa.binary()).cast(pa.string())
    except pa.ArrowInvalid:
        told = [line.decode(errors="replace") for line in lines]
        for row, line in enumerate(lines):
            if told[row].encode() != line:
                told[row] = ""
                broken.append((first + row, "not UTF-8"))
        texts = pa.array(told, pa.string())
    texts = pc.utf8_trim_whitespace(texts)
    number = first + np.flatnonzero(np.asarray(pc.not_equal(texts, "")))
    words = pc.utf8_split_whitespace(texts.filter(pc.not_equal(texts, "")))
    sizes = np.asarray(pc.list_value_length(words)).astype(np.int64)
    broken += [(int(row), "a user without items") for row in number[sizes == 1]]
    place = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    items = place > 0
    users = words.flatten().filter(pa.array(~items))
    line = np.repeat(np.arange(len(sizes)), sizes)[items]
    times = (place[items] - 1) * POSITION_MICROS
    table = pa.table(
        {
            "user_id": users.take(pa.array(line)),
            "item_id": words.flatten().filter(pa.array(items)),
            "event": pa.repeat("click", len(line)),
            "event_time": pa.array(times).cast(pa.timestamp("us", "UTC")),
        }
    )
    return Rows(table, number[line], broken)


class _Object(NamedTuple):
    """A JSON object with all that it says: a dict would keep the last of equal names alone."""

    members: list[tuple[str, object]]


def item_tags(data: bytes) -> Rows:
    """One object of items and lists of their tags as a row a member, also of an item given twice.

    Raises:
        ValueError: it is no such object.
    """
    found = json.loads(data, object_pairs_hook=_Object)
    if not isinstance(found, _Object):
        raise ValueError('expected one object, {"item": ["tag", ...], ...}')
    items: list[str] = []
    tags: list[list[str]] = []
    rows: list[int] = []
    broken: list[tuple[int, str]] = []
    for row, (item, given) in enumerate(found.members, 1):
        if not isinstance(given, list) or not all(type(tag) in (str, int) for tag in given):
            broken.append((row, f"{item}: not a list of texts or whole numbers"))
            continue
        items.append(item)
        tags.append([str(tag) for tag in given])
        rows.append(row)
    table = pa.table({"item_id": pa.array(items, pa.string()), "tags": pa.array(tags, _TAGS)})
    return Rows(table, np.array(rows, np.int64), broken)


_TAGS = pa.list_(pa.string())
