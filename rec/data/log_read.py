"""The rows of a log file, a batch at a time, each with its number; rows that cannot be parsed.

Rows count from 1: data rows of a CSV file, its header not counted; lines of JSON lines.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.json as pajson
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import fs as pafs

from rec.data.logs import LogError, Piece

BATCH_ROWS = 1 << 20
_BLOCK_BYTES = 8 << 20


class Batch(NamedTuple):
    """Rows as the file has them, and those of the same part that are none."""

    table: pa.Table
    rows: NDArray[np.int64]  # (table.num_rows,) their numbers
    broken: list[tuple[int, str]]  # number and reason


def read_batches(
    files: pafs.FileSystem, piece: Piece, columns: dict[str, pa.DataType]
) -> Iterator[Batch]:
    """The named columns of a file, those that it has, of any type that its format gives them.

    Args:
        columns: the log's names and the types that they will be held to.

    Raises:
        LogError: the file cannot be read to its end.
    """
    try:
        if piece.path.endswith(".parquet"):
            yield from _parquet(files, piece, columns)
        elif ".csv" in piece.path.rsplit("/", 1)[-1]:
            yield from _csv(files, piece, columns)
        else:
            yield from _json_lines(files, piece, columns)
    except (OSError, EOFError, pa.ArrowInvalid) as error:
        raise LogError(
            f"{piece.path}: cannot be read ({error}); replace the file, or remove it from the log"
        ) from error


def _parquet(
    files: pafs.FileSystem, piece: Piece, columns: dict[str, pa.DataType]
) -> Iterator[Batch]:
    with files.open_input_file(piece.path) as stream:
        file = pq.ParquetFile(stream)
        first, last = piece.groups or (0, file.num_row_groups)
        row = piece.first_row
        for batch in file.iter_batches(
            BATCH_ROWS,
            row_groups=list(range(first, last)),
            columns=[name for name in file.schema_arrow.names if name in columns],
            use_threads=False,
        ):
            yield Batch(pa.Table.from_batches([batch]), np.arange(row, row + batch.num_rows), [])
            row += batch.num_rows


def _csv(files: pafs.FileSystem, piece: Piece, columns: dict[str, pa.DataType]) -> Iterator[Batch]:
    """Cells as bytes: what they should be is decided, and refused, row by row elsewhere."""
    ragged: dict[int, str] = {}

    def skip(row: pacsv.InvalidRow) -> str:
        number = (row.number or 2) - 1  # the header is row 1 of the reader
        ragged[number] = f"{row.actual_columns} cells, expected {row.expected_columns}"
        return "skip"

    reading = pacsv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES)
    parsing = pacsv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip)
    with (
        files.open_input_stream(piece.path) as stream,
        pacsv.open_csv(stream, reading, parsing) as reader,
    ):
        present = [name for name in reader.schema.names if name in columns]
    ragged.clear()
    converting = pacsv.ConvertOptions(
        column_types=dict.fromkeys(present, pa.binary()),
        include_columns=present,
        strings_can_be_null=True,
        null_values=[""],
    )
    row, told = 1, 0
    with files.open_input_stream(piece.path) as stream:
        for batch in pacsv.open_csv(stream, reading, parsing, converting):
            lost = np.array(sorted(n for n in ragged if n >= row), np.int64)
            rows = _skipping(row, batch.num_rows, lost)
            row = int(rows[-1]) + 1 if len(rows) else row
            broken = [(n, ragged[n]) for n in list(ragged)[told:]]
            told = len(ragged)
            yield Batch(pa.Table.from_batches([batch]), rows, broken)
    if len(ragged) > told:
        empty = pa.table({name: pa.array([], pa.binary()) for name in present})
        yield Batch(empty, np.zeros(0, np.int64), [(n, ragged[n]) for n in list(ragged)[told:]])


def _skipping(first: int, count: int, lost: NDArray[np.int64]) -> NDArray[np.int64]:
    """(count,) ascending numbers from `first` that are not in `lost`."""
    candidates = np.arange(first, first + count + len(lost))
    return np.setdiff1d(candidates, lost, assume_unique=True)[:count]


def _json_lines(
    files: pafs.FileSystem, piece: Piece, columns: dict[str, pa.DataType]
) -> Iterator[Batch]:
    schema: pa.Schema | None = None
    row, rest = 1, b""
    with files.open_input_stream(piece.path) as stream:
        while True:
            block = stream.read(_BLOCK_BYTES)
            data = rest + block
            cut = data.rfind(b"\n") + 1 if block else len(data)
            data, rest = data[:cut], data[cut:]
            if data:
                schema = schema or _probe(data, columns)
                batch, num_lines = _parse(data, schema, row)
                row += num_lines
                yield batch
            if not block:
                return


def _probe(data: bytes, columns: dict[str, pa.DataType]) -> pa.Schema:
    """Types to parse as: ids and times may be numbers or text, by the first line that tells."""
    sample: dict[str, object] = {}
    for line in data.splitlines()[:1000]:
        try:
            found = json.loads(line)
        except ValueError:  # told as a broken row when it is parsed
            continue
        if isinstance(found, dict):
            sample = {**{k: v for k, v in found.items() if v is not None}, **sample}
    fields: list[pa.Field] = []
    for name, kind in columns.items():
        value = sample.get(name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if pa.types.is_timestamp(kind) or pa.types.is_string(kind):
            of_number = pa.int64() if isinstance(value, int) else pa.float64()
            kind = of_number if number else pa.string()
        fields.append(pa.field(name, kind))
    return pa.schema(fields)


def _parse(data: bytes, schema: pa.Schema, row: int) -> tuple[Batch, int]:
    """Whole lines to a batch; where a part cannot be parsed, its halves are tried."""
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n")) + 1
    if not len(ends) or ends[-1] != len(data):
        ends = np.append(ends, len(data))
    bounds = np.concatenate([[0], ends])
    tables: list[pa.Table] = [schema.empty_table()]
    good: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    broken: list[tuple[int, str]] = []
    todo = [(0, len(ends))]
    while todo:
        low, high = todo.pop()
        part = data[bounds[low] : bounds[high]]
        reason = "not one JSON object"
        try:
            table = _objects(part, schema)
            if table.num_rows == high - low:
                tables.append(table)
                good.append(np.arange(low, high))
                continue
        except pa.ArrowInvalid as error:
            reason = str(error).splitlines()[0]
        if high - low > 1:
            middle = (low + high) // 2
            todo += [(middle, high), (low, middle)]
        elif part.strip():
            broken.append((row + low, reason))
    rows = np.concatenate(good) + row
    return Batch(pa.concat_tables(tables), rows, broken), len(ends)


def _objects(data: bytes, schema: pa.Schema) -> pa.Table:
    if not data.strip():
        return schema.empty_table()
    table = pajson.read_json(
        io.BytesIO(data),
        pajson.ReadOptions(use_threads=False, block_size=len(data) + 1),
        pajson.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
    )
    return table.select(schema.names)
