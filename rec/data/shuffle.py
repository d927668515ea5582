"""A hash shuffle through files: rows to buckets, in memory that depends on the bucket's size.

A writing task keeps one Arrow IPC file, in which record batch `round * num_buckets + b` holds the
rows of bucket b, so a reading task takes its bucket out of every file without reading the rest.
Nothing passes through the object store, and a finished file outlives the run that wrote it. The
order is that of the writing tasks and, within one, of its rows.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import fs as pafs

from rec.artifacts import filesystem, move_synced

_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")
_ROUND_ROWS, _ROUND_BYTES = 1 << 19, 64 << 20  # that are held before they are written
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class ShuffleError(ValueError):
    """A bucket file is not one of this shuffle. Says which, and what to do."""


def mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Every bit of the result depends on every bit of the value (the finaliser of splitmix64)."""
    with np.errstate(over="ignore"):
        x = values + _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hash_strings(column: pa.ChunkedArray | pa.Array, salt: int = 0) -> NDArray[np.uint64]:
    """(n,) a hash of every string, the same on every machine and in every run; null as "".

    Distinct strings are hashed once, and that without a loop over them: bytes times a random
    number of their position, summed (multilinear hashing, Carter and Wegman 1979), then mixed
    with the length.
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    encoded = column.fill_null("").dictionary_encode()
    return hash_distinct(encoded.dictionary, salt)[encoded.indices.to_numpy()]


def hash_distinct(strings: pa.Array, salt: int = 0) -> NDArray[np.uint64]:
    """`hash_strings` of values that are distinct already and none of them null."""
    texts = strings.cast(pa.large_binary())
    if not len(texts):
        return np.zeros(0, np.uint64)
    offsets = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset :][: len(texts) + 1]
    sizes = np.diff(offsets)
    data = texts.buffers()[2]
    letters = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]] if data else np.zeros(0, "u1")
    place = np.arange(len(letters)) - np.repeat(offsets[:-1] - offsets[0], sizes)
    longest = int(sizes.max())
    with np.errstate(over="ignore"):
        keys = mix(np.arange(longest, dtype=np.uint64) + (np.uint64(salt) << np.uint64(32)))
        ends = np.cumsum((letters.astype(np.uint64) + np.uint64(1)) * keys[place])
        sums = np.concatenate([np.zeros(1, np.uint64), ends])[offsets - offsets[0]]
        return mix((sums[1:] - sums[:-1]) ^ (sizes.astype(np.uint64) * _GOLDEN))


def bucket_of(hashed: NDArray[np.uint64], num_buckets: int) -> NDArray[np.uint16]:
    """(n,) bucket of each hash, all buckets equally likely."""
    return ((hashed >> np.uint64(32)) * np.uint64(num_buckets) >> np.uint64(32)).astype(np.uint16)


class BucketWriter:
    """One writing task's file; it appears when it is complete.

    Args:
        uri: of the file, local or s3://.
        schema: of the rows.
        num_buckets: 1 to 65,536, the same for all files that are read together.
    """

    def __init__(self, uri: str, schema: pa.Schema, num_buckets: int) -> None:
        self._files, self._path = filesystem(uri)
        self._files.create_dir(os.path.dirname(self._path), recursive=True)
        self._local = isinstance(self._files, pafs.LocalFileSystem)
        self._aside = f"{self._path}.{uuid.uuid4().hex}.tmp" if self._local else self._path
        self._schema, self.num_buckets = schema, num_buckets
        self._stream = self._files.open_output_stream(self._aside)
        self._writer = pa.ipc.new_file(self._stream, schema, options=_OPTIONS)
        self._held: list[tuple[pa.Table, NDArray[np.uint16]]] = []
        self._held_rows = self._held_bytes = 0

    def write(self, table: pa.Table, bucket: NDArray[np.uint16]) -> None:
        """Add rows, each to its bucket, in their order.

        Written in rounds of one batch a bucket, so that many small tables make no more batches
        than a large one.
        """
        if not table.num_rows:
            return
        self._held.append((table, bucket))
        self._held_rows += table.num_rows
        self._held_bytes += table.nbytes
        if self._held_rows >= _ROUND_ROWS or self._held_bytes >= _ROUND_BYTES:
            self._write_round()

    def _write_round(self) -> None:
        if not self._held_rows:
            return
        bucket = np.concatenate([bucket for _, bucket in self._held])
        table = pa.concat_tables([table.cast(self._schema) for table, _ in self._held])
        self._held, self._held_rows, self._held_bytes = [], 0, 0
        order = np.argsort(bucket, kind="stable")  # a radix sort, for 16 bits
        (rows,) = table.combine_chunks().to_batches()
        rows = rows.take(pa.array(order))
        # of an empty slice of strings the offsets of all rows would be written
        empty = pa.RecordBatch.from_pylist([], schema=self._schema)
        start = 0
        for count in np.bincount(bucket, minlength=self.num_buckets).tolist():
            self._writer.write_batch(rows.slice(start, count) if count else empty)
            start += count

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._write_round()
        self._writer.close()
        self._stream.close()
        if kind is not None:
            self._files.delete_file(self._aside)
        elif self._local:
            move_synced(self._aside, self._path)


def stream_bucket(uris: Sequence[str], bucket: int, num_buckets: int) -> Iterator[pa.Table]:
    """The rows of one bucket, a round of one file at a time, in the order of `uris`.

    Raises:
        ShuffleError: a file was written for another number of buckets.
    """
    for uri in uris:
        files, path = filesystem(uri)
        with files.open_input_file(path) as stream:
            reader = pa.ipc.open_file(stream)
            if reader.num_record_batches % num_buckets:
                raise ShuffleError(
                    f"{uri}: {reader.num_record_batches} batches, expected a multiple of "
                    f"{num_buckets}; delete the work- folder beside it and run again"
                )
            for index in range(bucket, reader.num_record_batches, num_buckets):
                batch = reader.get_batch(index)
                if batch.num_rows:
                    yield pa.Table.from_batches([batch])


def read_bucket(uris: Sequence[str], bucket: int, num_buckets: int, schema: pa.Schema) -> pa.Table:
    """All rows of one bucket; the schema is for a bucket without any."""
    tables = list(stream_bucket(uris, bucket, num_buckets))
    return pa.concat_tables(tables) if tables else schema.empty_table()


def codes(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], pa.Array]:
    """(n,) the rank of each string among the distinct ones, and those in ascending order."""
    encoded = column.combine_chunks().dictionary_encode()
    order = pc.sort_indices(encoded.dictionary).to_numpy()
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank[encoded.indices.to_numpy()], encoded.dictionary.take(pa.array(order))


def stable_order(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) positions sorted by `first`, then `second`, then place.

    Both are held to their ranges: what fits 64 bits together is sorted as one number, of few bits
    in linear time. Rows of a log are mostly in order of time, which then need not be sorted by.
    """
    if not len(first):
        return np.zeros(0, np.int64)
    low, low_two = int(first.min()), int(second.min())
    bits = (int(first.max()) - low).bit_length()
    more = 0 if (second[1:] >= second[:-1]).all() else (int(second.max()) - low_two).bit_length()
    if bits + more > 64:
        return np.lexsort((second, first))
    key = (first - low).astype(np.uint64)
    if more:
        key = key << np.uint64(more) | (second - low_two).astype(np.uint64)
    if bits + more > 48:
        return np.argsort(key, kind="stable")
    order = np.argsort(key.astype(np.uint16), kind="stable")  # a radix sort, for 16 bits
    for shift in range(16, bits + more, 16):
        digits = (key[order] >> np.uint64(shift)).astype(np.uint16)
        order = order[np.argsort(digits, kind="stable")]
    return order


def starts(*keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where runs of equal keys begin in sorted rows, and at the end the number of rows."""
    rows = len(keys[0])
    if not rows:
        return np.zeros(1, np.int64)
    changed = np.zeros(rows, bool)
    changed[0] = True
    for key in keys:
        changed[1:] |= key[1:] != key[:-1]
    return np.append(np.flatnonzero(changed), rows)
