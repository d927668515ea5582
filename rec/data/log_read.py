"""The rows of a log file, a batch at a time, each with its number; rows that cannot be parsed.

Rows count from 1: data rows of a CSV file, its header not counted; lines of JSON lines and of
lists; members of an object.
"""

from __future__ import annotations

import io
import json
from codecs import BOM_UTF8
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.json as pajson
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import fs as pafs

from rec.config import one_line
from rec.data.log_lists import item_tags, user_lines
from rec.data.logs import UNTIMED, LogError, Piece, format_of
from rec.data.parquet import DAMAGE, damaged_part

BATCH_ROWS = 1 << 20
_BLOCK_BYTES = 8 << 20
_PARTS = 16  # of a block of JSON lines that does not parse at once
_RECBOLE = ("inter", "item")
_LISTS = {UNTIMED: ("users' items", "user_id"), "json": ("items' tags", "tags")}
_LONG = f"a line longer than {_BLOCK_BYTES >> 20} MB"
_MOVE = "name the log's columns by our names, or move the file out of the log"


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
        kind = format_of(piece.path) or ""
        if kind == "parquet":
            yield from _parquet(files, piece, columns)
        elif kind in ("csv", *_RECBOLE):
            yield from _csv(files, piece, columns, kind)
        elif kind in _LISTS:
            yield from _lists(files, piece, columns, kind)
        else:
            yield from _json_lines(files, piece, columns)
    except (*DAMAGE, EOFError) as error:
        where = damaged_part(files, piece.path, columns)
        raise LogError(
            f"{piece.path}{where}: cannot be read ({one_line(error)}); replace the file, or remove "
            "it from the log"
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


def _csv(
    files: pafs.FileSystem, piece: Piece, columns: dict[str, pa.DataType], kind: str
) -> Iterator[Batch]:
    """Cells as bytes: what they should be is decided, and refused, row by row elsewhere."""
    ragged: dict[int, str] = {}

    def skip(row: pacsv.InvalidRow) -> str:
        number = (row.number or 2) - 1  # the header is row 1 of the reader
        ragged[number] = f"{row.actual_columns} cells, expected {row.expected_columns}"
        return "skip"

    reading = pacsv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES)
    parsing = pacsv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip)
    if kind in _RECBOLE:
        parsing = pacsv.ParseOptions(delimiter="\t", quote_char=False, invalid_row_handler=skip)
    with (
        files.open_input_stream(piece.path) as stream,
        pacsv.open_csv(stream, reading, parsing) as reader,
    ):
        header = {name: _name(name, kind) for name in reader.schema.names}
    present = [name for name in header if header[name] in columns]
    if not present:  # to the reader no names are all of them
        yield Batch(pa.table({}), np.zeros(0, np.int64), [])
        return
    ragged.clear()
    converting = pacsv.ConvertOptions(
        column_types=dict.fromkeys(present, pa.binary()),
        include_columns=present,
        strings_can_be_null=True,
        null_values=[""],
    )
    row = 1
    with files.open_input_stream(piece.path) as stream:
        for batch in pacsv.open_csv(stream, reading, parsing, converting):
            rows = _skipping(row, batch.num_rows, np.array(sorted(ragged), np.int64))
            row = int(rows[-1]) + 1 if len(rows) else row
            passed = [number for number in ragged if number < row]  # the reader may be ahead
            broken = [(number, ragged.pop(number)) for number in passed]
            table = pa.Table.from_batches([batch])
            yield Batch(table.rename_columns([header[name] for name in present]), rows, broken)
    if ragged:
        empty = pa.table({header[name]: pa.array([], pa.binary()) for name in present})
        yield Batch(empty, np.zeros(0, np.int64), list(ragged.items()))


def _name(written: str, kind: str) -> str:
    """A column's name; in RecBole's files its type stands behind it."""
    return written.partition(":")[0] if kind in _RECBOLE else written


def _lists(
    files: pafs.FileSystem, piece: Piece, columns: dict[str, pa.DataType], kind: str
) -> Iterator[Batch]:
    what, column = _LISTS[kind]
    if column not in columns:
        raise LogError(f"{piece.path}: holds {what}, but no {column} is asked for; {_MOVE}")
    with files.open_input_stream(piece.path) as stream:
        if kind != UNTIMED:
            try:
                yield Batch(*item_tags(stream.read()))
            except (ValueError, RecursionError) as error:
                raise LogError(f"{piece.path}: not items' tags ({error}); {_MOVE}") from error
            return
        row = 1
        for data in _whole_lines(stream):
            lines = io.BytesIO(data).readlines()
            if data:
                yield Batch(*user_lines(lines, row))
            else:
                empty = user_lines([], row)
                yield Batch(empty.table, empty.rows, [(row, _LONG)])
            row += max(len(lines), 1)


def _skipping(first: int, count: int, lost: NDArray[np.int64]) -> NDArray[np.int64]:
    """(count,) ascending numbers from `first` that are not in `lost`."""
    candidates = np.arange(first, first + count + len(lost))
    return np.setdiff1d(candidates, lost, assume_unique=True)[:count]


