"""The files of a published index, checked and read."""

from __future__ import annotations

from rec import artifacts
from rec.artifacts import Manifest, join
from rec.retrieval.effort import Effort
from rec.retrieval.originals import VECTORS_FILE
from rec.retrieval.shards import EFFORT_FILE, Shard, shard_name
from rec.retrieval.versions import KIND


def load(
    uri: str, mmap: bool, model: str | None, manifest: Manifest | None
) -> tuple[list[Shard], Manifest]:
    """See `Index.open`."""
    manifest, folder = artifacts.open_artifact(uri, KIND, without=VECTORS_FILE, manifest=manifest)
    if model is not None and manifest.lineage.get("encoder") != model:
        raise artifacts.ArtifactError(
            f"{uri}: holds vectors of encoder {manifest.lineage.get('encoder')}, the queries "
            f"come from {model}; embed the items with that encoder and build again"
        )
    stated = {
        name: manifest.config.get(name)
        for name in ("dimension", "num_rows", "num_shards", "max_vectors_per_item")
    }
    for name, value in stated.items():
        if type(value) is not int or value < 1:
            raise artifacts.ArtifactError(
                f"{join(uri, artifacts.MANIFEST)}: {name} of version {manifest.version} is "
                f"{value!r}, expected a whole number above 0; restore it, or build the index again"
            )
    effort = Effort.from_json((folder / EFFORT_FILE).read_text())
    shards = [
        Shard.read(folder / shard_name(number), effort, mmap)
        for number in range(manifest.config["num_shards"])
    ]
    rows = sum(shard.size for shard in shards)
    for shard in shards:
        found = stated | {"dimension": shard.ann.dim, "num_rows": rows}
        if found != stated:
            raise artifacts.ArtifactError(
                f"{uri}: the manifest states {stated}, the files have {found}; build the "
                f"index again"
            )
    return shards, manifest
