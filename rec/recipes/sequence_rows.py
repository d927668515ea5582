"""What recipes of behaviour models share: items of published rows, optimiser groups, export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors.numpy import load
from torch import nn

from rec.artifacts import Manifest, filesystem, join, read_bytes, read_manifest
from rec.config import ConfigError
from rec.data.sequence_rows import KIND
from rec.features.sequence_items import item_columns
from rec.models.sequence.encoder import Trained, save_encoder
from rec.nn.items import ItemColumns, ItemConfig


def read_columns(rows: str, items: ItemConfig) -> ItemColumns:
    """What the rows at `rows` know of their items.

    Raises:
        ArtifactError: there are no published rows.
        ConfigError: `items` wants content vectors, the rows have none.
    """
    manifest = read_manifest(rows, KIND)
    content = None
    if "content" in items.features:
        if not manifest.metrics["content_dim"]:
            raise ConfigError(
                f"inputs.features names 'content', {rows} was made without content vectors; make "
                "the rows with an embedding table or leave the feature out"
            )
        content = _content(rows, manifest)
    sizes = {name: manifest.metrics[name] for name in ("num_tags", "num_categories")}
    return item_columns(
        _items(rows, manifest),
        **sizes,
        num_uploaders=manifest.metrics["num_uploaders"],
        content=content,
    )


def _items(rows: str, manifest: Manifest) -> pa.Table:
    files, path = filesystem(join(rows, manifest.root, "items.parquet"))
    return pq.read_table(path, filesystem=files)


def _content(rows: str, manifest: Manifest) -> NDArray[np.float32]:
    found = load(read_bytes(join(rows, manifest.root, "content.safetensors")))
    return found["vectors"] * found["mask"][:, None]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """All trained parameters with weight decay, but for embeddings, norms and vectors."""
    free = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, (nn.Embedding, nn.LayerNorm))
        for parameter in module.parameters()
    }
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            vector = parameter.ndim < 2 or name.endswith(("bias", "mask_emb"))
            groups[not vector and id(parameter) not in free].append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if decays else 0.0}
        for decays, parameters in groups.items()
        if parameters
    ]


def export_encoder(model: Trained, rows: str, uri: str, metrics: Mapping[str, Any]) -> None:
    """Publish a model of the rows at `rows` as a "sequence-encoder" artifact at `uri`."""
    manifest = read_manifest(rows, KIND)
    ids = _items(rows, manifest).column("item_id")
    lineage = {KIND: manifest.version, **manifest.lineage}
    # what uses the encoder holds it to its own cut-off
    metrics = {**metrics, "cutoff": manifest.metrics.get("cutoff")}
    save_encoder(model, ids, uri, lineage=lineage, metrics=metrics)
