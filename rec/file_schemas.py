"""What the files of an artifact hold, told by the files themselves: columns, or arrays."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from contextlib import suppress

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

_NUMBER = re.compile(r"\d+")
_MAX_ARRAYS = 16  # of more, a model's weights, the names are no schema
_MAX_HEADER = 1 << 20


def schemas_of(
    files: pafs.FileSystem, path: str, names: Iterable[str]
) -> dict[str, dict[str, str]]:
    """The schema of every table: of the first of its files, whose names differ in numbers alone.

    Args:
        files, path: the folder of the files.
        names: of all files below it.

    Returns:
        By the files' name, its numbers as *: column or array to type, as
        {"edges/shard-*.parquet": {"weight": "float not null"}}. Of files that are not what their
        names say nothing is told.
    """
    found: dict[str, dict[str, str]] = {}
    for name in sorted(names):
        reader = _READERS.get(name.rpartition(".")[-1])
        table = _NUMBER.sub("*", name)
        if reader and table not in found:
            with files.open_input_file(f"{path}/{name}") as stream, suppress(ValueError):
                found[table] = reader(stream)
    return {table: schema for table, schema in found.items() if schema}


def columns_of(schema: pa.Schema) -> dict[str, str]:
    """Column to type."""
    return {f.name: f"{f.type}{'' if f.nullable else ' not null'}" for f in schema}


def _parquet(stream: pafs.NativeFile) -> dict[str, str]:
    return columns_of(pq.read_schema(stream))


def _safetensors(stream: pafs.NativeFile) -> dict[str, str]:
    """Types and numbers of dimensions, from the header: eight bytes of its size, then JSON."""
    size = int.from_bytes(stream.read(8), "little")
    if size > _MAX_HEADER:
        return {}
    arrays = json.loads(stream.read(size))
    arrays.pop("__metadata__", None)
    if len(arrays) > _MAX_ARRAYS:
        return {}
    return {
        name: f"{about['dtype']} of {len(about['shape'])} dimensions"
        for name, about in sorted(arrays.items())
    }


_READERS = {"parquet": _parquet, "safetensors": _safetensors}
