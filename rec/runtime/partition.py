"""One file of content rows to one partition of an embedding table, and what became of its rows.

Reading and decoding run in a thread beside the model. Rows of a row group are sorted by how much
they hold, so that a batch pads little, and written in the order they came.
"""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rec import artifacts
from rec.batch import ContentBatch
from rec.config import Config, one_line
from rec.data.ledger import MAX_PROBLEMS, StageCounts
from rec.data.parquet import DAMAGE, raise_machine, read_row_group
from rec.features.content import ContentCollator, ContentInputs
from rec.models.content.encoder import ContentEncoder
from rec.schema import EMBEDDINGS

SCHEMA = pa.schema(  # what a content encoder reads of a row
    [
        pa.field("item_id", pa.string()),
        pa.field("token_ids", pa.list_(pa.int32())),
        pa.field("frames", pa.list_(pa.large_binary())),
        pa.field("log_mel", pa.large_binary()),
    ]
)
_REPORT = b"raycall.report"  # key in the part's Parquet metadata
_AHEAD = 2  # batches decoded ahead of the model
T = TypeVar("T")


class EmbedError(ValueError):
    """Rows cannot be embedded. The message names file, column or row, and the fix."""


class Partition(Config):
    """A file of rows and the part that it becomes."""

    index: int
    folder: str
    name: str  # below folder
    entry: artifacts.FileEntry | None = None  # as published; None for a plain folder

    @property
    def part_name(self) -> str:
        return f"part-{self.index:05d}.parquet"


class PartReport(Config):
    """What became of rows. Sums do not depend on the order in which partitions finish."""

    counts: StageCounts = StageCounts()
    failed: tuple[str, ...] = ()  # rows left out: the first of them by name
    num_problems: int = 0  # frames left out of rows that were embedded without them
    problems: tuple[str, ...] = ()

    def __add__(self, other: PartReport) -> PartReport:
        return PartReport(
            counts=self.counts + other.counts,
            failed=tuple(sorted(self.failed + other.failed)[:MAX_PROBLEMS]),
            num_problems=self.num_problems + other.num_problems,
            problems=tuple(sorted(self.problems + other.problems)[:MAX_PROBLEMS]),
        )


@dataclass(frozen=True, eq=False)
class _Group:
    """A row group in flight."""

    first_row: int
    ids: list[str | None]


class _Prepared(NamedTuple):
    """A batch on its way to the model."""

    group: _Group
    rows: np.ndarray  # positions of the batch's rows within the group
    batch: ContentBatch | None  # None where every row failed
    failed: list[tuple[int, str, str]]  # position, reason, detail
    problems: Counter[str]  # frames left out, by reason


