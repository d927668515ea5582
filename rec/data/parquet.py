"""Parquet files that are whole or absent, with row groups of bounded size, and their reading."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from rec.artifacts import exists, filesystem, move_synced
from rec.config import one_line

ROW_GROUP_BYTES = 16 << 20
# what reading a damaged file raises; the last where the name of a column is hit
DAMAGE = (OSError, pa.ArrowException, UnicodeDecodeError)


class ParquetError(ValueError):
    """A Parquet file is damaged. Names file, row group, column and remedy."""


class ParquetFile:
    """A file that is written piece by piece in flat memory and appears when it is complete.

    Locally it is written aside and renamed; on S3 an upload becomes visible when it is closed.
    """

    def __init__(self, uri: str, schema: pa.Schema) -> None:
        self._files, self._path = filesystem(uri)
        self._files.create_dir(os.path.dirname(self._path), recursive=True)
        self._local = isinstance(self._files, pafs.LocalFileSystem)
        folder, name = os.path.split(self._path)
        # readers of whole folders pass over names with a dot: a killed writer's file is in no table
        aside = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")
        self._aside = aside if self._local else self._path
        # dictionaries and statistics of compressed pictures cost much and help nobody
        plain = [f.name for f in schema if not _is_bytes(f.type)]
        self._writer = pq.ParquetWriter(
            self._aside,
            schema,
            filesystem=self._files,
            use_dictionary=plain,  # pyright: ignore[reportArgumentType]  a list is documented
            write_statistics=plain,  # pyright: ignore[reportArgumentType]
        )
        self._schema = schema
        self._waiting: list[pa.Table] = []
        self._bytes = 0
        self.num_rows = 0

    def write(self, table: pa.Table) -> None:
        """Add rows; a row group is written for every 16 MB."""
        self.num_rows += table.num_rows
        size = table.nbytes
        step = max(1, table.num_rows * ROW_GROUP_BYTES // max(size, 1))
        for start in range(0, table.num_rows, step):
            piece = table.slice(start, step)
            self._waiting.append(piece)
            self._bytes += piece.nbytes
            if self._bytes >= ROW_GROUP_BYTES:
                self._flush()

    def _flush(self) -> None:
        if self._waiting:
            group = pa.concat_tables(self._waiting).select(self._schema.names).cast(self._schema)
            self._writer.write_table(group, row_group_size=max(1, group.num_rows))
        self._waiting, self._bytes = [], 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._flush()
        self._writer.close()
        if kind is not None:
            self._files.delete_file(self._aside)
        elif self._local:
            move_synced(self._aside, self._path)


def _is_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_bytes(kind.value_type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def write_table(uri: str, table: pa.Table) -> None:
    with ParquetFile(uri, table.schema) as file:
        file.write(table)


def read_table(uri: str, columns: list[str] | None = None) -> pa.Table:
    """The rows of a file.

    Raises:
        ParquetError: it is damaged.
    """
    files, path = filesystem(uri)
    try:
        return pq.read_table(path, columns=columns, filesystem=files)
    except DAMAGE as error:
        raise_machine(error)
        where = damaged_part(files, path, columns)
        raise ParquetError(_said(f"{uri}{where}", error)) from error


def read_row_group(source: pq.ParquetFile, number: int, columns: list[str], uri: str) -> pa.Table:
    """The columns of a row group, their values checked.

    Raises:
        ParquetError: it is damaged.
    """
    try:
        table = source.read_row_group(number, columns=columns)
        table.validate(full=True)
    except DAMAGE as error:
        raise_machine(error)
        where = _damaged_column(source, number, columns)
        raise ParquetError(_said(f"{uri}{where}", error)) from error
    return table


def raise_machine(error: Exception) -> None:
    """Raise it where it speaks of the machine, by its type or a number, and not of contents."""
    if isinstance(error, OSError) and (error.errno is not None or type(error) is not OSError):
        raise error


def _said(place: str, error: Exception) -> str:
    return f"{place}: cannot be read ({one_line(error)}); make the file again, or take it away"


def damaged_part(files: pafs.FileSystem, path: str, columns: Iterable[str] | None = None) -> str:
    """ ", row group 3, column 'x'": the first that cannot be read; "" where that is not known."""
    try:
        with files.open_input_file(path) as stream:
            source = pq.ParquetFile(stream)
            wanted = list(columns or source.schema_arrow.names)
            found = (_damaged_column(source, i, wanted) for i in range(source.num_row_groups))
            return next((where for where in found if where), "")
    except DAMAGE:  # no Parquet file at all, or gone
        return ""


def _damaged_column(source: pq.ParquetFile, number: int, columns: Iterable[str]) -> str:
    for name in columns:
        try:
            source.read_row_group(number, columns=[name]).validate(full=True)
        except DAMAGE:
            return f", row group {number}, column '{name}'"
    return ""


def stream_folder(uri: str) -> Iterator[pa.Table]:
    """The rows of a folder's files, in the order of their names, a batch at a time.

    What a killed worker was writing aside is none of them.
    """
    files, path = filesystem(uri)
    found = (info.path for info in files.get_file_info(pafs.FileSelector(path)))
    for name in sorted(name for name in found if name.endswith(".parquet")):
        with files.open_input_file(name) as stream:
            for batch in pq.ParquetFile(stream).iter_batches():
                yield pa.Table.from_batches([batch])


def read_or_empty(uri: str, schema: pa.Schema, columns: list[str]) -> pa.Table:
    """The columns of the file, or none of their rows where there is no such file."""
    if exists(uri):
        return read_table(uri, columns)
    return pa.schema([schema.field(name) for name in columns]).empty_table()
