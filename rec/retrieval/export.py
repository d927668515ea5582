"""What is live in an index, as an embedding table that a compaction builds from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rec import artifacts
from rec.artifacts import Manifest
from rec.retrieval import originals
from rec.retrieval.errors import IndexBuildError, remedy
from rec.retrieval.index import Index
from rec.retrieval.shards import shard_name
from rec.schema import EMBEDDINGS

_EXPORT_ROWS = 16_384


def export(index: Index, uri: str, folder: str) -> Manifest:
    """Write what is live as an embedding table, attributes as further columns.

    Args:
        index: of the version published at `uri`, with changes on it.
        uri: where the vectors as they were given are read, where the index holds codes alone.
        folder: local, to write to.

    Raises:
        ArtifactError: the vectors are missing or altered, or the table cannot be written.
        IndexBuildError: nothing is live.
    """
    path = Path(folder, "rows", "part-00000.parquet")
    try:
        path.parent.mkdir(parents=True)
        if not _write(index, uri, path):
            raise IndexBuildError(f"index {index.version}: nothing is live")
        return artifacts.seal(folder, "rows", "embedding-table", lineage=index.manifest.lineage)
    except OSError as error:
        raise artifacts.ArtifactError(
            f"{path}: what is live cannot be copied there: {error}; {remedy(error)}, or set TMPDIR "
            f"to another place"
        ) from error


def _write(index: Index, uri: str, path: Path) -> int:
    """Copies what is live to a file; how many rows."""
    schema = pa.schema([*EMBEDDINGS, *index.parts[0].attributes.schema])
    first, written = 0, 0
    with pq.ParquetWriter(path, schema) as writer:
        for number, part in enumerate(index.parts):
            start = 0
            for vectors in _vectors(index, uri, number):
                rows = np.arange(start, start + len(vectors))
                start += len(vectors)
                if index.dead is not None:
                    rows = rows[~index.dead[first + rows]]
                columns = [
                    pa.array(part.ids(rows), pa.string()),
                    pa.array(part.interests(rows), pa.int32()),
                    pa.array(np.ones(len(rows), np.float32)),
                    originals.as_lists(vectors[rows - (start - len(vectors))]),
                    *part.attributes.take(pa.array(rows)).columns,
                ]
                writer.write_table(pa.table(columns, schema=schema))
                written += len(rows)
            first += part.size
    return written


def _vectors(index: Index, uri: str, number: int) -> Iterator[np.ndarray]:
    """All vectors of a part in batches, as they were given."""
    part, name = index.parts[number], f"{shard_name(number)}/{originals.VECTORS_FILE}"
    if name in index.manifest.files:
        yield from originals.read_published(uri, index.manifest, name, _EXPORT_ROWS)
        return
    for start in range(0, part.size, _EXPORT_ROWS):
        yield part.vectors(np.arange(start, min(start + _EXPORT_ROWS, part.size)))
