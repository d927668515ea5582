"""Training rows from Parquet shards: deterministic, exactly resumable, one stream a rank.

Ray feeds what need not resume; a training run must continue with the very row it would have
seen, so its rank reads its own shards here. The order of an epoch is a function of (seed,
epoch, world size) alone, and every step takes one batch, so the position is the step number.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs as pafs

from rec import artifacts

B = TypeVar("B")

_FOOTERS = 16  # read at once


class StreamError(ValueError):
    """Shards are missing, or too few rows for the asked batches. The message says the fix."""


class Unit(NamedTuple):
    """A row group: the smallest piece that is read at once."""

    path: str
    row_group: int
    num_rows: int


class Piece(NamedTuple):
    """Rows start to stop of a unit."""

    unit: Unit
    start: int
    stop: int


@dataclass(frozen=True)
class Split:
    """The row groups of one folder of shards, in the order of names."""

    uri: str
    files: pafs.FileSystem
    units: tuple[Unit, ...]

    @property
    def num_rows(self) -> int:
        return sum(unit.num_rows for unit in self.units)

    @property
    def fingerprint(self) -> str:
        """Changes when shards are added, dropped or cut otherwise."""
        listing = "\n".join(
            f"{u.path.rsplit('/', 1)[-1]} {u.row_group} {u.num_rows}" for u in self.units
        )
        return hashlib.sha256(listing.encode()).hexdigest()[:16]


def open_rows(rows: str, kind: str, split: str) -> Split:
    """The `split` ("train" or "heldout") of the published rows of this kind at `rows`.

    Lists the shards that the manifest names and reads their footers.

    Raises:
        ArtifactError: there are no published rows.
        StreamError: they have no such split.
    """
    manifest = artifacts.read_manifest(rows, kind)
    uri = artifacts.join(rows, manifest.root)
    names = sorted(name for name in manifest.files if fnmatch(name, f"{split}/*.parquet"))
    if not names:
        raise StreamError(f"{uri}/{split}: no Parquet shards are published there")
    files, path = artifacts.filesystem(uri)

    def footer(name: str) -> list[Unit]:
        shard = f"{path}/{name}"
        with files.open_input_file(shard) as stream:
            meta = pq.read_metadata(stream)
        groups = ((i, meta.row_group(i).num_rows) for i in range(meta.num_row_groups))
        return [Unit(shard, i, n) for i, n in groups if n]

    with ThreadPoolExecutor(_FOOTERS) as pool:
        units = tuple(itertools.chain.from_iterable(pool.map(footer, names)))
    return Split(artifacts.join(uri, split), files, units)


def _pieces(units: list[Unit], start: int, stop: int) -> list[Piece]:
    """Rows start to stop of the units laid end to end."""
    pieces, first = [], 0
    for unit in units:
        low, high = max(start - first, 0), min(stop - first, unit.num_rows)
        if low < high:
            pieces.append(Piece(unit, low, high))
        first += unit.num_rows
    return pieces


def _windows(pieces: list[Piece], num_rows: int) -> list[list[Piece]]:
    """Consecutive pieces, joined until a window has at least `num_rows` rows."""
    windows: list[list[Piece]] = [[]]
    held = 0
    for piece in pieces:
        if held >= num_rows:
            windows.append([])
            held = 0
        windows[-1].append(piece)
        held += piece.stop - piece.start
    return windows


class RowStream(Generic[B]):
    """One rank's batches.

    An epoch permutes the row groups of all shards by (seed, epoch) and lays them end to end.
    With N rows and a global batch of G there are N // G steps; rank r reads the r-th of `world`
    equal stretches, so every rank has equally many steps and no row is read twice. The last
    N mod G rows of that epoch's permutation are dropped, others in every epoch. Within a rank,
    rows are permuted in windows of consecutive row groups, at least `shuffle_rows` rows each;
    row groups far larger than that cost memory: write row groups of about a thousand rows.

    With another world size the stretches differ: a run that continues so repeats some rows of
    the current epoch and misses others; from the next epoch on all is exact again.

    Args:
        split: what `open_rows` gave.
        collate: rows to a batch; runs in `threads` threads, so it should release the GIL.
        batch_size: rows a batch of this rank.
        seed, rank, world: name the order and this rank's part of it.
        shuffle_rows: least rows of a shuffle window; two windows are in memory at a time.
        prefetch: batches collated ahead.
    """

    def __init__(
        self,
        split: Split,
        collate: Callable[[pa.Table], B],
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        shuffle_rows: int = 1024,
        threads: int = 1,
        prefetch: int = 4,
    ) -> None:
        self.split, self.collate, self.batch_size = split, collate, batch_size
        self.seed, self.rank, self.world = seed, rank, world
        self.shuffle_rows, self.threads, self.prefetch = shuffle_rows, threads, prefetch
        self.steps_per_epoch = split.num_rows // (batch_size * world)
        if not self.steps_per_epoch:
            raise StreamError(
                f"{split.uri}: {split.num_rows} rows are fewer than one batch of "
                f"{batch_size * world}; lower train.batch_size or give more rows"
            )

    def batches(self, start_step: int = 0) -> Iterator[B]:
        """Batches of steps start_step, start_step + 1, ... without end.

        Nothing before `start_step` is collated; of its epoch only the window that it falls
        into is read.
        """
        return _collated(self._tables(start_step), self.collate, self.threads, self.prefetch)

    def tables(self, start_step: int = 0) -> Iterator[pa.Table]:
        """The rows of `batches`, not collated."""
        return self._tables(start_step)

    def _tables(self, start_step: int) -> Iterator[pa.Table]:
        first, offset = divmod(start_step, self.steps_per_epoch)
        with ThreadPoolExecutor(1) as reader:
            windows = self._epochs(first, offset * self.batch_size)
            held = reader.submit(self._read, *next(windows)).result()
            while True:
                ahead = reader.submit(self._read, *next(windows))
                while held.num_rows >= self.batch_size:
                    yield held.slice(0, self.batch_size)
                    held = held.slice(self.batch_size)
                held = pa.concat_tables([held, ahead.result()])

    def _epochs(self, epoch: int, skip: int) -> Iterator[tuple[list[Piece], list[int], int]]:
        """(window, seed of its permutation, rows of it to skip), for ever, from row `skip`."""
        rows = self.steps_per_epoch * self.batch_size
        for number in itertools.count(epoch):
            order = np.random.default_rng([self.seed, number]).permutation(len(self.split.units))
            units = [self.split.units[i] for i in order]
            pieces = _pieces(units, self.rank * rows, (self.rank + 1) * rows)
            for i, window in enumerate(_windows(pieces, self.shuffle_rows)):
                size = sum(piece.stop - piece.start for piece in window)
                if skip < size:
                    yield window, [self.seed, number, self.rank, i], skip
                skip = max(skip - size, 0)

    def _read(self, window: list[Piece], seed: list[int], skip: int) -> pa.Table:
        table = _read(self.split.files, window)
        return table.take(np.random.default_rng(seed).permutation(table.num_rows)[skip:])


class RowPass(Generic[B]):
    """Every row of a split exactly once over all ranks, in the order of the shards.

    Ranks get stretches that differ by one row at most, cut into equally many batches that
    differ by one row at most, so that losses which gather over ranks stay in step.

    Raises:
        StreamError: there are fewer rows than ranks.
    """

    def __init__(
        self,
        split: Split,
        collate: Callable[[pa.Table], B],
        *,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        threads: int = 1,
        prefetch: int = 4,
    ) -> None:
        if split.num_rows < world:
            raise StreamError(
                f"{split.uri}: {split.num_rows} rows for {world} workers; hold more rows out"
            )
        self.split, self.collate = split, collate
        self.threads, self.prefetch = threads, prefetch
        self.num_rows = split.num_rows
        self._start = split.num_rows * rank // world
        self._stop = split.num_rows * (rank + 1) // world
        fewest, most = split.num_rows // world, -(-split.num_rows // world)
        self.num_batches = min(-(-most // batch_size), fewest)

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[B]:
        return _collated(self.tables(), self.collate, self.threads, self.prefetch)

    def tables(self) -> Iterator[pa.Table]:
        """The rows of the batches, not collated."""
        count = self._stop - self._start
        pieces = iter(_pieces(list(self.split.units), self._start, self._stop))
        held = _read(self.split.files, [next(pieces)])
        for i in range(self.num_batches):
            size = count * (i + 1) // self.num_batches - count * i // self.num_batches
            while held.num_rows < size:
                held = pa.concat_tables([held, _read(self.split.files, [next(pieces)])])
            yield held.slice(0, size)
            held = held.slice(size)


def _read(files: pafs.FileSystem, pieces: list[Piece]) -> pa.Table:
    tables = []
    for unit, start, stop in pieces:
        with files.open_input_file(unit.path) as stream:
            group = pq.ParquetFile(stream, pre_buffer=True).read_row_group(unit.row_group)
        tables.append(group.slice(start, stop - start))
    return pa.concat_tables(tables)


def _collated(
    tables: Iterator[pa.Table], collate: Callable[[pa.Table], B], threads: int, prefetch: int
) -> Iterator[B]:
    """collate() of every table, in order, at most `prefetch` ahead of the consumer."""
    with ThreadPoolExecutor(threads, thread_name_prefix="collate") as pool:
        ahead: deque[Future[B]] = deque()
        try:
            for table in tables:
                ahead.append(pool.submit(collate, table))
                if len(ahead) > prefetch:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
