"""Vectors in clusters, and embedding tables of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rec import artifacts
from rec.retrieval.build import build_index
from rec.retrieval.index import Index
from rec.schema import EMBEDDINGS

DIM = 16


def clustered(num_items: int, dim: int = DIM, seed: int = 0) -> np.ndarray:
    """(num_items, dim) float32 unit vectors around fifty centres."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((50, dim))
    vectors = centres[rng.integers(0, 50, num_items)] + 0.5 * rng.standard_normal((num_items, dim))
    return unit(vectors)


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def embeddings(
    uri: Path,
    vectors: np.ndarray,
    ids: Sequence[str] | None = None,
    weights: np.ndarray | None = None,
    interests: Sequence[int] | None = None,
    columns: Mapping[str, Any] | None = None,
    num_parts: int = 3,
) -> str:
    """Publish vectors as an embedding table of several partitions."""
    count = len(vectors)
    ids = ids if ids is not None else [f"item-{i}" for i in range(count)]
    weights = np.ones(count, "f4") if weights is None else weights
    interests = [0] * count if interests is None else interests
    table = pa.Table.from_arrays(
        [
            pa.array(ids, pa.string()),
            pa.array(interests, pa.int32()),
            pa.array(weights, pa.float32()),
            pa.array([list(vector) for vector in vectors], pa.list_(pa.float32())),
        ],
        schema=EMBEDDINGS,
    )
    for name, values in (columns or {}).items():
        table = table.append_column(name, values if isinstance(values, pa.Array) else [values])
    (uri / "parts").mkdir(parents=True)
    for part, rows in enumerate(np.array_split(np.arange(count), num_parts)):
        pq.write_table(table.take(rows), uri / "parts" / f"part-{part:05d}.parquet")
    artifacts.seal(
        str(uri), "parts", "embedding-table", lineage={"encoder": "enc-1", "rows": "rows-1"}
    )
    return str(uri)


def brute_force(vectors: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """(Q, k) rows of the largest inner products."""
    return np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :k]


def index_of(folder: Path, vectors: np.ndarray, **table: Any) -> Index:
    """A flat index of these vectors; `table` as for `embeddings`."""
    build_index(embeddings(folder / "e", vectors, **table), str(folder / "i"))
    return Index.open(str(folder / "i"))
