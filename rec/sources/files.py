"""Reading an origin's files, local or s3://, with messages that name file, column and row."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
from pyarrow import fs as pafs

from rec.artifacts import filesystem, join, read_bytes
from rec.schema import MEDIA, TIMESTAMP, SchemaError
from rec.sources.base import SourceError, media_problem

FIRST_ROW = 1  # messages count data rows from 1
_MORE_OF = {
    TIMESTAMP: " such as 2024-01-31T18:30:00Z",
    pa.string(): " in UTF-8",
}  # what is expected


def read_file(folder: str, name: str, expected: str) -> bytes:
    """The bytes of one file.

    Raises:
        SourceError: it cannot be read; `expected` says what the folder should hold.
    """
    place = join(folder, name)
    try:
        return read_bytes(place)
    except (OSError, pa.ArrowInvalid) as error:
        files, path = filesystem(folder)
        if files.get_file_info(path).type == pafs.FileType.File:
            above = folder.rstrip("/").rpartition("/")[0] or "."
            raise SourceError(
                f"{folder}: a file, expected {expected}; give the folder that it is in, {above}"
            ) from error
        found = "cannot be read" if isinstance(error, PermissionError) else "not found"
        raise SourceError(f"{place}: {found}; expected {expected} ({error})") from error


def list_files(folder: str, name: str, expected: str) -> frozenset[str]:
    """Names of the files directly below `folder`/`name`; SourceError when it is no folder."""
    place = join(folder, name)
    files, path = filesystem(place)
    try:
        found = files.get_file_info(pafs.FileSelector(path))
    except OSError as error:
        raise SourceError(f"{place}: not a folder; expected {expected} ({error})") from error
    return frozenset(info.base_name for info in found if info.type == pafs.FileType.File)


def list_tree(folder: str, expected: str) -> dict[str, int]:
    """Path below `folder` and size in bytes of every file in it; SourceError when it is none."""
    files, path = filesystem(folder)
    try:
        found = files.get_file_info(pafs.FileSelector(path, recursive=True))
    except OSError as error:
        raise SourceError(f"{folder}: not a folder; expected {expected} ({error})") from error
    start = len(path.rstrip("/")) + 1
    return {info.path[start:]: info.size for info in found if info.type == pafs.FileType.File}


def fingerprint(folder: str, expected: str) -> str:
    """Changes with the contents of the files directly below `folder` that hold its tables (.csv,
    .json) and with names and sizes of all files; SourceError when it is no folder."""
    files, path = filesystem(folder)
    digest = hashlib.sha256()
    for name, size in sorted(list_tree(folder, expected).items()):
        digest.update(f"{name}\0{size}\n".encode(errors="surrogateescape"))
        if "/" not in name and name.endswith((".csv", ".json")):
            with files.open_input_stream(f"{path.rstrip('/')}/{name}") as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
    return digest.hexdigest()[:16]


def file_sizes(folder: str, names: Sequence[str]) -> dict[str, int]:
    """Size in bytes of those of the named files below `folder` that are there.

    A name that leads out of the folder, or that no file can have, is of none that is.
    """
    files, path = filesystem(folder)
    plain = [name for name in dict.fromkeys(names) if _is_plain(name)]
    found = files.get_file_info([f"{path.rstrip('/')}/{name}" for name in plain])
    sizes = zip(plain, found, strict=True)
    return {name: info.size for name, info in sizes if info.type == pafs.FileType.File}


def _is_plain(name: str) -> bool:
    parts = name.split("/")
    short = len(name.encode()) <= 1000 and all(len(part.encode()) <= 255 for part in parts)
    return short and "\0" not in name and not {"", ".", ".."}.intersection(parts)


def stamp(folder: str, name: str) -> tuple[int, int]:
    """What tells a changed file from the one before: its time in nanoseconds and its size."""
    files, path = filesystem(join(folder, name))
    info = files.get_file_info(path)
    return info.mtime_ns or 0, info.size or 0


def read_csv(
    folder: str,
    name: str,
    columns: Mapping[str, pa.DataType],
    expected: str,
    optional: Mapping[str, pa.DataType] | None = None,
) -> pa.Table:
    """The named columns of a CSV file with a header, each cast to its type; empty is null.

    `optional` ones may be absent and are null then. Values are read as bytes and cast here,
    because the CSV reader's own errors do not name the row.

    Raises:
        SourceError: the file is absent, or a row has another number of cells than the header.
        SchemaError: a column is missing, or a value is not of its type.
    """
    place = join(folder, name)
    ragged: list[pacsv.InvalidRow] = []

    def skip(row: pacsv.InvalidRow) -> str:
        ragged.append(row)
        return "skip"

    try:
        table = pacsv.read_csv(
            pa.BufferReader(read_file(folder, name, expected)),
            read_options=pacsv.ReadOptions(use_threads=False),
            parse_options=pacsv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip),
            convert_options=pacsv.ConvertOptions(
                column_types=dict.fromkeys({**columns, **(optional or {})}, pa.binary()),
                strings_can_be_null=True,
                null_values=[""],
            ),
        )
    except pa.ArrowInvalid as error:
        raise SourceError(f"{place}: not a CSV file: {error}") from error
    if ragged:
        row = ragged[0]
        number = f"row {row.number - 1}" if row.number else "a row"  # the header is number 1
        raise SourceError(
            f"{place}, {number}: {row.actual_columns} cells, expected {row.expected_columns} "
            f"as in the header: {row.text[:80]!r}"
        )
    for name in columns:
        if table.column_names.count(name) != 1:
            raise SchemaError(_not_one(place, name, columns, table.column_names))
    wanted = dict(columns)
    for name, kind in (optional or {}).items():
        if table.column_names.count(name) > 1:
            raise SchemaError(_not_one(place, name, columns, table.column_names))
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(table.num_rows, pa.binary()))
        wanted[name] = kind
    typed = [_cast(table.column(c), c, kind, place) for c, kind in wanted.items()]
    return pa.table(typed, names=list(wanted))


def _not_one(place: str, column: str, columns: Mapping[str, pa.DataType], found: list[str]) -> str:
    wanted = ", ".join(f"{name} ({kind})" for name, kind in columns.items())
    what = "is there twice" if column in found else "is missing"
    return f"{place}: column '{column}' {what}; expected {wanted}; found {', '.join(found)}"


def _cast(column: pa.ChunkedArray, name: str, kind: pa.DataType, place: str) -> pa.ChunkedArray:
    try:
        return column.cast(pa.string()).cast(kind)
    except pa.ArrowInvalid as error:
        for row, value in enumerate(column.to_pylist(), start=FIRST_ROW):
            try:
                pa.array([value], pa.binary()).cast(pa.string()).cast(kind)
            except pa.ArrowInvalid:
                shown = value.decode(errors="backslashreplace")
                raise SchemaError(
                    f"{place}, column '{name}', row {row}: {shown!r}, expected {kind}"
                    f"{_MORE_OF.get(kind, '')}"
                ) from error
        raise


def unread_columns(folder: str, name: str, read: Sequence[str]) -> list[str]:
    """Names in the header of a CSV file that are none of those read, such as misspelt ones."""
    with pacsv.open_csv(
        pa.BufferReader(read_file(folder, name, "a CSV file")),
        parse_options=pacsv.ParseOptions(newlines_in_values=True),
    ) as reader:
        return [found for found in reader.schema.names if found not in read]


def require(table: pa.Table, columns: Sequence[str], place: str) -> None:
    """Raise SchemaError that names the first row in which one of `columns` is empty."""
    for name in columns:
        column = table.column(name)
        if column.null_count:
            row = pc.index(pc.is_null(column), True).as_py() + FIRST_ROW
            raise SchemaError(f"{place}, column '{name}', row {row}: empty, expected {column.type}")


def read_media(
    folder: str, names: Sequence[tuple[str, int, str]], present: frozenset[str]
) -> tuple[pa.Table, list[tuple[str, int | None, str]]]:
    """Pictures of items as a media table, and the problems of those left out.

    Args:
        folder: the folder of the pictures.
        names: (item_id, media_index, file name) in order.
        present: the file names that `folder` holds; others are listed as not found.
    """
    rows: list[dict[str, object]] = []
    problems: list[tuple[str, int | None, str]] = []
    for item_id, index, name in names:
        uri = join(folder, name)
        if name not in present:
            problems.append((uri, None, f"not found; expected a picture of item {item_id}"))
            continue
        data = read_bytes(uri)
        if reason := media_problem(data, "frame"):
            problems.append((uri, None, reason))
            continue
        rows.append(
            {"item_id": item_id, "media_index": index, "kind": "frame", "uri": uri, "data": data}
        )
    return pa.Table.from_pylist(rows, schema=MEDIA), problems
