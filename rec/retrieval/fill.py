"""The parts of building an index that look at rows: fill shards, merge, find true neighbours."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs as pafs

from rec import artifacts
from rec.artifacts import ArtifactError, join
from rec.retrieval import originals, staging, versions
from rec.retrieval.ann import Ann
from rec.retrieval.attributes import attributes_of, kept
from rec.retrieval.effort import Effort
from rec.retrieval.errors import IndexBuildError
from rec.retrieval.exact import ExactTop
from rec.retrieval.originals import VECTORS_FILE
from rec.retrieval.shards import FILES, Shard, shard_name
from rec.retrieval.table import EmbeddingTable, folder_of

NUM_TRUE = 101  # true neighbours kept of a held-out query, itself among them
_COPIED_ROWS = 16_384


@dataclass(frozen=True)
class ShardTask:
    """What a worker needs to fill one shard."""

    embeddings: str
    version: str  # of the embedding table
    out: str  # the shard's folder, local or s3://
    start: int  # first row of the shard among the active rows
    stop: int
    trained: bytes  # the index, trained and empty
    attributes: str | None
    columns: tuple[str, ...]
    queries: np.ndarray  # (Q, D)


@contextmanager
def _staging() -> Iterator[str]:
    """A local folder to write to, removed in the end. Raises ArtifactError where the disk is
    full."""
    place = tempfile.gettempdir()
    try:
        with staging.folder() as folder:
            yield folder
    except OSError as error:
        raise ArtifactError(
            f"{place}: a shard cannot be written there: {error}; free space, or set TMPDIR to "
            f"where there is more"
        ) from error


class Filled(NamedTuple):
    """The true neighbours of the queries: 101 among a shard's rows, then 100 among all."""

    rows: np.ndarray  # (Q, k), -1 where there are fewer
    scores: np.ndarray


class HeldOut(NamedTuple):
    """Queries to tune and report with."""

    queries: np.ndarray  # (Q, D)
    own: np.ndarray  # (Q,) row that the query itself is, -1 where it is none


def fill_shard(task: ShardTask) -> Filled:
    """Fill and write one shard; returns the true neighbours of the queries among its rows."""
    table = EmbeddingTable(folder_of(task.embeddings, task.version), task.start, task.stop)
    keys = table.keys()
    names = table.schema().names
    own = [name for name in task.columns if name in names]
    other = [name for name in task.columns if name not in own]
    attributes = table.extra(own) if own else pa.table({"_": pa.nulls(keys.num_rows)}).select([])
    if other and task.attributes is not None:
        for name, column in zip(
            other, attributes_of(task.attributes, keys["id"], other).columns, strict=True
        ):
            attributes = attributes.append_column(name, column)
    attributes = kept(attributes, task.embeddings)
    ann = Ann.from_bytes(task.trained)
    exact = ExactTop(task.queries, NUM_TRUE)
    with _staging() as staged:
        batches = table.vectors()
        if not ann.keeps_vectors:
            batches = originals.keep(Path(staged, VECTORS_FILE), batches)
        for vectors in batches:
            ann.add(vectors)
            exact.add(vectors)
        Shard.write(Path(staged), ann, keys, attributes)
        versions.upload(staged, task.out)
    return Filled(*exact.finish())


def read_shards(place: str, num_shards: int, local: Path) -> list[Shard]:
    """The shards, mapped; those on S3 are copied to `local` first."""
    files, path = artifacts.filesystem(place)
    folder = Path(path)
    if not isinstance(files, pafs.LocalFileSystem):
        names = [f"{shard_name(number)}/{name}" for number in range(num_shards) for name in FILES]
        artifacts.fetch(place, [n for n in names if artifacts.exists(join(place, n))], local)
        folder = local
    return [Shard.read(folder / shard_name(n), Effort(), True) for n in range(num_shards)]


def merge_shards(place: str, shards: list[Shard], trained: bytes) -> Shard:
    """One shard of all, in place of them."""
    whole = Ann.from_bytes(trained)
    try:
        for shard in shards:
            whole.merge(Ann.from_bytes(shard.ann.to_bytes()))
    except ValueError as error:
        raise IndexBuildError(str(error)) from error
    keys = pa.concat_tables([shard.keys for shard in shards])
    attributes = pa.concat_tables([shard.attributes for shard in shards])
    with _staging() as staged:
        Shard.write(Path(staged), whole, keys, attributes)
        if not whole.keeps_vectors:
            names = [join(shard_name(n), VECTORS_FILE) for n in range(len(shards))]
            parts = (originals.read(join(place, n), _COPIED_ROWS) for n in names)
            written = originals.keep(Path(staged, VECTORS_FILE), chain.from_iterable(parts))
            assert sum(map(len, written)) == keys.num_rows
        for number in range(len(shards)):
            versions.discard(place, shard_name(number))
        versions.upload(staged, join(place, shard_name(0)))
        return Shard.read(Path(staged), Effort(), False)


def checked_keys(table: EmbeddingTable, place: str) -> pa.Table:
    """`id` and `interest` of every row, none of them twice."""
    keys = table.keys()
    if not keys.num_rows:
        raise IndexBuildError(f"{place}: the embedding table is empty; nothing to index")
    ordered = keys.sort_by([("id", "ascending"), ("interest", "ascending")])
    same = pc.and_(
        *(pc.equal(ordered[name][1:], ordered[name][:-1]) for name in ("id", "interest"))
    )
    if (at := pc.index(same, True).as_py()) >= 0:
        item_id = ordered["id"][at].as_py()
        raise IndexBuildError(
            f"{place}: id {item_id!r} is there more than once with interest "
            f"{ordered['interest'][at]} ({', '.join(table.places(item_id))}); number the vectors "
            f"of one item"
        )
    return keys


def counts(table: EmbeddingTable, keys: pa.Table) -> dict[str, int]:
    per_item = pc.max(pc.value_counts(keys["id"]).field("counts")).as_py()
    return {
        "num_rows": keys.num_rows,
        "num_items": pc.count_distinct(keys["id"]).as_py(),
        "num_inactive": table.num_rows() - keys.num_rows,
        "max_vectors_per_item": per_item,
    }
