"""The items' vectors of an encoder of users, as an embedding table."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rec import artifacts
from rec.data.parquet import ParquetFile
from rec.models.sequence.encoder import KIND as ENCODER_KIND
from rec.models.sequence.encoder import load_encoder
from rec.schema import EMBEDDINGS

KIND = "embedding-table"
_BATCH_ROWS = 16_384


def write_vectors(uri: str, item_ids: pa.Array, vectors: NDArray[np.float32]) -> None:
    """Write a part of an embedding table: N items with one active vector each, (N, D)."""
    dim = vectors.shape[1]
    with ParquetFile(uri, EMBEDDINGS) as file:
        for start in range(0, len(vectors), _BATCH_ROWS):
            batch = vectors[start : start + _BATCH_ROWS]
            offsets = pa.array(np.arange(len(batch) + 1, dtype=np.int32) * dim)
            columns = [
                item_ids.slice(start, len(batch)),
                pa.array(np.zeros(len(batch), np.int32)),
                pa.array(np.ones(len(batch), np.float32)),
                pa.ListArray.from_arrays(offsets, pa.array(batch.ravel(), pa.float32())),
            ]
            file.write(pa.Table.from_arrays(columns, schema=EMBEDDINGS))


def publish_item_vectors(encoder_uri: str, out_uri: str) -> artifacts.Manifest:
    """Publish the item vectors of the "sequence-encoder" at `encoder_uri` as an embedding table.

    They stand in the encoder, which is small enough for one process; no rows are read. A table
    of the same encoder that is published already stays as it is.

    Returns:
        The manifest; lineage names the version of the encoder and those that it was made from.

    Raises:
        ArtifactError: there is no such encoder, or it is not as published.
    """
    told = artifacts.read_manifest(encoder_uri, ENCODER_KIND)
    root = f"e-{told.version}"
    if artifacts.exists(artifacts.join(out_uri, artifacts.MANIFEST)):
        old = artifacts.read_manifest(out_uri, KIND)
        if old.root == root:
            try:
                artifacts.verify(out_uri, old)
                return old
            except artifacts.ArtifactError as error:
                print(f"embed: writing the table again: {error}", flush=True)
    encoder = load_encoder(encoder_uri)
    vectors = encoder.item_vectors().float().cpu().numpy()
    item_ids = pa.array(encoder.item_ids, pa.string())
    write_vectors(artifacts.join(out_uri, root, "part-00000.parquet"), item_ids, vectors)
    return artifacts.seal(
        out_uri,
        root,
        KIND,
        lineage={**told.lineage, "encoder": encoder.version},
        config={"encoder_uri": encoder_uri},
        metrics={"cutoff": told.metrics.get("cutoff"), "num_rows": len(vectors)},
    )
