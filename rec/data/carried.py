"""Tables of which each night brings a part: what came before, without the ids that came again.

A row of the next table is that of the newest delivery with its id. Files are read a row group at a
time; small ones, of which each night adds some, are put together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rec.artifacts import ArtifactError, Manifest, filesystem, join
from rec.data.parquet import ParquetFile, read_row_group

_PART_ROWS = 200_000  # of files that are put together


def row_groups(uri: str, columns: Sequence[str]) -> Iterator[pa.Table]:
    """The columns of a file, a row group at a time.

    Raises:
        ArtifactError: one is missing.
    """
    files, path = filesystem(uri)
    with files.open_input_file(path) as stream, pq.ParquetFile(stream) as source:
        if missing := set(columns) - set(source.schema_arrow.names):
            raise ArtifactError(
                f"{uri}: columns {sorted(missing)} are missing, found {source.schema_arrow.names}; "
                "a table that is carried on is made by jobs.nightly"
            )
        for number in range(source.num_row_groups):
            yield read_row_group(source, number, list(columns), uri).select(list(columns))


def parts_of(uri: str, manifest: Manifest) -> list[str]:
    """The Parquet files of a table, in order."""
    names = sorted(name for name in manifest.files if name.endswith(".parquet"))
    return [join(uri, manifest.root, name) for name in names]


def together(places: Sequence[str]) -> list[list[str]]:
    """Files by what is to become one, in order."""
    with ThreadPoolExecutor(16) as pool:
        sizes = list(pool.map(_num_rows, places))
    groups: list[list[str]] = []
    held = _PART_ROWS
    for place, size in zip(places, sizes, strict=True):
        if held + size > _PART_ROWS:
            groups.append([])
            held = 0
        groups[-1].append(place)
        held += size
    return groups


def _num_rows(uri: str) -> int:
    files, path = filesystem(uri)
    with files.open_input_file(path) as stream:
        return pq.read_metadata(stream).num_rows


def ids_of(places: Sequence[str], column: str) -> pa.Array:
    """The ids of some files."""
    chunks = [
        piece.column(column).combine_chunks()
        for place in places
        for piece in row_groups(place, [column])
    ]
    return pa.chunked_array(chunks, pa.string()).combine_chunks()


def write_without(
    group: Sequence[str],
    column: str,
    again: pa.Array,
    schema: pa.Schema,
    target: str,
    among: pa.Array | None = None,
) -> dict[str, int]:
    """Write the rows of some files but those of ids that came again and, where `among` is given, of
    ids that are not among these; how many were "carried", "replaced" and have "left"."""
    count = {"carried": 0, "replaced": 0, "left": 0}
    with ParquetFile(target, schema) as file:
        for place in group:
            for piece in row_groups(place, schema.names):
                ids = piece.column(column)
                kept = piece.filter(pc.invert(pc.is_in(ids, value_set=again)))
                count["replaced"] += piece.num_rows - kept.num_rows
                if among is not None:
                    left = kept.num_rows
                    kept = kept.filter(pc.is_in(kept.column(column), value_set=among))
                    count["left"] += left - kept.num_rows
                file.write(kept)
    count["carried"] = file.num_rows
    return count
