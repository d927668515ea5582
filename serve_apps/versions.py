"""Holds what is served together to each other before anything is loaded."""

from __future__ import annotations

from rec import __version__
from rec.artifacts import ArtifactError, read_manifest
from serve_apps.api import RecommendVersion, Version
from serve_apps.releases import Placed, Release


def match(encoder: str, index: str) -> Version:
    """What an encoder and an index serve together; as `content_release`."""
    return content_version(content_release(encoder, index))


def content_release(encoder: str, index: str) -> Release:
    """The versions in use of an encoder and an index; reads the two manifests only.

    Args:
        encoder: URI of a "content-encoder" artifact.
        index: URI of an "index" artifact.

    Raises:
        ArtifactError: a manifest cannot be read, or the index holds another model's vectors.
    """
    model, items = _pair(encoder, "content-encoder", "embedding_dim", index)
    return Release(encoder=model, index=items)


def content_version(release: Release) -> Version:
    """A release of the content service as it is told."""
    items = release.index.manifest
    return Version(
        model_version=release.encoder.version,
        index_version=items.version,
        dim=items.config["dimension"],
        num_items=items.config["num_items"],
        raycall=__version__,
    )


def match_users(encoder: str, index: str, rows: str) -> RecommendVersion:
    """What an encoder of users, an index and users' histories serve together; as
    `users_release`."""
    return users_version(users_release(encoder, index, rows))


def users_release(encoder: str, index: str, rows: str) -> Release:
    """The versions in use of what recommends; reads manifests only.

    The rows may be newer than those that the encoder was trained on.

    Args:
        encoder: URI of a "sequence-encoder" artifact.
        index: URI of an "index" artifact of that encoder's items.
        rows: URI of a "sequence-rows" artifact.

    Raises:
        ArtifactError: as `content_release`.
    """
    model, items = _pair(encoder, "sequence-encoder", "dim", index)
    histories = Placed(uri=rows, manifest=read_manifest(rows, "sequence-rows"))
    return Release(encoder=model, index=items, rows=histories)


def users_version(release: Release) -> RecommendVersion:
    """A release of recommendations as it is told."""
    assert release.rows is not None
    items, histories = release.index.manifest, release.rows.manifest
    return RecommendVersion(
        model_version=release.encoder.version,
        index_version=items.version,
        rows_version=histories.version,
        domain=histories.metrics.get("domain", ""),
        dim=items.config["dimension"],
        num_items=items.config["num_items"],
        raycall=__version__,
    )


def same(uri: str, version: str, deployed: str) -> None:
    """Raise ArtifactError where `uri` holds another version than the one that was deployed."""
    if version != deployed:
        raise ArtifactError(
            f"{uri}: holds version {version} since it was published again; this deployment serves "
            f"{deployed}: deploy again"
        )


def _pair(encoder: str, kind: str, dim: str, index: str) -> tuple[Placed, Placed]:
    """The versions in use of an encoder, whose config calls its dimension `dim`, and its index."""
    model, items = read_manifest(encoder, kind), read_manifest(index, "index")
    made_with = items.lineage.get("encoder")
    if made_with != model.version:
        held = f"vectors of encoder {made_with}" if made_with else "no record of its encoder"
        raise ArtifactError(
            f"{index}: {held}, but {encoder} is version {model.version}; embed the items with "
            "this encoder and build the index again, or serve the encoder that it was built with"
        )
    dims = model.config.get(dim), items.config.get("dimension")
    if dims[0] != dims[1]:
        raise ArtifactError(
            f"{encoder} makes vectors of {dims[0]} numbers, {index} holds {dims[1]}"
        )
    return Placed(uri=encoder, manifest=model), Placed(uri=index, manifest=items)
