"""Build an index artifact from an embedding table: stream, train, add, measure, publish.

Memory holds the index, the ids and a training sample; the table streams through in batches.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from rec import artifacts
from rec.config import Config
from rec.retrieval.ann import Ann, ExactTop, omp_threads
from rec.schema import EMBEDDINGS

KIND = "index"
INDEX_FILE, IDS_FILE = "index.faiss", "ids.parquet"
METRIC = "inner_product"  # cosine, for the unit vectors of our encoders
FLAT_UP_TO = 20_000  # below this brute force answers within a millisecond and needs no tuning
TRAIN_PER_LIST = 64  # FAISS asks for at least 39 points a centroid
_BATCH_ROWS = 16_384


class IndexBuildError(ValueError):
    """The embedding table cannot be indexed. The message names partition, row and reason."""


class IndexConfig(Config):
    """How to build. Defaults: exact up to 20,000 items, inverted lists tuned to a recall beyond."""

    factory: str = "auto"  # or a FAISS factory string: "Flat" (exact), "IVF1024,SQ8", "HNSW32"
    recall_target: float = Field(default=0.95, gt=0, le=1)  # recall@10 that nprobe is tuned to
    num_queries: int = Field(default=500, ge=1)  # held-out rows to tune with, as many to report
    seed: int = 0


class _Part(NamedTuple):
    name: str
    rows: np.ndarray  # row numbers within the partition
    table: pa.Table


class _Table:
    """The active rows (weight above 0) of an embedding table's partitions, in name order."""

    def __init__(self, folder: Path) -> None:
        self._files = sorted(folder.rglob("*.parquet"))
        self._folder = folder

    def _parts(self, columns: list[str]) -> Iterator[_Part]:
        for path in self._files:
            name, first = path.relative_to(self._folder).as_posix(), 0
            with pq.ParquetFile(path) as file:
                missing = set(EMBEDDINGS.names) - set(file.schema_arrow.names)
                if missing:
                    raise IndexBuildError(
                        f"{name}: columns {sorted(missing)} are missing; an embedding table has "
                        f"{EMBEDDINGS.names}, found {file.schema_arrow.names}"
                    )
                for batch in file.iter_batches(_BATCH_ROWS, columns=columns):
                    table = pa.Table.from_batches([batch])
                    active = np.asarray(pc.greater(table["weight"], 0).fill_null(False))
                    rows = first + np.flatnonzero(active)
                    first += table.num_rows
                    yield _Part(name, rows, table.filter(pa.array(active)))

    def ids(self) -> pa.LargeStringArray:
        """Every id, in row order."""
        chunks = []
        for name, rows, table in self._parts(["id", "weight"]):
            column = table["id"]
            if column.null_count:
                row = rows[np.asarray(pc.is_null(column)).argmax()]
                raise IndexBuildError(f"{name}, row {row}: the id is empty")
            chunks += column.cast(pa.large_string()).chunks
        return pa.concat_arrays(chunks) if chunks else pa.array([], pa.large_string())

    def places(self, item_id: str) -> list[str]:
        """Partition and row of every occurrence of an id."""
        return [
            f"{name} row {row}"
            for name, rows, table in self._parts(["id", "weight"])
            for row in rows[np.asarray(pc.equal(table["id"], item_id))]
        ]

    def vectors(self) -> Iterator[np.ndarray]:
        """(n, D) float32 batches in row order; all finite and of the first row's dimension."""
        dim = 0
        for name, rows, table in self._parts(["weight", "vector"]):
            if not len(rows):
                continue
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
            if not (finite := np.isfinite(vectors).all(axis=1)).all():
                raise IndexBuildError(
                    f"{name}, row {rows[(~finite).argmax()]}: the vector has NaN or infinity; "
                    f"embed again, or drop the row"
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


def choose_factory(num_items: int, config: IndexConfig) -> str:
    """The FAISS factory string for this many items.

    Flat up to 20,000; beyond that about 4 sqrt(N) inverted lists (a power of two that leaves 39
    training points a list), 8-bit codes, or full vectors where the target is .99 or more.
    """
    if config.factory != "auto":
        return config.factory
    if num_items <= FLAT_UP_TO:
        return "Flat"
    lists = 2 ** round(math.log2(4 * math.sqrt(num_items)))
    while 39 * lists > num_items - 2 * config.num_queries and lists > 1:
        lists //= 2
    return f"IVF{lists},{'Flat' if config.recall_target >= 0.99 else 'SQ8'}"


def build_index(
    embeddings_uri: str, out_uri: str, config: IndexConfig | None = None
) -> artifacts.Manifest:
    """Index the embedding table at `embeddings_uri` and publish it at `out_uri`.

    One vector an id; rows of weight 0 (inactive interests) are left out and counted. Recall is
    measured against brute force on rows that the quantiser was not trained on, each without its
    own hit; nprobe is tuned on one half of them and the recorded recall comes from the other.
    Equal scores count by id, so with many identical vectors the figure is a lower bound.

    Returns:
        The manifest; `metrics` has recall@10, recall@100 and the curve nprobe -> recall@10.

    Raises:
        IndexBuildError: the table is empty, an id repeats, a vector is not finite or of another
            dimension, or FAISS refuses the factory string.
        ArtifactError: there is no intact embedding table at `embeddings_uri`.
    """
    config = config or IndexConfig()
    started = time.monotonic()
    source, folder = artifacts.open_artifact(embeddings_uri, "embedding-table")
    table = _Table(folder)
    ids, by_id = _sorted_ids(table, embeddings_uri)
    factory = choose_factory(len(ids), config)
    with omp_threads(None), tempfile.TemporaryDirectory() as staged:
        try:
            ann, metrics = _fill(table, len(ids), factory, config)
        except RuntimeError as error:  # FAISS, for instance more lists than training points
            raise IndexBuildError(f"{embeddings_uri}: FAISS refuses {factory}: {error}") from error
        ann.write(f"{staged}/{INDEX_FILE}")
        pq.write_table(pa.table({"id": ids, "by_id": by_id}), f"{staged}/{IDS_FILE}")
        num_rows = sum(pq.read_metadata(p).num_rows for p in folder.rglob("*.parquet"))
        return artifacts.publish(
            staged,
            out_uri,
            KIND,
            lineage={**source.lineage, "embedding-table": source.version},
            config={
                **config.model_dump(),
                "factory": factory,
                "metric": METRIC,
                "dimension": ann.dim,
                "num_items": ann.size,
                "num_inactive": num_rows - ann.size,
                "nprobe": ann.nprobe,
            },
            metrics={**metrics, "seconds": round(time.monotonic() - started, 3)},
        )


def _sorted_ids(table: _Table, place: str) -> tuple[pa.LargeStringArray, pa.Array]:
    """All ids in row order, and the rows in the order of their ids, for binary search."""
    ids = table.ids()
    if not len(ids):
        raise IndexBuildError(f"{place}: the embedding table is empty; nothing to index")
    by_id = pc.sort_indices(ids)
    ordered = ids.take(by_id)
    repeats = pc.index(pc.equal(ordered[1:], ordered[:-1]), True).as_py()
    if repeats >= 0:
        item_id = ordered[repeats].as_py()
        raise IndexBuildError(
            f"{place}: id {item_id!r} is there more than once ({', '.join(table.places(item_id))});"
            f" an index takes one vector an id"
        )
    return ids, by_id.cast(pa.int64())


def _fill(
    table: _Table, num_items: int, factory: str, config: IndexConfig
) -> tuple[Ann, dict[str, Any]]:
    """A trained, filled and tuned index, and what was measured of it."""
    rng = np.random.default_rng(config.seed)
    order = rng.permutation(num_items)
    held_out = np.sort(order[: 2 * config.num_queries])
    queries = table.sample(held_out)
    try:
        ann = Ann.make(factory, queries.shape[1])
    except ValueError as error:
        raise IndexBuildError(str(error)) from error
    if not ann.is_trained:
        wanted = max(TRAIN_PER_LIST * ann.num_lists, 20_000)
        ann.train(table.sample(np.sort(order[2 * config.num_queries :][:wanted])))
    exact = ExactTop(queries, min(101, num_items))
    for vectors in table.vectors():
        ann.add(vectors)
        exact.add(vectors)
    truth = _without_self(exact.finish(), held_out)
    half = rng.permutation(len(held_out))
    tune, report = half[::2], half[1::2] if len(half) > 1 else half
    curve = _tune(ann, queries[tune], held_out[tune], truth[tune], config.recall_target)
    rows, _ = ann.search(queries[report], min(101, num_items))
    found = _without_self(rows, held_out[report])
    metrics: dict[str, Any] = {
        f"recall@{k}": recall(found[:, :k], truth[report, :k]) for k in (10, 100)
    }
    metrics |= {"num_queries": len(report), "recall_target": config.recall_target}
    return ann, metrics | {"recall_by_nprobe": curve}


def _tune(
    ann: Ann, queries: np.ndarray, own: np.ndarray, truth: np.ndarray, target: float
) -> list[dict[str, float]]:
    """Set the least nprobe (a power of two) whose recall@10 reaches the target, else the best."""
    curve: list[dict[str, float]] = []
    nprobe = 1
    while nprobe <= ann.num_lists:
        ann.nprobe = nprobe
        found = _without_self(ann.search(queries, 11)[0], own)
        curve.append({"nprobe": nprobe, "recall@10": recall(found[:, :10], truth[:, :10])})
        if curve[-1]["recall@10"] >= target:
            return curve
        nprobe *= 2
    if curve:
        ann.nprobe = int(max(curve, key=lambda point: point["recall@10"])["nprobe"])
    return curve


def _without_self(rows: np.ndarray, own: np.ndarray) -> np.ndarray:
    """(Q, k - 1): each query's hits but itself; where it did not find itself, but the last."""
    is_own = rows == own[:, None]
    is_own[~is_own.any(axis=1), -1] = True
    return rows[~is_own].reshape(len(rows), rows.shape[1] - 1)


def recall(found: np.ndarray, truth: np.ndarray) -> float:
    """Mean share of each query's true rows that were found; 1 where there are none to find.

    Args:
        found: (Q, k) rows, -1 where nothing was found.
        truth: (Q, k) rows, -1 where there are fewer true ones than k.
    """
    there = truth >= 0
    if not there.any():
        return 1.0
    hits = ((truth[:, :, None] == found[:, None, :]).any(axis=2) & there).sum(axis=1)
    return float((hits / np.maximum(there.sum(axis=1), 1)).mean())
