"""What bench.retrieval works on: vectors in clusters, their true neighbours, embedding tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rec import artifacts
from rec.retrieval.exact import ExactTop
from rec.retrieval.threads import omp_threads
from rec.schema import EMBEDDINGS

K = 10
_WRITE_ROWS = 50_000


def clustered(num: int, dim: int, seed: int) -> np.ndarray:
    """(num, dim) float32 unit vectors around a thousand centres that all seeds share, with spread
    mostly along sixteen directions of each centre's own: real embeddings have few."""
    shared = np.random.default_rng(0)
    centres = shared.standard_normal((1000, dim)).astype(np.float32)
    directions = shared.standard_normal((1000, 16, dim)).astype(np.float32) / 8
    rng = np.random.default_rng([1, seed])
    vectors = np.empty((num, dim), np.float32)
    for start in range(0, num, _WRITE_ROWS):
        stop = min(start + _WRITE_ROWS, num)
        own = rng.integers(0, 1000, stop - start)
        rows = centres[own] + 0.2 * rng.standard_normal((stop - start, dim), np.float32)
        spread = rng.standard_normal((stop - start, 16), np.float32)
        for direction in range(16):
            rows += spread[:, direction, None] * directions[own, direction]
        vectors[start:stop] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return vectors


def write_table(vectors: np.ndarray, uri: str, group: np.ndarray | None = None) -> str:
    """Publish vectors as an embedding table, with `group` and a uniform `u` as attributes."""
    path = Path(uri, "rows", "part-0.parquet")
    path.parent.mkdir(parents=True)
    num, dim = vectors.shape
    uniform = np.random.default_rng(2).random(num)
    extra = [pa.field("u", pa.float64()), pa.field("group", pa.int64())]
    with pq.ParquetWriter(path, pa.schema([*EMBEDDINGS, *extra])) as writer:
        for start in range(0, num, _WRITE_ROWS):
            rows = np.arange(start, min(start + _WRITE_ROWS, num))
            offsets = pa.array(np.arange(len(rows) + 1, dtype=np.int32) * dim)
            columns = [
                pa.array([f"item-{row}" for row in rows]),
                pa.array(np.zeros(len(rows), np.int32)),
                pa.array(np.ones(len(rows), np.float32)),
                pa.ListArray.from_arrays(offsets, pa.array(vectors[rows].ravel())),
                pa.array(uniform[rows]),
                pa.array(np.zeros(len(rows), np.int64) if group is None else group[rows]),
            ]
            writer.write_table(pa.table(columns, schema=writer.schema))
    artifacts.seal(uri, "rows", "embedding-table")
    return uri


def exact(vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """(Q, 10) rows of the nearest."""
    top = ExactTop(queries, K)
    with omp_threads(None):
        top.add(vectors)
    return top.finish()[0]
