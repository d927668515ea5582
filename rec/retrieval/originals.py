"""The vectors of a shard as they were given, beside an index that holds only codes of them.

Searching never reads them: they are what a compaction builds from and measures its recall against.
Encoding what was decoded from codes would lose a little with every compaction, and hide it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rec import artifacts
from rec.artifacts import Manifest, join

VECTORS_FILE = "vectors.parquet"
_SCHEMA = pa.schema([("vector", pa.list_(pa.float32()))])


def keep(path: Path, batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Pass (n, D) batches on, each once it is written to `path`."""
    # random mantissas neither repeat nor compress
    with pq.ParquetWriter(path, _SCHEMA, compression="none", use_dictionary=False) as writer:
        for vectors in batches:
            writer.write_table(pa.table([as_lists(vectors)], schema=_SCHEMA))
            yield vectors


def as_lists(vectors: np.ndarray) -> pa.ListArray:
    """(n, D) float32 as a column of lists."""
    count, dim = vectors.shape
    flat = pa.array(np.ascontiguousarray(vectors).ravel(), pa.float32())
    return pa.ListArray.from_arrays(pa.array(np.arange(count + 1, dtype=np.int32) * dim), flat)


def read(uri: str, batch_rows: int) -> Iterator[np.ndarray]:
    """(n, D) batches, n at most `batch_rows`, of the file at `uri`."""
    files, path = artifacts.filesystem(uri)
    with files.open_input_file(path) as source, pq.ParquetFile(source) as table:
        for batch in table.iter_batches(batch_rows):
            values = batch["vector"].flatten().to_numpy(zero_copy_only=False)
            yield values.reshape(batch.num_rows, -1)


def read_published(
    uri: str, manifest: Manifest, name: str, batch_rows: int
) -> Iterator[np.ndarray]:
    """As `read`, of the file `name` of a version.

    Raises:
        ArtifactError: it is missing or altered.
    """
    artifacts.verify(uri, manifest.model_copy(update={"files": {name: manifest.files[name]}}))
    return read(join(uri, manifest.root, name), batch_rows)
