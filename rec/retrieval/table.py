"""Writes an embedding table of arrays; reads one's partitions in batches, all checked."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from rec import artifacts, leftovers
from rec.artifacts import ArtifactError, Manifest, join
from rec.retrieval.errors import IndexBuildError, remedy
from rec.retrieval.originals import as_lists
from rec.retrieval.queries import as_floats, texts, unfit
from rec.schema import EMBEDDINGS

_BATCH_ROWS = 16_384


def write_table(
    uri: str,
    ids: Sequence[str],
    vectors: np.ndarray,
    *,
    interests: np.ndarray | None = None,
    attributes: Mapping[str, Any] | None = None,
    encoder: str | None = None,
) -> Manifest:
    """Publish vectors of one's own as an embedding table at `uri`, local or s3://. The one that it
    replaces stays until the next time; the files of older ones go after an hour.

    Args:
        ids: (n,) texts, of the items; a list or an array, Arrow's too.
        vectors: (n, D), finite; what is searched is the inner product, so make them unit for
            cosine.
        interests: (n,) numbers that tell the vectors of one item apart; None = each has one.
        attributes: columns to filter by, n values each: arrays, Arrow's or lists; None = empty.
        encoder: version of the model that made the vectors; an index opened for another is refused.

    Raises:
        IndexBuildError: they are not equally many, or not of the types that they should be, or a
            vector is not finite.
        ArtifactError: the table cannot be written.
    """
    if encoder is not None and not isinstance(encoder, str):
        raise IndexBuildError(f"{uri}: encoder is {encoder!r}, expected a text")
    try:
        vectors = as_floats(vectors)
        columns = _keys(ids, interests)
        extra = {name: pa.array(values) for name, values in _named(attributes)}
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise IndexBuildError(f"{uri}: not a table: {error}") from error
    if taken := set(extra) & set(EMBEDDINGS.names):
        raise IndexBuildError(f"{uri}: attributes {sorted(taken)} have names of the table's own")
    lengths = {name: len(column) for name, column in {**columns, **extra}.items()}
    if vectors.ndim != 2 or set(lengths.values()) != {len(vectors)}:
        raise IndexBuildError(
            f"{uri}: vectors of shape {vectors.shape}, expected (n, D), and n of each: {lengths}"
        )
    if (found := unfit(vectors)) is not None:
        raise IndexBuildError(f"{uri}: vector {found[0]} has {found[1]}")
    schema = pa.schema([*EMBEDDINGS, *(pa.field(name, c.type) for name, c in extra.items())])
    try:
        with tempfile.TemporaryDirectory(prefix="raycall-table-") as staged:
            with pq.ParquetWriter(Path(staged, "part-00000.parquet"), schema) as writer:
                for start in range(0, len(vectors), _BATCH_ROWS):
                    rows = slice(start, start + _BATCH_ROWS)
                    lists = as_lists(np.ascontiguousarray(vectors[rows]))
                    own = [column[rows] for column in columns.values()]
                    others = [column[rows] for column in extra.values()]
                    writer.write_table(pa.table([*own, lists, *others], schema=schema))
            lineage = {} if encoder is None else {"encoder": encoder}
            before = leftovers.root_in_use(uri, "embedding-table")
            manifest = artifacts.publish(staged, uri, "embedding-table", lineage=lineage)
            leftovers.clear(uri, "v-[0-9a-f]{12}", manifest.root, before)
            return manifest
    except OSError as error:
        raise ArtifactError(f"{uri}: cannot be written: {error}; {remedy(error)}") from error


def _keys(ids: Any, interests: Any) -> dict[str, pa.Array]:
    if isinstance(ids, set | frozenset):
        raise TypeError("ids in a set have no order, as vectors have")
    if isinstance(ids, pa.Array | pa.ChunkedArray):
        ids = ids.to_pylist()
    numbers = pa.array(np.zeros(len(ids), int) if interests is None else interests)
    if numbers.null_count:
        raise ValueError("an interest number is missing")
    return {
        "id": pa.array(texts(ids), pa.string()),
        "interest": numbers.cast(pa.int32()),
        "weight": pa.array(np.ones(len(ids), np.float32)),
    }


def _named(attributes: Any) -> Iterable[tuple[str, Any]]:
    if attributes is None:
        return ()
    if not isinstance(attributes, Mapping):
        raise TypeError(f"attributes are {attributes!r}, expected columns by name")
    for name in attributes:
        if not isinstance(name, str):
            raise TypeError(f"the attribute's name {name!r} is no text")
    return attributes.items()


class _Part(NamedTuple):
    name: str
    rows: np.ndarray  # row numbers within the partition
    table: pa.Table


@lru_cache(maxsize=4)
def folder_of(uri: str, version: str) -> Path:
    """The local folder of an embedding table for tasks that read parts of it: verified once in
    each process, not once a task.

    Raises:
        ArtifactError: it is not intact, or another version stands there by now.
    """
    manifest, folder = artifacts.open_artifact(uri, "embedding-table")
    if manifest.version != version:
        raise artifacts.ArtifactError(f"{uri}: was published again meanwhile; start anew")
    return folder


def check_published(uri: str) -> None:
    """Raises ArtifactError where there is Parquet at `uri` that was not published as a table."""
    if artifacts.exists(join(uri, artifacts.MANIFEST)):
        return
    files, path = artifacts.filesystem(uri)
    if files.get_file_info(path).type == pafs.FileType.Directory:
        names = [name for name in artifacts.file_sizes(uri) if name.endswith(".parquet")]
    else:
        names = [path] if path.endswith(".parquet") and artifacts.exists(uri) else []
    if names:
        raise ArtifactError(
            f"{join(uri, artifacts.MANIFEST)}: not found, though there is Parquet ({names[0]}): "
            f"ids and vectors of your own become an embedding table by "
            f"rec.retrieval.table.write_table, or by rec.artifacts.seal where the files have its "
            f"columns already (docs/retrieval.md)"
        )


class EmbeddingTable:
    """The active rows (weight above 0) of an embedding table's partitions, in name order.

    Args:
        folder: of the Parquet files.
        start, stop: the active rows to read; None = to the end.
    """

    def __init__(self, folder: Path, start: int = 0, stop: int | None = None) -> None:
        self._files = sorted(folder.rglob("*.parquet"))
        self._folder = folder
        self._start, self._stop = start, stop

    def schema(self) -> pa.Schema:
        """Of the columns of the first partition beside an embedding table's own."""
        fields = pq.read_schema(self._files[0]) if self._files else ()
        return pa.schema([field for field in fields if field.name not in EMBEDDINGS.names])

    def num_rows(self) -> int:
        """Rows of all partitions, inactive ones included."""
        return sum(pq.read_metadata(path).num_rows for path in self._files)

    def _parts(self, columns: Sequence[str]) -> Iterator[_Part]:
        passed = 0  # active rows so far
        for path in self._files:
            name, first = path.relative_to(self._folder).as_posix(), 0
            with pq.ParquetFile(path) as file:
                _check_types(name, file.schema_arrow)
                missing = {*EMBEDDINGS.names, *columns} - set(file.schema_arrow.names)
                if missing:
                    raise IndexBuildError(
                        f"{name}: columns {sorted(missing)} are missing; an embedding table has "
                        f"{EMBEDDINGS.names}, found {file.schema_arrow.names}"
                    )
                for group in range(file.num_row_groups):
                    if self._stop is not None and passed >= self._stop:
                        return
                    weights = file.read_row_group(group, ["weight"])["weight"]
                    active = int(np.count_nonzero(_active(weights)))
                    if passed + active <= self._start:  # what comes before is not decoded
                        passed, first = passed + active, first + len(weights)
                        continue
                    for batch in file.iter_batches(
                        _BATCH_ROWS, row_groups=[group], columns=["weight", *columns]
                    ):
                        if self._stop is not None and passed >= self._stop:
                            return
                        rows = np.flatnonzero(_active(batch["weight"]))
                        low = max(0, self._start - passed)
                        high = None if self._stop is None else max(0, self._stop - passed)
                        passed += len(rows)
                        rows = rows[low:high]
                        if len(rows):
                            table = pa.Table.from_batches([batch]).take(rows)
                            yield _Part(name, first + rows, table)
                        first += batch.num_rows

    def keys(self) -> pa.Table:
        """`id` (large_string) and `interest` (int32) of every row, in row order."""
        chunks = [pa.table({"id": pa.array([], pa.large_string()), "interest": _interests([])})]
        for name, rows, table in self._parts(["id", "interest"]):
            for column, say in (("id", "id"), ("interest", "interest number")):
                if table[column].null_count:
                    row = rows[np.asarray(pc.is_null(table[column])).argmax()]
                    raise IndexBuildError(f"{name}, row {row}: the {say} is empty")
            ids = _cast(name, table, "id", pa.large_string())  # may be numbers, or a dictionary
            if (empty := pc.index(ids, "").as_py()) >= 0:
                raise IndexBuildError(f"{name}, row {rows[empty]}: the id is empty")
            interests = _cast(name, table, "interest", pa.int32())
            chunks.append(pa.table({"id": ids, "interest": interests}))
        return pa.concat_tables(chunks).combine_chunks()

    def places(self, item_id: str) -> list[str]:
        """Partition and row of every occurrence of an id."""
        return [
            f"{name} row {row}"
            for name, rows, table in self._parts(["id"])
            for row in rows[np.asarray(pc.equal(table["id"], item_id))]
        ]

    def extra(self, columns: Sequence[str]) -> pa.Table:
        """Columns of the table's own, in row order."""
        return pa.concat_tables(
            [part.table.select(list(columns)) for part in self._parts(columns)],
            promote_options="permissive",
        ).combine_chunks()

    def vectors(self) -> Iterator[np.ndarray]:
        """(n, D) float32 batches in row order; all finite and of the first row's dimension."""
        dim = 0
        for name, rows, table in self._parts(["vector"]):
            lists = table["vector"].combine_chunks()
            lengths = np.asarray(lists.value_lengths().fill_null(0))
            dim = dim or int(lengths[0])
            if (wrong := lengths != max(dim, 1)).any():
                at = wrong.argmax()
                raise IndexBuildError(
                    f"{name}, row {rows[at]}: a vector of {lengths[at]} values, expected "
                    f"{dim or 'at least 1'}"
                )
            values = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
            vectors = np.ascontiguousarray(values.reshape(-1, dim))
            if (found := unfit(vectors)) is not None:
                raise IndexBuildError(
                    f"{name}, row {rows[found[0]]}: the vector has {found[1]}; embed again, or "
                    f"drop the row"
                )
            yield vectors

    def sample(self, rows: np.ndarray) -> np.ndarray:
        """The vectors of these sorted row positions."""
        picked, first = [], 0
        for vectors in self.vectors():
            low, high = np.searchsorted(rows, [first, first + len(vectors)])
            picked.append(vectors[rows[low:high] - first])
            first += len(vectors)
        return np.concatenate(picked)


