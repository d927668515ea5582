"""Holds encoder and index to each other before anything is loaded."""

from __future__ import annotations

from rec import __version__
from rec.artifacts import ArtifactError, read_manifest
from serve_apps.api import Version


def match(encoder: str, index: str) -> Version:
    """What an encoder and an index serve together; reads the two manifests only.

    Args:
        encoder: URI of a "content-encoder" artifact.
        index: URI of an "index" artifact.

    Raises:
        ArtifactError: a manifest cannot be read, or the index holds another model's vectors.
    """
    model, items = read_manifest(encoder, "content-encoder"), read_manifest(index, "index")
    made_with = items.lineage.get("encoder")
    if made_with != model.version:
        held = f"vectors of encoder {made_with}" if made_with else "no record of its encoder"
        raise ArtifactError(
            f"{index}: {held}, but {encoder} is version {model.version}; embed the items with "
            "this encoder and build the index again, or serve the encoder that it was built with"
        )
    dims = model.config.get("embedding_dim"), items.config.get("dimension")
    if dims[0] != dims[1]:
        raise ArtifactError(
            f"{encoder} makes vectors of {dims[0]} numbers, {index} holds {dims[1]}"
        )
    return Version(
        model_version=model.version,
        index_version=items.version,
        dim=items.config["dimension"],
        num_items=items.config["num_items"],
        raycall=__version__,
    )