def _json_lines(
    files: pafs.FileSystem, piece: Piece, columns: dict[str, pa.DataType]
) -> Iterator[Batch]:
    row = 1
    with files.open_input_stream(piece.path) as stream:
        for data in _whole_lines(stream):
            lines = io.BytesIO(data).readlines() if data else [b""]  # ends at "\n" alone
            schema = _probe(lines, columns)
            if data:
                yield from _parse(lines, schema, row)
            else:
                yield Batch(schema.empty_table(), np.zeros(0, np.int64), [(row, _LONG)])
            row += len(lines)


def _whole_lines(stream: pa.NativeFile) -> Iterator[bytes]:
    """Lines, a block of them at a time; nothing in place of one that is longer than a block.

    A byte-order mark, with which some editors begin a file, is no part of its first line.
    """
    rest, skipping = stream.read(len(BOM_UTF8)).removeprefix(BOM_UTF8), False
    while block := stream.read(_BLOCK_BYTES):
        if skipping:
            end = block.find(b"\n") + 1
            skipping, block = not end, block[end:] if end else b""
        data = rest + block
        cut = data.rfind(b"\n") + 1
        if cut:
            yield data[:cut]
        rest = data[cut:]
        if len(rest) > _BLOCK_BYTES:
            yield b""
            rest, skipping = b"", True
    if rest:
        yield rest


def _probe(lines: list[bytes], columns: dict[str, pa.DataType]) -> pa.Schema:
    """Types to parse as: ids and times may be numbers or text, by the first line that tells."""
    sample: dict[str, object] = {}
    for line in lines[:100]:
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):  # told as a broken row when it is parsed
            continue
        if isinstance(found, dict):
            sample = {**{k: v for k, v in found.items() if v is not None}, **sample}
    fields: list[pa.Field] = []
    for name, kind in columns.items():
        value = sample.get(name)
        time = pa.types.is_timestamp(kind)
        if time or pa.types.is_string(kind):
            kind = pa.string()
            if isinstance(value, int) and not isinstance(value, bool):
                kind = pa.int64()
            elif isinstance(value, float) and time:  # an id keeps its text: 7.0 is not 7
                kind = pa.float64()
        fields.append(pa.field(name, kind))
    return pa.schema(fields)


def _parse(lines: list[bytes], schema: pa.Schema, row: int) -> Iterator[Batch]:
    """Whole lines, the first of them number `row`.

    What does not parse as the schema's types, in all or in one of its parts, is parsed line by
    line to text: a part costs that once, however many of its rows are to blame.
    """
    whole = _typed(lines, schema)
    if whole is not None:
        yield Batch(whole, np.arange(row, row + len(lines)), [])
        return
    step = -(-len(lines) // _PARTS)
    for start in range(0, len(lines), step):
        part = lines[start : start + step]
        table = _typed(part, schema)
        if table is not None:
            yield Batch(table, np.arange(row + start, row + start + len(part)), [])
        else:
            yield _as_text(part, schema, row + start)


def _typed(lines: list[bytes], schema: pa.Schema) -> pa.Table | None:
    """A row a line, or None where one is not a row of these types."""
    data = b"".join(lines)
    try:
        table = pajson.read_json(
            io.BytesIO(data),
            pajson.ReadOptions(use_threads=False, block_size=len(data) + 1),
            pajson.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
    except pa.ArrowInvalid:
        return None
    return table.select(schema.names) if table.num_rows == len(lines) else None


def _as_text(lines: list[bytes], schema: pa.Schema, row: int) -> Batch:
    """Rows with all values as text, as they are written; what they should be is decided elsewhere.

    Blank lines are no rows.
    """
    values: dict[str, list[object]] = {name: [] for name in schema.names}
    rows: list[int] = []
    broken: list[tuple[int, str]] = []
    for number, line in enumerate(lines, row):
        if not line.strip():
            continue
        try:
            found = json.loads(line, parse_int=str, parse_float=str, parse_constant=str)
            if not isinstance(found, dict):
                raise ValueError("a value of another kind")
            texts = [_text(found.get(field.name), field) for field in schema]
        except (ValueError, RecursionError) as error:
            broken.append((number, f"not one JSON object ({error})"))
            continue
        rows.append(number)
        for name, text in zip(schema.names, texts, strict=True):
            values[name].append(text)
    lists = {f.name: f.type if pa.types.is_list(f.type) else pa.string() for f in schema}
    table = pa.table({name: pa.array(values[name], kind) for name, kind in lists.items()})
    return Batch(table, np.array(rows, np.int64), broken)


def _text(value: object, field: pa.Field) -> object:
    """A value as text, a list as one of texts.

    Raises:
        ValueError: it is a list or an object and should not be, or the other way round.
    """
    if value is None:
        return None
    if pa.types.is_list(field.type):
        if isinstance(value, list):
            return [_text(v, field.type.value_field) for v in value]
        raise ValueError(f"{field.name}: not a list")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    raise ValueError(f"{field.name}: not a single value")