def _check_types(name: str, schema: pa.Schema) -> None:
    """Raises IndexBuildError where a column of a partition is of a type that cannot be read."""

    def is_number(kind: pa.DataType) -> bool:
        return pa.types.is_floating(kind) or pa.types.is_integer(kind)

    def is_id(kind: pa.DataType) -> bool:
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        return is_text or pa.types.is_integer(kind) or pa.types.is_binary(kind)

    def is_vector(kind: pa.DataType) -> bool:
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        return is_list and is_number(kind.value_type)

    for column, fits, expected in (
        ("id", is_id, "texts"),
        ("interest", pa.types.is_integer, "int32"),
        ("weight", is_number, "float32"),
        ("vector", is_vector, "lists of float32"),
    ):
        if column in schema.names and not fits(kind := schema.field(column).type):
            raise IndexBuildError(
                f"{name}: column {column!r} is of type {kind}, expected {expected}; cast it"
            )


def _cast(name: str, table: pa.Table, column: str, kind: pa.DataType) -> pa.ChunkedArray:
    try:
        return table[column].cast(kind)
    except pa.ArrowInvalid as error:
        raise IndexBuildError(f"{name}: column {column!r}: {error}; expected {kind}") from error


def _active(weights: pa.Array | pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.greater(weights, 0).fill_null(False))


def _interests(values: list[int]) -> pa.Array:
    return pa.array(values, pa.int32())