class _Notes:
    """Rows left out, by reason, with messages that name the first of them; frames left out."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.counts: Counter[str] = Counter()
        self.messages: list[str] = []
        self.problems: Counter[str] = Counter()

    def failed(self, group: _Group, position: int, reason: str, detail: str = "") -> None:
        self.counts[reason] += 1
        if len(self.messages) < MAX_PROBLEMS:
            self.messages.append(
                f"{self._name} row {group.first_row + position}, item {group.ids[position]!r}: "
                f"{detail or reason}"
            )


def embed_partition(
    encoder: ContentEncoder, partition: Partition, folder: str, batch_size: int
) -> PartReport:
    """Embed one file of rows and write its part below `folder`, whole or not at all.

    A row without an id, a row that cannot be collated and a row whose vector is not finite are
    left out, counted by reason and listed.

    Raises:
        EmbedError, ParquetError: columns are missing, it is no Parquet file, or a damaged one.
        ArtifactError: the file is not as published.
    """
    _verify(partition)
    path = artifacts.join(partition.folder, partition.name)
    sink = pa.BufferOutputStream()
    notes = _Notes(partition.name)
    with (
        _opened(path) as source,
        # float vectors do not compress
        pq.ParquetWriter(sink, EMBEDDINGS, compression="none", use_dictionary=False) as writer,
    ):
        missing = [name for name in SCHEMA.names if name not in source.schema_arrow.names]
        if missing:
            raise EmbedError(
                f"{path}: columns {missing} are missing; content rows have {SCHEMA.names}, found "
                f"{source.schema_arrow.names}; make them with the ingest job"
            )
        rows_out = 0
        vocab_size = len(encoder.model.text.word_embeddings)
        prepared = _ahead(_prepared(encoder.inputs, vocab_size, source, path, batch_size), _AHEAD)
        for table in _embedded(encoder, prepared, notes):
            writer.write_table(table)
            rows_out += table.num_rows
        report = PartReport(
            counts=StageCounts(
                rows_in=source.metadata.num_rows,
                rows_out=rows_out,
                dropped=dict(sorted(notes.counts.items())),
            ),
            failed=tuple(notes.messages),
            num_problems=sum(notes.problems.values()),
            problems=tuple(
                f"{partition.name}: {count} x {reason}"
                for reason, count in sorted(notes.problems.items())
            ),
        )
        writer.add_key_value_metadata({_REPORT.decode(): report.to_json()})
    place = artifacts.join(folder, partition.part_name)
    artifacts.write_atomic(place, sink.getvalue().to_pybytes())
    return report


def read_report(part: str) -> PartReport:
    """The report that was stored in a part when it was written."""
    files, path = artifacts.filesystem(part)
    with files.open_input_file(path) as stream:
        return PartReport.from_json(pq.read_metadata(stream).metadata[_REPORT].decode())


def _verify(partition: Partition) -> None:
    if partition.entry is None:
        return
    folder, root = partition.folder.rsplit("/", 1)
    files = {partition.name: partition.entry}
    # only root and files count here, and a folder of anyone may be called anything
    listed = artifacts.Manifest.model_construct(kind="", version="", root=root, files=files)
    artifacts.verify(folder, listed)


@contextmanager
def _opened(uri: str) -> Iterator[pq.ParquetFile]:
    files, path = artifacts.filesystem(uri)
    with files.open_input_file(path) as stream:
        try:
            source = pq.ParquetFile(stream, pre_buffer=True)  # buffers a row group at a time
        except DAMAGE as error:
            raise_machine(error)
            raise EmbedError(
                f"{uri}: not a Parquet file ({one_line(error)}); make it again or take it away"
            ) from error
        with source:
            yield source


def _embedded(
    encoder: ContentEncoder,
    prepared: Iterator[_Prepared],
    notes: _Notes,
) -> Iterator[pa.Table]:
    """An embedding table for each row group, rows in the order of the file."""
    for group, batches in itertools.groupby(prepared, key=lambda item: item.group):
        vectors = np.zeros((len(group.ids), encoder.dim), np.float32)
        kept = np.zeros(len(group.ids), bool)
        for _, rows, batch, failed, problems in batches:
            notes.problems.update(problems)
            for position, reason, detail in failed:
                notes.failed(group, position, reason, detail)
            if batch is None:
                continue
            found = encoder.encode(batch)
            finite = np.isfinite(found).all(axis=1)
            vectors[rows], kept[rows] = found, finite
            for position in rows[~finite]:
                notes.failed(group, int(position), "vector not finite")
        yield _table(group.ids, vectors, kept)


def _table(ids: list[str | None], vectors: np.ndarray, kept: np.ndarray) -> pa.Table:
    num_rows, dim = int(kept.sum()), vectors.shape[1]
    offsets = pa.array(np.arange(num_rows + 1, dtype=np.int32) * dim)
    columns = [
        pa.array([ids[position] for position in np.flatnonzero(kept)], pa.string()),
        pa.array(np.zeros(num_rows, np.int32)),
        pa.array(np.ones(num_rows, np.float32)),
        pa.ListArray.from_arrays(offsets, pa.array(vectors[kept].ravel())),
    ]
    return pa.Table.from_arrays(columns, schema=EMBEDDINGS)


def _prepared(
    inputs: ContentInputs, vocab_size: int, source: pq.ParquetFile, path: str, batch_size: int
) -> Iterator[_Prepared]:
    """Batches of every row group, rows of about equal size together."""
    first_row = 0
    for number in range(source.num_row_groups):
        table = read_row_group(source, number, SCHEMA.names, path).select(SCHEMA.names)
        try:
            table = table.cast(SCHEMA)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise EmbedError(
                f"{path}: content rows have the types {SCHEMA.to_string()}; found "
                f"{table.schema.to_string()}: {error}"
            ) from error
        group = _Group(first_row, table["item_id"].to_pylist())
        first_row += table.num_rows
        order = np.lexsort(
            [
                pc.list_value_length(table["token_ids"]).fill_null(0).to_numpy(),
                pc.binary_length(table["log_mel"]).fill_null(0).to_numpy(),
                pc.list_value_length(table["frames"]).fill_null(0).to_numpy(),
            ]
        )
        for start in range(0, table.num_rows, batch_size):
            yield _prepare(inputs, vocab_size, group, table, order[start : start + batch_size])


def _prepare(
    inputs: ContentInputs, vocab_size: int, group: _Group, table: pa.Table, rows: np.ndarray
) -> _Prepared:
    """Collate these rows; where that fails, find the rows it fails for and leave them out."""
    failed = [(int(row), "no item_id", "") for row in rows if not group.ids[row]]
    rows = np.array([row for row in rows if group.ids[row]], np.int64)
    try:
        collator = ContentCollator(inputs)
        batch = _collate(collator, vocab_size, table.take(rows)) if len(rows) else None
    except ValueError:  # of some row; the rows are taken one by one to learn which
        good = []
        for row in rows:
            try:
                _collate(ContentCollator(inputs), vocab_size, table.take([row]))
                good.append(row)
            except ValueError as error:
                failed.append((int(row), "cannot be collated", str(error)))
        rows = np.array(good, np.int64)
        collator = ContentCollator(inputs)
        batch = collator(table.take(rows)) if good else None
    return _Prepared(group, rows, batch, failed, collator.problems)


def _collate(collator: ContentCollator, vocab_size: int, rows: pa.Table) -> ContentBatch:
    batch = collator(rows)
    strange = batch.token_ids[(batch.token_ids < 0) | (batch.token_ids >= vocab_size)]
    if len(strange):
        raise ValueError(f"token id {int(strange[0])}: the encoder has ids 0 to {vocab_size - 1}")
    return batch


def _ahead(items: Iterator[T], depth: int) -> Iterator[T]:
    """The items, made in a thread up to `depth` ahead of the consumer."""
    end = object()
    with ThreadPoolExecutor(1) as pool:
        coming: deque[Future[T | object]] = deque(
            pool.submit(next, items, end) for _ in range(depth)
        )
        while (item := coming.popleft().result()) is not end:
            coming.append(pool.submit(next, items, end))
            yield cast(T, item)
